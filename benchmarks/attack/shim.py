"""A library loaded before libc, which makes file operations of a process fail, or sends it a signal; see shim.c."""

import ctypes
import dataclasses
import enum
import errno
import shutil
import signal
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")


class Operation(enum.IntFlag):
    """File operations, as in shim.c."""

    OPEN = 1
    CREATE = 2
    READ = 4
    WRITE = 8
    RENAME = 16
    SYNC = 32
    REMOVE = 64
    MOVE = 128  # a rename between folders, or of a folder


CHANGES = ~(Operation.OPEN | Operation.READ)
"""What a kill comes before: between two changes, the disk looks the same at any moment."""

FAULTS = {
    errno.ENOSPC: Operation.CREATE | Operation.WRITE | Operation.SYNC,
    errno.EIO: Operation.READ | Operation.WRITE | Operation.SYNC | Operation.OPEN,
    errno.EXDEV: Operation.MOVE,
    errno.EMFILE: Operation.OPEN | Operation.CREATE,
}
"""The operations that fail with each error."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """What happens to the file operations of a process.

    Attributes:
      operations: those that count.
      number: the one that is hit, from 1; 0: none, they are only counted.
      error: an errno with which it fails; 0: none.
      signal: a signal that the process sends itself before it.
      all_later: whether all later ones fail, too.
    """

    operations: Operation
    number: int = 0
    error: int = 0
    signal: int = 0
    all_later: bool = False

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else signal.Signals(self.signal).name
        return f"{what} at {self.operations.name} {self.number}{' and all later' * self.all_later}"


COUNT = Hit(Operation(0))
"""Nothing happens; operations are counted."""


def build(folder: Path) -> Path | None:
    """Compiles the library into a folder and returns its path; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "shim.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def arm(folder: Path, hit: Hit) -> None:
    """Makes it happen to the operations of this process below a folder, from now on."""
    code = hit.error or -hit.signal
    ctypes.CDLL(None).attack_arm(
        str(folder.resolve()).encode(), int(hit.operations), ctypes.c_long(hit.number), code, hit.all_later
    )


def seen() -> dict[str, int]:
    """The number of operations of each kind since `arm`, by the kind's name."""
    function = ctypes.CDLL(None).attack_seen
    function.restype = ctypes.c_long
    return {str(kind.name): int(function(int(kind))) for kind in Operation}
