"""What Python lacks on Windows is needed nowhere: a stand-in, on a system that has it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest

from alexnet_jax.cli import exits
from alexnet_jax.data.arrays import ArraySource
from alexnet_jax.data.preparation import prepare
from alexnet_jax.data.storage import JpegWriter, read_info
from alexnet_jax.errors import UserError
from alexnet_jax.system import files, machine, signals
from tests.conftest import REPOSITORY
from tests.helpers.pictures import storing

MODULES = ("array_record", "fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "uvloop")
OF_OS = ("fork", "geteuid", "getpgid", "getuid", "killpg", "mkfifo", "nice", "posix_fallocate", "sched_getaffinity")
OF_OS = (*OF_OS, "sched_setaffinity", "set_blocking", "setsid", "sysconf", "uname")
OF_SIGNAL = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "alarm", "pthread_kill", "pthread_sigmask", "setitimer")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without them; only our own modules notice, as the others are imported already."""
    for name in [*MODULES, *(name for name in sys.modules if name.startswith("array_record."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            monkeypatch.delattr(module, name)
    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)  # as the lock of Windows cannot be had
    yield
    monkeypatch.undo()


IMPORTED_TWICE = f"""
import importlib, os, pkgutil, signal, sys
import alexnet_jax
names = [module.name for module in pkgutil.walk_packages(alexnet_jax.__path__, "alexnet_jax.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.split(".")[0] == "alexnet_jax"]:
    del sys.modules[name]
for name in [*{MODULES!r}, *(name for name in sys.modules if name.startswith("array_record."))]:
    sys.modules[name] = None
for module, missing in ((os, {OF_OS!r}), (signal, {OF_SIGNAL!r})):
    for name in missing:
        delattr(module, name)
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.mark.slow
def test_every_module_is_imported() -> None:
    """The second time, as other packages know by the platform what they may import."""
    command = [sys.executable, "-c", IMPORTED_TWICE]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and int(done.stdout) > 100, done.stderr


def test_files_are_locked_and_written_whole(windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = files.acquire_lock(tmp_path / "a.lock", timeout=0.0)
    assert held is not None and files.acquire_lock(tmp_path / "a.lock", timeout=0.0) is None
    held.close()
    again = files.acquire_lock(tmp_path / "a.lock", timeout=0.0)
    assert again is not None
    again.close()
    files.write_text(tmp_path / "a.txt", "one\n")
    files.write_text(tmp_path / "a.txt", "two\n")
    assert (tmp_path / "a.txt").read_bytes() == b"two\n"
    opened = os.open

    def open_file(path: Path, flags: int) -> int:
        if path.is_dir() or flags & os.O_ACCMODE == os.O_RDONLY:  # which cannot be flushed there
            raise PermissionError(path)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(sys, "platform", "win32")
    files.flush(tmp_path)
    files.flush(tmp_path / "a.txt")


def test_images_are_prepared_as_pixels(windows: None, tmp_path: Path) -> None:
    few = np.zeros((2, 8, 8), np.uint8), [0, 1]
    prepare(ArraySource({"train": few, "validation": few}), storing(storage="auto"), tmp_path / "few")
    info = read_info(tmp_path / "few")
    assert info is not None and info.storage == "raw"
    with pytest.raises(UserError, match=r"array_record.*config\.data\.storage=raw"):
        JpegWriter(tmp_path / "a", 90)


def test_the_machine_and_signals_are_known(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.available_cores() >= 1 and machine.free_memory_bytes() > 0
    monkeypatch.setattr("alexnet_jax.system.machine.psutil.Process", lambda: Process)
    assert machine.peak_memory_bytes() == 7
    exits._check_address_space()
    with signals.StopSignals() as stop:
        exits._signal_main_thread(signal.SIGINT)
        assert stop.received == signal.SIGINT
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda _: -1)  # which here refuses a pipe that blocks
    with signals.ends_after_signal():
        pass


class Process:
    """A stand-in for psutil.Process on Windows."""

    @staticmethod
    def memory_info() -> "Process":
        return Process()

    peak_wset = 7


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before, errors = signal.getsignal(signal.SIGINT), list[BaseException]()

    def stop() -> None:
        try:
            with signals.raise_on_sigterm(), signals.ends_after_signal(), signals.StopSignals():
                assert signal.getsignal(signal.SIGINT) is before
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=stop)
    thread.start()
    thread.join()
    assert not errors and signal.getsignal(signal.SIGINT) is before
