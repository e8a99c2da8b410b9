"""Errors that a user can correct, each one line that names the file or key and says what to do."""

from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """An error in the user's input. The program prints only its message and exits with `exit_code`."""

    exit_code = 2


def reason(error: BaseException) -> str:
    """The message of any exception, in one line of at most 200 characters."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    first = next(filter(None, (" ".join(line.split()) for line in text.splitlines())), type(error).__name__)
    return first if len(first) <= 200 else f"{first[:196]} ..."


def check_choice(key: str, value: Any, known: Collection[Any]) -> Any:
    """Returns `value` if it is one of `known`; else raises a UserError that names the key and lists the choices."""
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown; there are: {', '.join(map(str, known))}")
    return value


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
    """The images that a run was trained on are not those that its seed determines."""

    exit_code = 1


class UnreadableImagesError(UserError):
    """Some of many images could not be read; the others were processed."""

    exit_code = 1
