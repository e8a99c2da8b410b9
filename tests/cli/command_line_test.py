"""The command line: what is mistyped is answered with one line, and never with a traceback."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from alexnet_jax.cli import evaluate
from alexnet_jax.cli import flags as flags_lib
from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.cli.exits import exit_on_user_error
from alexnet_jax.cli.train import default_workdir
from alexnet_jax.config import check
from alexnet_jax.config_keys import RENAMED
from alexnet_jax.errors import Terminated, TrainingDivergedError, UserError
from alexnet_jax.train import train_and_evaluate
from configs import alexnet
from tests.conftest import REPOSITORY

CONFIG_FILE = REPOSITORY / "configs" / "alexnet.py"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that parsing these arguments ends with."""
    with pytest.raises(SystemExit) as exit:
        flags_lib.parse_flags(["main.py", *arguments])
    assert exit.value.code == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optimizer.lerning_rate", "optimizer.learning_rate"),
        ("optimizer.learning-rate", "optimizer.learning_rate"),
        ("optimizer.learningrate", "optimizer.learning_rate"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("optimizer.momentun", "optimizer.momentum"),
        ("momentum", "optimizer.momentum"),
        ("weight_decay", "optimizer.weight_decay"),
        ("optimizer.weightdecay", "optimizer.weight_decay"),
        ("optimizer.scheduler", "optimizer.schedule"),
        ("optimizer.min_lr", "optimizer.minimum_learning_rate"),
        ("batchsize", "batch_size"),
        ("batch_sise", "batch_size"),
        ("batch", "batch_size"),
        ("num_epochs", "epochs"),
        ("epoch", "epochs"),
        ("max_step", "max_steps"),
        ("random_seed", "seed"),
        ("dropout", "model.dropout_rate"),
        ("model.dropout", "model.dropout_rate"),
        ("model.width", "model.hidden_width"),
        ("preset", "model.preset"),
        ("data.crop_size", "data.crop"),
        ("data.imagesize", "data.image_size"),
        ("data.num_workers", "data.num_threads"),
        ("parallel.devices", "parallel.num_devices"),
        ("checkpoint.every", "checkpoint.every_steps"),
    ],
)
def test_a_mistyped_key_gets_the_nearest_as_a_hint(wrong: str, right: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, f"--config={CONFIG_FILE}", f"--config.{wrong}=1")
    assert f"unknown key config.{wrong}; did you mean config.{right} (" in error


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_of_a_key_is_answered_with_the_new_one(
    old: str, new: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert f"config.{old} is now called config.{new}" in error_of(
        capsys, f"--config={CONFIG_FILE}", f"--config.{old}=1"
    )
    own = tmp_path / "own.py"
    lines = ("config = configs.alexnet.get_config()", f"config.{old} = 1", "return config")
    own.write_text("\n    ".join(("import configs.alexnet\n\ndef get_config():", *lines)))
    assert f"{own}: config.{old} is now called config.{new}" in error_of(capsys, f"--config={own}")


def test_the_hint_shows_the_value_that_the_config_has(capsys: pytest.CaptureFixture[str]) -> None:
    for choices, batch_size in [("digits", 64), ("caffe,synthetic", 256)]:
        assert f"config.batch_size ({batch_size})" in error_of(
            capsys, f"--config={CONFIG_FILE}:{choices}", "--config.bach_size=1"
        )


@pytest.mark.parametrize(
    "arguments", [["--config.miror=1"], ["--config.miror", "1"], ["-config.miror=1"], ["--noconfig.miror"]]
)
def test_a_key_may_be_given_in_all_ways_of_a_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    hint = "unknown key config.miror; did you mean config.data.mirror (False)?"
    assert hint in error_of(capsys, f"--config={CONFIG_FILE}", *arguments)
    assert hint in error_of(capsys, *arguments, "--config", str(CONFIG_FILE))


def test_a_key_like_no_other_gets_no_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, f"--config={CONFIG_FILE}", "--config.xyzzy=1") == "error: unknown key config.xyzzy\n"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("def get_config(:", "invalid syntax"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "get_config"),
        ("def get_config():\n    raise KeyError", ""),
        ("def get_config():\n    return {'seed': 1}", "ConfigDict"),
    ],
)
def test_a_broken_config_file_is_named(
    content: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Config files all load as this one module, where an earlier file's get_config would live on.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    path = tmp_path / "broken.py"
    path.write_text(content)
    error = error_of(capsys, f"--config={path}")
    assert "broken.py" in error
    assert word in error
    assert "no such file" not in error


# The program

GOOD = f"--config={CONFIG_FILE}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([GOOD, "--config.batch_size=abc"], ["config.batch_size", "'abc'"]),
        ([GOOD, "--config.batch_size=1.5"], ["config.batch_size", "'1.5'"]),
        ([GOOD, "--config.data.mirror=maybe"], ["config.data.mirror", "maybe"]),
        ([GOOD, "--config.optimizer.momentum=1"], ["config.optimizer.momentum"]),
        ([GOOD + ":digits,alexnet2"], ["'alexnet2'", "single_tower"]),
        (["--config=configs/no_such_file.py"], ["configs/no_such_file.py", "no such file"]),
        ([GOOD, "--confg.x=1"], ["confg"]),
        ([GOOD, "--workdri=runs/x"], ["workdri"]),
        ([GOOD, "batch_size=3"], ["'batch_size=3'", "--config.KEY=VALUE"]),
    ],
)
def test_a_mistake_is_answered_with_one_line_and_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        flags_lib.config_from_flags("main.py", argv)

    with pytest.raises(SystemExit) as exit:
        program(arguments)
    assert exit.value.code == 2
    output, error = capsys.readouterr()
    assert output == "" and error.count("\n") == 1 and error.startswith("error: ")
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config=configs/alexnet.py"]),
        (["--config=configs/alexnet.py", "--workdri=runs/x"], ["workdri", "workdir"]),
        ([GOOD + ":synthetic", "--config.model.preset=alexnet2"], ["model.preset", "alexnet2", "single_tower"]),
        ([GOOD, "--config.data.name=mnist"], ["config.data.name", "'mnist'", "digits", "tfds:NAME"]),
        (["--config=configs/alexnet.py:tfds:no_such_set"], ["no_such_set", "neither prepared nor known to TFDS"]),
    ],
)
def test_so_does_the_program_and_it_makes_no_folder(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *arguments, f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "status", "message"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")]
)
def test_an_interruption_before_the_run_begins_is_one_line_too(
    error: type[BaseException], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        program([])
    assert exit.value.code == status
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_device_that_jax_does_not_find_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise AssertionError  # so does jax 0.10.2

    @exit_on_user_error
    def program(argv: list[str]) -> None:
        jax.devices()

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(SystemExit) as exit:
        program([])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert "JAX_PLATFORMS=cuda" in error and error.count("\n") == 1


@pytest.mark.parametrize(("error", "status"), [(UserError, 2), (TrainingDivergedError, 1)])
def test_user_errors_become_one_line_and_a_status(
    error: type[UserError], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        raise error(f"{argv[0]} is no good")

    with pytest.raises(SystemExit) as exit:
        program(["this"])
    assert exit.value.code == status
    assert capsys.readouterr().err == "error: this is no good\n"


def test_names_in_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        raise UserError("a\x1b[31m.jpg is damaged")

    with pytest.raises(SystemExit):
        program([])
    assert capsys.readouterr().err == "error: a\\x1b[31m.jpg is damaged\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory (MemoryError): "),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "out of memory (RESOURCE_EXHAUSTED: "),
        (ImportError("libx.so: failed to map segment from shared object"), "out of memory (libx.so: "),
        (RuntimeError("can't start new thread"), "out of memory (can't start new thread): "),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory (Cannot allocate memory): "),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.csv"),
            "a.csv: No space left on device; is the disk full?",
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a.csv"), "a.csv: Permission denied\n"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error: Exception, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as exit:
        program([])
    printed = capsys.readouterr().err
    assert exit.value.code == 2 and printed.startswith(f"error: {message}") and printed.count("\n") == 1


def small_program(before: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of a line that prints its words, after a command of the shell; it imports next to nothing."""
    code = "import sys; from alexnet_jax.cli.exits import run_program; run_program(lambda argv: print(argv), sys.argv)"
    words = ["sh", "-c", f'{before} exec "$0" -c "$1"', sys.executable, code]
    return subprocess.run(words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, timeout=60, **options)


def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = small_program(stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output") and done.stderr.endswith("is the disk full?\n")
    assert done.stderr.count("\n") == 1


def test_too_small_an_address_space_is_one_line() -> None:
    done = small_program("ulimit -v 1464844;")  # KiB
    assert done.returncode == 2
    assert done.stderr.startswith("error: this process may use 1.5 GB") and done.stderr.count("\n") == 1


def test_an_interrupt_during_an_import_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException as error:\n    raise ImportError from None\n"
    )
    done = run_in_exits("import library", tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_an_interrupt_that_cannot_be_raised_is_not_lost(tmp_path: Path) -> None:
    """It comes while the garbage collector calls a function, as JAX's."""
    body = (
        "import gc, os, signal, time; once = lambda *_: gc.callbacks.clear() or os.kill(os.getpid(), signal.SIGINT); "
    )
    done = run_in_exits(body + "gc.callbacks.append(once); gc.collect(); time.sleep(5)", tmp_path)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def run_in_exits(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # it may be ignored, as after nohup
    )
    code += f"from alexnet_jax.cli.exits import run_program; run_program(lambda _: exec({body!r}, {{}}), [])"
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{REPOSITORY}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_a_program_starts_with_few_imports() -> None:
    """So that an interrupt is answered in a line from the first moment."""
    heavy = {"absl", "jax", "ml_collections", "numpy", "rich"}
    code = f"import sys, alexnet_jax.cli.main; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://bucket/run"])
def test_places_on_other_machines_are_refused(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = alexnet.get_config("synthetic,lenet,smoke")
    for place in (path, Path(path)):
        with pytest.raises(UserError, match="bucket/run is not on this machine"):
            train_and_evaluate(config, place)
    with pytest.raises(UserError, match="bucket/run is not on this machine"):
        evaluate.main([path])
    config.data.prepared_dir = path
    with pytest.raises(UserError, match=r"config\.data\.prepared_dir"):
        check(config.to_dict())
    assert not list(tmp_path.iterdir())


def test_words_in_errors_of_the_command_line_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """They may be names of files, as `*` gives them."""
    with pytest.raises(SystemExit) as exit:
        run_parser("export", "").parse_args(["run", "--\x1b[31m.jpg"])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err and r"--\x1b[31m.jpg" in err


def test_errors_of_the_program_itself_keep_their_traceback() -> None:
    @exit_on_user_error
    def program(argv: list[str]) -> None:
        raise ValueError(argv)

    with pytest.raises(ValueError):
        program(["this"])


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/alexnet.py", "runs/alexnet"),
        ("configs/alexnet.py:", "runs/alexnet"),
        ("configs/alexnet.py:digits,smoke", "runs/alexnet-digits-smoke"),
        ("configs/alexnet.py:tfds:imagenet2012,paper", "runs/alexnet-tfds-imagenet2012-paper"),
        ("/else where/my net.py:cifar_11pct", "runs/my-net-cifar_11pct"),
        ("../config.v2.py", "runs/config.v2"),
    ],
)
def test_default_workdir_is_named_by_the_config(config: str, workdir: str) -> None:
    assert default_workdir(config, {}) == workdir


@pytest.mark.parametrize(
    ("flags", "workdir"),
    [
        # What only makes the run longer, or changes no result, continues the run.
        (["--config.epochs=60", "--config.optimizer.restart_epochs=(30.0,)", "--config.data.num_threads=2"], ""),
        (["--config.seed=0", "--config.optimizer.learning_rate=1e-2"], ""),  # as they are anyway
        (["--config.seed=1"], "-seed=1"),
        (["--config.optimizer.learning_rate=5e-3", "--config.seed=1"], "-learning_rate=0.005-seed=1"),
        (["--config.seed=1", "--config.optimizer.learning_rate=0.005"], "-learning_rate=0.005-seed=1"),
        (["--config.data.dir=my photos/pets"], "-pets"),
        (["--config.data.std=(1.0, 1.0, 2.0)"], "-std=-1.0-1.0-2.0"),
        (["--config.model.without_layers=('conv3', 'conv4', 'conv5')", "--config.init_from=runs/another/one"], "-#"),
    ],
)
def test_the_default_workdir_is_another_where_the_experiment_is(flags: list[str], workdir: str) -> None:
    config = flags_lib.config_from_flags("train", [f"--config={CONFIG_FILE}", *flags])
    changes = flags_lib.overrides(str(CONFIG_FILE), config)
    assert re.sub("-[0-9a-f]{8}$", "-#", default_workdir(str(CONFIG_FILE), changes)) == f"runs/alexnet{workdir}"


def test_home_is_expanded_in_flags_and_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    words = ["--workdir=~/runs", "~/a.jpg", "--config.data.dir=~", "--config.x=a~b", "a=~", "--output", "~/x"]
    expanded = [f"--workdir={home}/runs", f"{home}/a.jpg", f"--config.data.dir={home}", "--config.x=a~b", "a=~"]
    assert flags_lib.expand_words(words) == [*expanded, "--output", f"{home}/x"]
