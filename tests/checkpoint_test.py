"""Checkpoints: which are kept, failed saves, and damaged files."""

import contextlib
import errno
import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alexnet_jax import checkpoint
from alexnet_jax.checkpoint import Checkpoints, checkpoint_names, restore, restore_latest
from alexnet_jax.errors import UserError
from tests.conftest import REPOSITORY, full_disk


def tree(value: float) -> dict[str, dict[str, jax.Array]]:
    return {"params": {"kernel": jnp.full((300, 7), value) + jnp.arange(7.0)[None, :]}, "batch_stats": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints 10, 20 and 30; 10 is the best."""
    directory = tmp_path / "checkpoints"
    with Checkpoints(directory, keep=2) as checkpoints:
        for name in (10, 20, 30):
            checkpoints.save(name, tree(name), {"progress": {"share": 0.1 + 0.2}, "name": name}, best=10)
    return directory


def test_what_was_saved_comes_back_to_the_bit(folder: Path) -> None:
    restored, warnings = restore_latest(folder)
    assert restored is not None and not warnings
    assert (restored.examples_seen, restored.metadata["name"]) == (30, 30)
    assert restored.metadata["progress"]["share"] == 0.1 + 0.2
    np.testing.assert_array_equal(restored.tree["params"]["kernel"], tree(30)["params"]["kernel"])


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert restore_latest(tmp_path / "nowhere") == (None, [])


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for name in range(10, 70, 10):
            checkpoints.save(name, tree(name), {}, best=20 if name >= 20 else 10)
    assert checkpoint_names(tmp_path / "c") == [20, 50, 60]


def test_saving_again_under_the_same_name_replaces(folder: Path) -> None:
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(30, tree(31), {"name": "again"}, best=None)
        checkpoints.save(30, tree(32), {"name": "and again"}, best=None)
    restored = restore(folder, 30)
    assert restored.metadata["name"] == "and again"
    assert restored.tree["params"]["kernel"][0, 0] == 32


def test_what_is_saved_may_be_overwritten_at_once(tmp_path: Path) -> None:
    values = np.zeros((1000, 1000), np.float32)
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(1, {"values": values}, {}, best=None)
        values[:] = 1
    assert not restore(tmp_path / "c", 1).tree["values"].any()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, original = threading.Event(), checkpoint.digest

    def slow_digest(tree: object, metadata: Mapping[str, object]) -> str:
        assert may_go_on.wait(60)
        return original(tree, metadata)

    monkeypatch.setattr(checkpoint, "digest", slow_digest)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        checkpoints.save(1, tree(1), {}, best=None)
        assert checkpoints.is_busy() and not checkpoint_names(tmp_path / "c")
        checkpoints.check()
        may_go_on.set()
        checkpoints.wait()
        assert checkpoint_names(tmp_path / "c") == [1]


def test_runs_that_train_together_save_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two saves of Orbax at once can wait for each other until a timeout ends them.
    going_on, original = threading.Lock(), ocp.Checkpointer.save

    def save(*args: object, **rest: object) -> None:
        assert not going_on.locked(), "two at once"
        with going_on:
            time.sleep(0.1)
            original(*args, **rest)

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with contextlib.ExitStack() as together:
        for name in "abc":
            together.enter_context(Checkpoints(tmp_path / name, keep=1)).save(1, tree(1), {}, best=None)
    assert all(checkpoint_names(tmp_path / name) == [1] for name in "abc")


def test_a_truncated_file_is_told_in_a_line(folder: Path) -> None:
    largest = max(folder.glob("30/**/d/*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    program = (
        "from pathlib import Path; from alexnet_jax.checkpoint import restore_latest;"
        f"restored, (warning,) = restore_latest(Path({str(folder)!r})); print(restored.examples_seen, warning)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "Traceback" not in done.stderr and done.stdout.startswith("20 checkpoint ")


def test_arrays_that_would_fill_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = ocp.PyTreeCheckpointHandler
    monkeypatch.setattr(
        ocp, "PyTreeCheckpointHandler", lambda **options: handler(**{**options, "use_compression": True})
    )
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, {"values": np.zeros(2**25, np.float32)}, {}, best=None)
    with pytest.raises(UserError, match=r"/1 .*134,217,728 bytes"):
        restore(tmp_path, 1)


# A full disk

BIG = {"values": np.random.default_rng(0).random(100_000)}


def assert_unharmed(folder: Path, *names: int) -> None:
    """Asserts that the folder has exactly these checkpoints, all readable."""
    assert sorted(path.name for path in folder.iterdir()) == [str(name) for name in names]
    for name in names:
        restore(folder, name)


@pytest.mark.parametrize("name", [30, 40])
def test_a_failed_save_stops_the_run_and_harms_no_other(folder: Path, name: int) -> None:
    with Checkpoints(folder, keep=2) as checkpoints, full_disk():
        checkpoints.save(name, BIG, {}, best=10)
        with pytest.raises(UserError, match=f"{name} .*File too large.*/30") as raised:
            checkpoints.wait()
    assert "\n" not in str(raised.value)
    assert_unharmed(folder, 10, 20, 30)


def test_a_failed_save_may_be_a_warning_and_the_best_before_it_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Checkpoints(folder, 2, "continue") as checkpoints:
        with full_disk():
            checkpoints.save(40, BIG, {}, best=40)
            checkpoints.save(50, tree(50), {}, best=40)
        assert "warning: saving " in (shown := capsys.readouterr().out) and "40 failed" in shown
        checkpoints.save(60, tree(60), {}, best=40)
        checkpoints.wait()
        with full_disk():
            checkpoints.save(70, BIG, {}, best=70)  # the last must succeed
            with pytest.raises(UserError, match=r"70 failed"):
                checkpoints.wait()
    assert_unharmed(folder, 10, 50, 60)


def test_the_disk_is_suspected_only_if_the_system_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(folder, keep=2) as checkpoints:
        with full_disk():
            checkpoints.save(40, BIG, {}, best=10)
            with pytest.raises(UserError, match=r"File too large.*; is the disk full\? The last good"):
                checkpoints.wait()
        checkpoints.save(50, {"a": {}}, {"not": object}, best=10)  # a mistake of the program
        with pytest.raises(UserError, match=r"50 failed \(.*\)\. The last good"):
            checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", move_to_another_disk)
            checkpoints.save(60, tree(60), {}, best=10)
            with pytest.raises(UserError, match=r"60 failed \(Invalid cross-device link\)\. The last good"):
                checkpoints.wait()


def test_a_failed_save_does_not_keep_the_program_from_ending(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def fail(path: str | Path, *args: Any, **options: Any) -> None:
        if "run.orbax" in Path(path).name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        make(path, *args, **options)

    before = set(threading.enumerate())
    with Checkpoints(folder, keep=2) as checkpoints:
        monkeypatch.setattr(os, "mkdir", fail)
        checkpoints.save(40, tree(40), {}, best=10)
        with pytest.raises(UserError, match=r"40 failed .*Too many open files"):
            checkpoints.wait()
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def move_to_another_disk(path: Path, target: Path) -> Path:
    """Fails as the system does, with long names."""
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), f"{path}{'x' * 200}", None, str(target))


@pytest.mark.parametrize("name", ["²", "٣", "007", "-1", "1_0"])
def test_what_is_no_number_as_it_is_written_is_no_checkpoint(name: str, folder: Path) -> None:
    (folder / name).mkdir()
    assert checkpoint_names(folder) == [10, 20, 30]
    restored, warnings = restore_latest(folder)
    assert restored is not None and restored.examples_seen == 30 and not warnings


def test_a_link_or_a_file_in_place_of_an_unfinished_save_is_removed_itself(folder: Path, tmp_path: Path) -> None:
    (kept := tmp_path / "kept").mkdir()
    (kept / "file").write_text("")
    for make in ((folder / "tmp").symlink_to, lambda _: (folder / "tmp").write_text("")):
        make(kept)
        with Checkpoints(folder, keep=2) as checkpoints:
            checkpoints.save(30, tree(3), {}, best=None)
    assert (kept / "file").exists() and not (folder / "tmp").exists()


def test_saves_leave_nothing_in_memory(folder: Path) -> None:
    """Of Python's objects; TensorStore 0.1.86 leaks those of each JSON that it is asked for."""
    many = {f"layer{number}": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)} for number in range(8)}
    counts = []
    with Checkpoints(folder, keep=1) as checkpoints:
        for number in range(100, 108):
            checkpoints.save(number, many, {}, best=None)
            checkpoints.wait()
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[-1] - counts[3] < 4 * 50


def test_a_replacement_that_was_killed_between_its_two_renames_is_completed(folder: Path) -> None:
    (folder / "30").rename(folder / "30.new")
    restored, warnings = restore_latest(folder)
    assert restored is not None and restored.examples_seen == 30 and not warnings


def test_one_process_of_a_distributed_run_saves_and_restores_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = (
        "import sys, jax, numpy as np; from pathlib import Path; from alexnet_jax.checkpoint import *\n"
        "jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2])); assert jax.process_count() == 2\n"
        "if jax.process_index() == 0:\n"
        "    with Checkpoints(Path(sys.argv[3]), 2) as c: c.save(1, {'x': np.arange(3)}, {}, None)\n"
        "    assert restore(Path(sys.argv[3]), 1).tree['x'].tolist() == [0, 1, 2]\n"
    )
    command = [sys.executable, "-c", program, address]
    processes = [subprocess.Popen([*command, str(i), str(tmp_path / "c")], cwd=REPOSITORY) for i in range(2)]
    try:
        assert [process.wait(100) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()


def largest_file(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(checkpoint: Path) -> None:
    data = largest_file(checkpoint)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def truncate(checkpoint: Path) -> None:
    data = largest_file(checkpoint)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def lose_metadata(checkpoint: Path) -> None:
    (checkpoint / "_CHECKPOINT_METADATA").unlink()


def garble_metadata(checkpoint: Path) -> None:
    (checkpoint / "_CHECKPOINT_METADATA").write_text("{")


DAMAGES = [flip_a_bit, truncate, empty, lose_metadata, garble_metadata]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage: Callable[[Path], None], folder: Path) -> None:
    damage(folder / "30")
    restored, warnings = restore_latest(folder)
    assert restored is not None and restored.examples_seen == 20
    assert len(warnings) == 1 and str(folder / "30") in warnings[0] and "damaged" in warnings[0]
    with Checkpoints(folder, keep=2) as checkpoints:  # and training can go on
        checkpoints.set_aside_after(20)
        checkpoints.save(30, tree(33), {}, best=None)
    assert restore(folder, 30).tree["params"]["kernel"][0, 0] == 33
    assert (folder.parent / "damaged" / "30").is_dir()


def test_if_none_can_be_read_the_run_does_not_begin_anew(folder: Path) -> None:
    for name in (10, 20, 30):
        flip_a_bit(folder / str(name))
    with pytest.raises(UserError, match=r"/30 .*/20 .*/10 "):
        restore_latest(folder)
