"""Programs around data and training."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from alexnet_jax.cli import benchmark, benchmark_input, prepare
from alexnet_jax.cli import main as program
from alexnet_jax.cli.exits import exit_on_user_error
from alexnet_jax.data.dataset import open_prepared
from alexnet_jax.data.loader import make_train_source
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_preprocessing, open_dataset
from alexnet_jax.experiments import step_timing
from alexnet_jax.inference.training_batch import first_training_images
from alexnet_jax.steps import augmented
from alexnet_jax.system import console
from alexnet_jax.train_state import training_key
from configs import alexnet
from tests.conftest import REPOSITORY
from tests.helpers.pictures import make_folder

CONFIG = "--config=configs/alexnet.py:folder,cifar_18pct"


def arguments(tmp_path: Path, *changes: str) -> list[str]:
    folder = make_folder(tmp_path / "photos", {"train/cat": 40, "train/dog": 30})
    return [CONFIG, f"--config.data.dir={folder}", f"--config.data.prepared_dir={tmp_path / 'prepared'}", *changes]


def test_prepare_ends_with_a_report_and_says_so_when_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "alexnet_jax", "prepare", *arguments(tmp_path)]
    first, second = (
        subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, env=os.environ)
        for _ in range(2)
    )
    assert not first.stderr and not second.stderr
    for words in ("preparing 70 images once, as 32 x 32 raw pixels", "unreadable  0", "along principal"):
        assert words in first.stdout
    assert len(second.stdout.splitlines()) == 1 and second.stdout in first.stdout
    (directory,) = (path for path in (tmp_path / "prepared").iterdir() if path.is_dir())
    assert f"{len(open_prepared(directory).splits['train'].labels)} train" in second.stdout


def test_what_is_no_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'photos'"):
        prepare.main([*arguments(tmp_path), "photos"])


@pytest.mark.slow
def test_show_batch_draws_what_the_first_step_of_training_sees(tmp_path: Path, prepared_dir: str) -> None:
    config = alexnet.get_config("digits,lenet")
    config.update_from_flattened_dict({"data.prepared_dir": prepared_dir, "data.cutmix": 1.0, "data.rotation": 9.0})
    dataset = open_dataset(config.data)
    preprocessing = make_preprocessing(config.data, dataset.statistics)
    shown = first_training_images(config, preprocessing, dataset)
    source = make_train_source(config.data, dataset.splits["train"], None)
    batch = next(source.batches(0, batch_size=64, seed=config.seed, rows=slice(None)))
    augment = jax.jit(functools.partial(augmented, preprocessing, training_key(config.seed)))
    seen, partners, weights, _ = augment(batch)
    restored = np.asarray(seen[:32]) * np.array(config.data.std) + preprocessing.mean
    np.testing.assert_allclose(shown.images, np.clip(restored, 0, 255), atol=0.51)
    for label, own, other, weight in zip(shown.labels, batch["label"], partners, weights, strict=False):
        assert label == (str(own) if weight > 0.995 else f"{weight:.0%} {own}, {other}")
    flags = [f"--config.data.prepared_dir={prepared_dir}", "--config.data.cutmix=1.0", "--config.data.rotation=9.0"]
    output = tmp_path / "batch.png"
    program.main(["alexnet", "show-batch", "--config=configs/alexnet.py:digits,lenet", *flags, f"--output={output}"])
    assert output.read_bytes() == shown.png()


@pytest.mark.parametrize("storage", ["jpeg", "raw"])
def test_benchmark_input_measures_each_stage(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_input, "SECONDS", 0.05)
    benchmark_input.main(arguments(tmp_path, f"--config.data.storage={storage}", "--config.batch_size=16"))
    lines = capsys.readouterr().out.splitlines()
    rates = {line.split("  ")[0]: float(line.split()[-2].replace(",", "")) for line in lines if "images/s" in line[-9:]}
    stages = ["read, one thread", "order", "batch, all threads", "transfer", "augment", "end to end"]
    assert set(rates) - {"decode, one thread"} == set(stages)
    assert ("decode, one thread" in rates) == (storage == "jpeg")
    assert all(rate > 0 for rate in rates.values())
    assert lines[-1].startswith("Slowest: ")


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"batch, all threads": 7e3, "decode, one thread": 4e3}, "config.data.storage=raw"),
        ({"batch, all threads": 7e3}, "a faster disk"),
        ({"batch, all threads": 5e4}, "more cores"),
        ({"transfer": 1e3}, "config.data.cache=device"),
        ({"augment": 1e3}, "an accelerator"),
    ],
)
def test_the_advice_is_about_the_slowest_stage(rates: dict[str, float], words: str) -> None:
    fast = {"order": 1e7, "batch, all threads": 1e6, "transfer": 1e6, "augment": 1e6, "end to end": 1e2}
    advice = benchmark_input.advice({"read, one thread": 4e4, **fast, **rates}, num_threads=1)
    slowest = min(rates, key=lambda name: rates[name] if "one thread" not in name else 1e9)
    assert advice.startswith(f"Slowest: {slowest}") and words in advice


def test_benchmark_shows_what_it_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.05)
    monkeypatch.setattr(console._console, "width", 200)
    monkeypatch.setattr(step_timing, "MATRIX_SIDE_ON_CPU", 64)
    monkeypatch.setattr(step_timing, "VECTOR_LENGTH", 1024)
    benchmark.main(["--config=configs/alexnet.py:synthetic,lenet,smoke"])
    devices, *table, advice = capsys.readouterr().out.splitlines()
    assert devices.startswith("2 x cpu (") and ", jax " in devices
    rows = dict(re.split(" {2,}", line.strip(), maxsplit=1) for line in table)
    assert rows["network"] == "lenet, 16 images of 24 pixels a step"
    number = r"([\d,.]+)"
    for name, form in {
        "compile time": f"{number} s",
        "step time": f"{number} ms, quartiles {number} and {number} of {number} steps",
        "speed": f"{number} images/s",
        "arithmetic": f"{number} GFLOP an image, {number} GFLOP/s",
        "matrix products": f"{number} GFLOP/s in float32, large ones alone",
        "memory traffic": f"{number} GB/s; the optimizer takes at least \\d+% of a step",
        "peak memory": f"{number} GB of the process",
    }.items():
        match = re.fullmatch(form, rows[name])
        assert match, (name, rows[name])
        assert all(float(value.replace(",", "")) > 0 for value in match.groups()), rows[name]
    assert re.match(r"\d+%; may exceed 100%: Winograd", rows["fraction of it"])
    assert re.match(r"(\d+ (d|h|min) ?)+ for 90 epochs of 1,281,167 images", rows["ImageNet"])
    assert advice.startswith("Limited by ")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.batchsize=8", "did you mean config.batch_size"),
        ("--config.model.preset=vgg", "config.model.preset='vgg' is unknown"),
        ("--config.batch_size=15", "does not divide into 2 shards"),
        ("photos", "'photos'"),
    ],
)
def test_benchmark_answers_a_mistake_with_a_line(flag: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = exit_on_user_error(lambda argv: program.main(["alexnet_jax", "benchmark", *argv]))
    with pytest.raises(SystemExit) as exit:
        main(["--config=configs/alexnet.py:synthetic,lenet,smoke", flag])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize(
    ("peak_share", "optimizer_share", "on_cpu", "words"),
    [
        (0.7, 0.3, False, "arithmetic"),
        (0.7, 0.0, True, "memory traffic and overhead"),
        (1.6, 0.0, True, "arithmetic"),
        (0.4, 0.3, False, "the optimizer's passes"),
        (0.4, 0.1, False, "memory traffic and overhead"),
    ],
)
def test_the_advice_is_about_what_limits(peak_share: float, optimizer_share: float, on_cpu: bool, words: str) -> None:
    assert benchmark.advice(peak_share, optimizer_share, on_cpu).startswith(f"Limited by {words}")
