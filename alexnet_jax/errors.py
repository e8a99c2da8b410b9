"""Errors that a user can mend: one line that names the file or key and says what to do."""

from collections.abc import Collection
from typing import Any


class UserError(Exception):
    """Bad input. The program prints the message alone and exits with `exit_code`."""

    exit_code = 2


def reason(error: BaseException) -> str:
    """Why something failed, in one line of at most 200 characters, whatever a library raised."""
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    first = next(filter(None, (" ".join(line.split()) for line in text.splitlines())), type(error).__name__)
    return first if len(first) <= 200 else f"{first[:196]} ..."


def check_choice(key: str, value: Any, known: Collection[Any]) -> Any:
    """Returns `value` if it is among `known`; raises UserError that names the key and lists what there is."""
    if value not in known:
        raise UserError(f"{key}={value!r} is unknown; there are: {', '.join(map(str, known))}")
    return value


class MissingSourceError(UserError):
    """The original images are not where they are said to be; a prepared copy may be all that is left."""


class TrainingDivergedError(UserError):
    """The loss became NaN or infinite: the input was valid, the run was not."""

    exit_code = 1


class TrainingStuckError(UserError):
    """The loss has stayed at that of guessing: the input was valid, nothing is learned from it."""

    exit_code = 1


class LostProcessError(UserError):
    """Another process of the run has failed, ended or hangs."""

    exit_code = 1


class AuditFailedError(UserError):
    """A run did not use the images that it should have used."""

    exit_code = 1


class UnreadableImagesError(UserError):
    """Some of many images could not be read; the others were dealt with."""

    exit_code = 1
