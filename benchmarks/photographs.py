"""Photographs for the benchmarks: read from a folder or a tar of JPEGs, and resized to 256 x 256 pixels."""

import io
import tarfile
from pathlib import Path

from PIL import Image, ImageOps


def read_photographs(path: Path) -> list[bytes]:
    """The contents of the JPEGs in a tar or in a folder and its subfolders, sorted by name."""
    if path.is_dir():
        return [file.read_bytes() for file in sorted(path.rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
    with tarfile.open(path) as tar:
        members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
        return [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]


def write_resized(photographs: list[bytes], folder: Path, count: int) -> None:
    """Writes `count` different JPEGs of 256 x 256 pixels and quality 90, divided equally into two classes."""
    for number in range(count):
        round_, index = divmod(number, len(photographs))
        picture = ImageOps.fit(Image.open(io.BytesIO(photographs[index])).convert("RGB"), (256 + round_,) * 2)
        resized = picture.crop((round_ // 2, round_ // 2, round_ // 2 + 256, round_ // 2 + 256))
        path = folder / "train" / f"class{number % 2}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        resized.save(path, quality=90)
