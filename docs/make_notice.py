"""Writes NOTICE: the licences of the packages that the project needs, as their installed metadata state them.

python -m docs.make_notice
"""

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parent.parent
NOTICE = PROJECT / "NOTICE"
REQUIREMENTS = ("requirements.txt", "requirements-export.txt", "requirements-database.txt")

HEAD = """\
AlexNet in JAX and Flax. Licensed under the Apache License, Version 2.0; see LICENSE.

The packages below are not part of it. They are installed beside it, under licences of their own, which are named here
as the packages state them (python -m docs.make_notice).
"""


def main() -> None:
    """Writes the file; needs the packages installed."""
    NOTICE.write_text(notice())


def notice() -> str:
    """The text of the file."""
    sections = [HEAD]
    for file in REQUIREMENTS:
        lines = (line.partition("#")[0].strip() for line in (PROJECT / file).read_text().splitlines())
        pins = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
        names = sorted({pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()}, key=str.lower)
        sections.append(f"{file}\n\n" + "".join(f"  {name:<26}  {licence(name)}\n" for name in names))
    return "\n".join(sections)


def licence(name: str) -> str:
    """The licence of an installed package: its SPDX expression, a short text, or its classifiers."""
    about = metadata.metadata(name)
    stated = about["License-Expression"] or about["License"] or ""
    classified = [text for text in about.get_all("Classifier", ()) if text.startswith("License :: ")]
    if not stated or "\n" in stated or len(stated) > 60:
        stated = ", ".join(text.rpartition(" :: ")[2] for text in classified) or stated.partition("\n")[0]
    return re.sub(r"\s+", " ", stated).strip() or "see its metadata"


if __name__ == "__main__":
    main()
