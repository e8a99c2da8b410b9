"""Errors that a user can correct, each one line that names the file or key and says what to do."""

import errno
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any


class UserError(Exception):
    """An error in the user's input. The program prints only its message and exits with `exit_code`."""

    exit_code = 2


class Terminated(KeyboardInterrupt):
    """SIGTERM, where it is raised as KeyboardInterrupt is by SIGINT."""


def reason(error: BaseException) -> str:
    """One line on any exception, of at most 200 characters: the first line of its message, or else its class.

    Of an OSError it is the reason alone, such as "No such file or directory", without the file.
    """
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    first = next(filter(None, (" ".join(line.split()) for line in text.splitlines())), type(error).__name__)
    return first if len(first) <= 200 else f"{first[:196]} ..."


_NO_MEMORY = ("RESOURCE_EXHAUSTED", "annot allocate memory", "failed to map segment", "start new thread")
"""What is in the messages of XLA, of the system, of its loader of libraries and of Python when memory runs out."""


def disk_hint(error: BaseException) -> str:
    """The question whether the disk is full, to follow the reason of an error if it, or one that caused it, says so."""
    full = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    return "; is the disk full?" if any(text in str(one) for one in causes(error) for text in full) else ""


OF_THE_MACHINE = ("EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENOMEM", "ENOSPC", "EXDEV")
"""Errors whose cause is neither the content of a file nor a config: the same may work the next time."""


def failure_of_the_machine(error: BaseException) -> str:
    """The reason of an error, or of one that caused it, such as "No space left on device"; "" if it is another."""
    reasons = [os.strerror(getattr(errno, name)) for name in OF_THE_MACHINE]
    return next((text for one in causes(error) for text in reasons if text in str(one)), "")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is that the memory or the limit of a process is exhausted."""
    found = (isinstance(one, MemoryError) or any(text in str(one) for text in _NO_MEMORY) for one in causes(error))
    return any(found) and not disk_hint(error)  # which TensorStore calls RESOURCE_EXHAUSTED, too


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that caused it or during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_choice(key: str, value: Any, known: Collection[Any]) -> Any:
    """Returns `value` if it is one of `known`; else raises a UserError that names the key and lists the choices."""
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown; there are: {', '.join(map(str, known))}")
    return value


def check_keys(where: str, found: Any, kinds: Mapping[str, Any]) -> None:
    """Raises UserError unless `found`, which was read from `where`, is a dict with values of these types by key."""
    if not isinstance(found, dict):
        raise UserError(f"{where} is damaged: it holds {found!r:.40}, not names and values")
    for key, kind in kinds.items():
        if key not in found:
            raise UserError(f"{where} is damaged: {key} is missing")
        value = found[key]
        if not isinstance(value, kind) or (isinstance(value, int) and value < 0):
            raise UserError(f"{where} is damaged: {key} is {value!r:.40}")


class MissingSourceError(UserError):
    """The original images are missing; a prepared copy of them may still exist."""


class RunInUseError(UserError):
    """Another process is training in the folder of a run."""


class TrainingDivergedError(UserError):
    """The loss or a parameter became NaN or infinite during training."""

    exit_code = 1


class TrainingStuckError(UserError):
    """The loss has stayed at chance level: nothing is learned."""

    exit_code = 1


class LostProcessError(UserError):
    """Another process of the run has failed, has ended or does not respond."""

    exit_code = 1


class AuditFailedError(UserError):
    """The images that a run was trained on are not those that its seed determines, or its records were changed."""

    exit_code = 1


class UnreadableImagesError(UserError):
    """Some of many images could not be read; the others were processed."""

    exit_code = 1
