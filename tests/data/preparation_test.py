"""Preparing images: what cannot be read, interruptions, full disks, changed sources, several processes."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax.data import inventory, preparation, storage
from alexnet_jax.data.dataset import open_prepared
from alexnet_jax.data.image_folder import ImageFolder
from alexnet_jax.data.images import read_original
from alexnet_jax.data.preparation import _Job
from alexnet_jax.data.sources import SPLITS
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.system import console
from tests.conftest import REPOSITORY
from tests.helpers.pictures import (
    assert_whole,
    contents,
    make_folder,
    noise,
    prepared,
    refused,
    save,
    storing,
    watch_reads,
)

STORAGES = ("raw", "jpeg")
COUNT = 200  # images of `source`: chunks of 64, 64, 64 and 8


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken."""
    monkeypatch.setattr(console._console, "_width", 5000)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("preparation") / "source", {"train/cat": 100, "train/dog": 100})


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The folder that an uninterrupted preparation of `source` makes, by storage."""
    folder = tmp_path_factory.mktemp("expected")
    return {storage: contents(prepared(source, folder, storage=storage).directory) for storage in STORAGES}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of `source` as they are read."""
    return watch_reads(monkeypatch)


# Room


@pytest.mark.parametrize("storage", [*STORAGES, "auto"])
def test_a_disk_that_is_too_small_is_refused_beforehand(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**7))  # type: ignore[attr-defined]
    message = refused(lambda: prepared(source, tmp_path, storage=storage, image_size=512))
    needed = "0.16 GB" if storage == "raw" else "0.02 GB"
    assert "not enough disk" in message and needed in message and "0.01 GB free" in message
    assert "config.data.prepared_dir" in message and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("storage", STORAGES)
def test_the_room_asked_for_is_enough(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """The smallest disk that is accepted holds what is written."""
    low, high = 1, 10**9
    while low < high:  # bisects what `_choose_storage` accepts
        middle = (low + high) // 2
        monkeypatch.setattr(preparation, "_free", lambda directory, free=middle: free)
        try:
            _Job(ImageFolder(str(source)), storing(storage=storage), tmp_path / "x", "")._choose_storage()
            high = middle
        except UserError:
            low = middle + 1
    monkeypatch.undo()
    directory = prepared(source, tmp_path, storage=storage).directory
    assert sum(map(len, (data for name, data in contents(directory).items() if "train" in name))) <= 1.5 * low + 50_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A separate disk of some KiB; call again to change its size."""
    mount = tmp_path / "disk"
    mount.mkdir()

    def resize(size: int) -> Path:
        again = ["-o", f"remount,size={size}k"] if mount.is_mount() else ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs"]
        if subprocess.run(["mount", *again, str(mount)], capture_output=True).returncode:
            pytest.skip("this needs the right to mount a disk")
        return mount

    if shutil.which("mount") is None:
        pytest.skip("this needs the mount command")
    yield resize
    if mount.is_mount():
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "step"), [("raw", 12), ("jpeg", 140)])
def test_a_full_disk_is_told_and_what_is_written_by_then_is_kept(
    source: Path,
    expected: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    small_disk: Callable[[int], Path],
    storage: str,
    step: int,
) -> None:
    """With only a little more space each time."""
    monkeypatch.setattr(_Job, "_choose_storage", lambda job: job.options.storage)
    for attempt in range(1, 40):
        disk = small_disk(attempt * step)
        try:
            prepared(source, disk, storage=storage)
        except UserError as error:
            assert "the disk is full" in str(error) and str(disk) in str(error) and "\n" not in str(error)
            assert not list(disk.glob("*/info.json")) or list(disk.glob("*.partial/info.json"))
        else:
            break
    assert attempt > 4
    assert_whole(disk, expected[storage])


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_room_made_on_a_full_disk_lets_the_same_command_continue(
    source: Path,
    expected: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reads: list[Path],
    small_disk: Callable[[int], Path],
    storage: str,
) -> None:
    monkeypatch.setattr(_Job, "_choose_storage", lambda job: job.options.storage)
    monkeypatch.setattr(preparation, "available_cores", lambda: 1)
    disk = small_disk(700 if storage == "jpeg" else 70)
    assert "the disk is full" in refused(lambda: prepared(source, disk, storage=storage))
    reads.clear()
    prepared(source, small_disk(50_000), storage=storage)
    assert "continuing the preparation" in capsys.readouterr().out
    assert COUNT < len(reads) < 2 * COUNT  # each is read once for the splits of small classes
    assert_whole(disk, expected[storage])


# Interruptions


KILLED = """
import os, signal, sys
from pathlib import Path
from alexnet_jax.data import preparation
from tests.helpers.pictures import prepared
real, seen = preparation.resize_image, []
def resize_image(*args):
    seen.append(True)
    if len(seen) == 80:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
preparation.resize_image, preparation.available_cores = resize_image, lambda: 1
prepared(Path(sys.argv[1]), Path(sys.argv[2]), storage=sys.argv[3])
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    environment = {**os.environ, "COLUMNS": "5000", "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True)


@pytest.mark.slow
def test_a_killed_preparation_goes_on_where_it_stood(
    source: Path,
    expected: dict[str, dict[str, bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reads: list[Path],
) -> None:
    killed = {kind: start(KILLED, source, tmp_path / kind, kind) for kind in STORAGES}
    for kind, process in killed.items():
        process.communicate()
        assert process.returncode == -9
        (partial,) = (tmp_path / kind).glob("*.partial")
        for directory in (partial, partial.with_suffix("")):
            refused(lambda directory=directory: open_prepared(directory))
        reads.clear()
        prepared(source, tmp_path / kind, storage=kind)
        assert "continuing the preparation" in capsys.readouterr().out
        # Each is read once for the splits of small classes; of the others the first two chunks were complete.
        assert len(reads) == COUNT + COUNT - 64
        assert_whole(tmp_path / kind, expected[kind])


STAGES: dict[str, tuple[Any, str]] = {
    "reading": (preparation, "resize_image"),
    "chunk": (inventory.Inventory, "save"),
    "naming": (_Job, "_name_shards"),
    "tables": (preparation, "write_tables"),
    "metadata": (storage, "write_tfds_metadata"),
    "mean image": (inventory.np, "save"),
    "arrays": (preparation, "save_arrays"),
    "completing": (_Job, "_complete"),
    "publishing": (_Job, "_publish"),
}


def interrupt(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, after: bool) -> list[int]:
    """Makes a function's n-th call raise KeyboardInterrupt, before or after its work. Returns its calls so far."""
    real, numbers, calls = getattr(owner, name), itertools.count(1), []

    def function(*args: Any, **kwargs: Any) -> Any:
        number = next(numbers)  # of this call, whatever other threads do
        calls.append(number)
        if number == call and not after:
            raise KeyboardInterrupt
        result = real(*args, **kwargs)
        if number == call:
            raise KeyboardInterrupt
        return result

    patch.setattr(owner, name, function)
    return calls


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("storage", STORAGES)
def test_an_interruption_at_any_stage_changes_nothing_in_the_end(
    source: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path, storage: str, stage: str, after: bool
) -> None:
    call = {"reading": 50, "chunk": 2}.get(stage, 1)
    with pytest.MonkeyPatch.context() as patch:
        calls = interrupt(patch, *STAGES[stage], call, after)
        if stage == "metadata" and storage == "raw":
            prepared(source, tmp_path, storage=storage)
            assert not calls
        else:
            with pytest.raises(KeyboardInterrupt):
                prepared(source, tmp_path, storage=storage)
    if not (stage == "publishing" and after):
        assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] in ([".partial"], [""])
    prepared(source, tmp_path, storage=storage)
    assert_whole(tmp_path, expected[storage])


def test_an_interruption_says_that_the_work_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, preparation, "resize_image", 50, after=False)
    with pytest.raises(KeyboardInterrupt):
        prepared(source, tmp_path)
    assert "is kept" in capsys.readouterr().out


PROGRAMS = {"main.py": ["main.py"], "prepare": ["-m", "alexnet_jax", "prepare"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "number", "message"),
    [
        ("main.py", signal.SIGTERM, "terminated"),
        ("prepare", signal.SIGTERM, "terminated"),
        ("prepare", signal.SIGINT, "interrupted"),
    ],
)
def test_a_signal_ends_the_process_soon_and_loses_nothing(
    program: str, number: signal.Signals, message: str, make_config: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    """A signal from outside, while the largest chunk is being prepared and a smaller one is complete."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"whatever started the tests ignores {number.name}, and so do the processes that they start")

    pipe, into = subprocess.PIPE, tmp_path / "data"
    settings: dict[str, Any] = {"data.synthetic_examples": 8000, "data.image_size": 48}
    words = [f"--config.{key}={value}" for key, value in (settings | {"data.prepared_dir": into}).items()]
    command = [sys.executable, *PROGRAMS[program], "--config=configs/alexnet.py:synthetic,lenet,smoke", *words]
    command += [f"--workdir={tmp_path / 'run'}"] * (program == "main.py")
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    while not list(into.glob("*.partial/part-*.npz")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 128 + number, out + err
    (partial,) = into.glob("*.partial")
    assert out.endswith(f"the work so far is kept in {partial}; the same command continues it\n")
    assert err == f"error: {message}\n"

    complete = {int(path.stem.removeprefix("part-")) for path in partial.glob("part-*.npz")}
    names = [storage.working_name(split, part, "raw") for part, split in enumerate(SPLITS) if part in complete]
    kept = {(partial / name).stat().st_mtime_ns for name in names}
    continued = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert continued.returncode == 0, continued.stderr
    assert "continuing the preparation" in continued.stdout
    uninterrupted = make_config(**settings, **{"data.prepared_dir": str(tmp_path / "uninterrupted")})
    assert_whole(into, contents(open_dataset(uninterrupted.data).directory))
    assert kept and kept <= {path.stat().st_mtime_ns for path in partial.with_suffix("").iterdir()}


@pytest.mark.parametrize("name", ["rename", "unlink"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interruption_at_any_rename_leaves_nothing_behind(tmp_path: Path, name: str, after: bool) -> None:
    """Renames of a preparation that takes the place of an older one."""
    moved, failures = make_folder(tmp_path / "source", {"train/cat": 20, "train/dog": 20}), []
    before = (moved / "train/cat/000.png").stat()
    reference = contents(prepared(moved, tmp_path / "reference").directory)
    for call in range(1, 40):
        into = tmp_path / f"{call}"
        os.utime(moved / "train/cat/000.png", (call, call))  # a new fingerprint
        prepared(moved, into)
        os.utime(moved / "train/cat/000.png", ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.MonkeyPatch.context() as patch:
            calls = interrupt(patch, Path, name, call, after)
            with contextlib.suppress(KeyboardInterrupt):
                prepared(moved, into)
        prepared(moved, into)
        try:
            assert_whole(into, reference)
        except (AssertionError, ValueError) as error:
            failures.append(f"call {call}: {error}")
        if len(calls) < call:
            break
    assert call > 2 and not failures


def test_a_split_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "s", {"cat": 2, "dog": 2})
    message = refused(lambda: prepared(tmp_path / "s", tmp_path / "p", validation_fraction=1e-6, test_fraction=0.0))
    assert "no image was left for the validation split" in message
    assert [path.suffix for path in (tmp_path / "p").iterdir()] == [".lock"]


# Several processes, odd places


SLOW = """
import sys, time
from pathlib import Path
from alexnet_jax.data import preparation
from tests.helpers.pictures import images_of, prepared
real = preparation.resize_image
def resize_image(*args):
    time.sleep(0.02)
    return real(*args)
preparation.resize_image = resize_image
print("ready")
input()
dataset = prepared(Path(sys.argv[1]), Path(sys.argv[2]), storage="jpeg")
print("images", images_of(dataset.splits["train"]).sum(), dataset.content)
"""


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(source: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    processes = [start(SLOW, source, tmp_path) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted("waiting for another process" in text for text in said) == [False, True]
    assert sorted("preparing 200 images" in text for text in said) == [False, True]
    assert len({text.splitlines()[-1] for text in said}) == 1 and "images" in said[0].splitlines()[-1]
    assert_whole(tmp_path, expected["jpeg"])


def test_a_prepared_dir_that_is_a_file_is_named(source: Path, tmp_path: Path) -> None:
    file = save(tmp_path / "x.png", noise(0))
    assert str(file) in refused(lambda: prepared(source, file))


def test_a_very_long_folder_name_does_no_harm(source: Path, tmp_path: Path) -> None:
    root = shutil.copytree(source, tmp_path / ("x" * 250))
    (tmp_path / "p").mkdir()
    assert len(json.loads((prepared(root, tmp_path / "p").directory / "train_files.json").read_text())) > 30


@pytest.mark.parametrize("name", ["part-00001.npz", "plan.json"])
@pytest.mark.parametrize("content", [b"", b"?" * 100, b"{}"], ids=["empty", "garbled", "other"])
def test_a_damaged_half_made_folder_is_mended(
    source: Path, expected: dict[str, dict[str, bytes]], tmp_path: Path, name: str, content: bytes
) -> None:
    """Such a file is what a power failure may leave."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, _Job, "_complete", 1, after=False)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path)
    (partial,) = tmp_path.glob("*.partial")
    (partial / name).write_bytes(content)
    prepared(source, tmp_path)
    assert_whole(tmp_path, expected["raw"])


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_machine_that_fails_for_a_moment_is_no_property_of_an_image(
    source: Path, tmp_path: Path, expected: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:

    def fail(path: Path, max_pixels: float) -> bytes:
        if path.name.startswith("01"):
            raise OSError(code, os.strerror(code), str(path))
        return read_original(path, max_pixels)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "read_original", fail)
        assert os.strerror(code) in refused(lambda: prepared(source, tmp_path))
    assert contents(prepared(source, tmp_path).directory) == expected["raw"]
