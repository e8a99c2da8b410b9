"""The digests in metrics.jsonl, by which a record that was edited, cut or lost is noticed.

A line ends with the field "digest": the first 16 hexadecimal digits of the SHA-256 of two texts, the digest of the line
before ("" for the first) and this line without the field. Earlier versions wrote lines without it.
"""

import hashlib
import re
from collections.abc import Sequence

_FIELD = re.compile(r', "digest": "([0-9a-f]{16})"\}$')


def link(text: str, before: str) -> tuple[str, str]:
    """The line of a record with its digest, and that digest.

    Args:
      text: the record as a JSON object.
      before: the digest of the line before.
    """
    digest = _digest(text, before)
    return f'{text[:-1]}, "digest": "{digest}"}}', digest


def last_digest(lines: Sequence[str]) -> str:
    """The digest of the last of these lines, which are those of a file from its beginning; "" if there is none."""
    before = ""
    for line in lines:
        text, stored = _split(line)
        before = stored or _digest(text, before)
    return before


def find_fault(lines: Sequence[str], expected: str = "") -> str:
    """Names the first line that is not as it was written; "" if all are.

    Args:
      lines: all complete lines of the file.
      expected: the digest of a record that must be among them; "" if none is known.
    """
    before, is_linked, is_missing = "", False, bool(expected)
    for number, line in enumerate(lines, start=1):
        text, stored = _split(line)
        digest = _digest(text, before)
        if stored != digest and (stored or is_linked):
            return f"line {number} was edited, or a record before it was lost"
        before, is_linked, is_missing = digest, bool(stored), is_missing and digest != expected
    return f"the records after line {len(lines)} were lost, or are of another run" if is_missing else ""


def _split(line: str) -> tuple[str, str]:
    """The text of a line without its digest, and the digest; "" if it has none."""
    found = _FIELD.search(line)
    return (f"{line[: found.start()]}}}", found[1]) if found else (line, "")


def _digest(text: str, before: str) -> str:
    return hashlib.sha256((before + text).encode()).hexdigest()[:16]
