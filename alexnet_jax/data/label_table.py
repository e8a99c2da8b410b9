"""Tables of labels: CSV, TSV or JSON lines that give the class of each image, and perhaps its split."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data.layouts import SUFFIXES, split_name
from alexnet_jax.errors import UserError, reason

FILE_COLUMNS = (
    *("file", "filename", "file_name", "image", "image_id", "imageid", "image_name", "img", "path", "filepath"),
    *("file_path", "image_path", "id", "name"),
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target", "species", "breed", "y")
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "data set", "dataset")


class Row(NamedTuple):
    """A row: the line of the table, the file as it is written there, its class, and its split; "" for none given."""

    line: int
    file: str
    label: str
    split: str


def read_labels(table: Path, images: Iterable[str]) -> dict[str, Row]:
    """The rows of a table of labels, by the path of their image.

    The columns are known by their names, or are file, label and perhaps split. A file may be written with its path
    below the folder, or as a name that one image alone has, with or without suffix. A path may begin above or below the
    folder, but has to agree with the image's as far as both go: photos/a/1.jpg is a/1.jpg, and b/1.jpg is not.

    Args:
      table: the file; .tsv is separated by tabs, .json and .jsonl hold an object a line.
      images: paths of all images below their folder.

    Raises UserError that names the line if a row has no label, an unknown split, no image or one that is not clear, or
    contradicts another row.
    """
    known, rows = _by_name(images), dict[str, Row]()
    for row in _rows(table):
        found = known.get(row.file) or known.get(Path(row.file).name, [])
        found = [image for image in found if _agree(row.file, image)] if len(found) == 1 else found
        if len(found) != 1:
            many = f"{len(found)} images are called" if found else "there is no image"
            raise UserError(f"{table}, line {row.line}: {many} {row.file!r}; correct the row or remove it")
        if not row.label:
            raise UserError(f"{table}, line {row.line}: {row.file!r} has no label; add it or remove the row")
        before = rows.setdefault(found[0], row)
        if (before.label, before.split) != (row.label, row.split):
            raise UserError(
                f"{table}: lines {before.line} and {row.line} contradict each other about {row.file!r} "
                f"({before.label!r} {before.split}, {row.label!r} {row.split}); remove one"
            )
    if not rows:
        raise UserError(f"{table} has no rows of file and label")
    return rows


def _agree(file: str, image: str) -> bool:
    """Whether two paths lie in folders of the same names, as far up as both have folders."""
    pairs = zip(reversed(Path(file).parts[:-1]), reversed(Path(image).parts[:-1]), strict=False)
    return all(one == other for one, other in pairs)


def _by_name(images: Iterable[str]) -> Mapping[str, list[str]]:
    """The images that may be meant by each name: their path, their file's name, and both without suffix."""
    known: dict[str, list[str]] = defaultdict(list)
    for path in images:
        name = Path(path)
        for spelling in {path, name.name, str(name.with_suffix("")), name.stem}:
            known[spelling].append(path)
    return {**known, **{path: [path] for paths in list(known.values()) for path in paths}}


def _rows(table: Path) -> Iterator[Row]:
    """Yields the rows of a table, with splits by their names here."""
    try:
        text = table.read_text(encoding="utf-8-sig")
        cells = _objects(text) if table.suffix.lower() in (".json", ".jsonl", ".ndjson") else _cells(table, text)
        for line, file, label, split in cells:
            name = split_name(split)
            if split and not name:
                raise UserError(f"{table}, line {line}: {split!r} is no split; there are: train, validation, test")
            yield Row(line, file.replace("\\", "/").removeprefix("./"), label, name.split if name else "")
    except (OSError, ValueError, RecursionError, csv.Error, AttributeError) as error:
        raise UserError(f"{table} is no table of labels (CSV, TSV or JSON lines): {reason(error)}") from error


def _objects(text: str) -> Iterator[tuple[int, str, str, str]]:
    """The rows of JSON lines."""
    for line, words in enumerate(text.splitlines(), start=1):
        if words.strip():
            fields = {str(key).strip().lower(): str(value).strip() for key, value in json.loads(words).items()}
            file, label, split = (_column(list(fields), names) for names in _COLUMNS)
            if file is None or label is None:
                raise ValueError(f"line {line} has {', '.join(fields)}, not file and label")
            values = list(fields.values())
            yield line, values[file], values[label], "" if split is None else values[split]


def _cells(table: Path, text: str) -> Iterator[tuple[int, str, str, str]]:
    """The rows of a CSV or TSV, whose first line may be a header."""
    first = text.partition("\n")[0]
    separator = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator)
    header = [cell.strip().lower() for cell in next(reader, [])]
    file, label, split = (_column(header, names) for names in _COLUMNS)
    if file is None or label is None:
        if len(header) not in (2, 3) or not header[0].endswith(SUFFIXES):
            raise ValueError(f"its columns are {', '.join(header)}; name two of them file and label")
        reader = csv.reader(text.splitlines(), delimiter=separator)
        file, label, split = 0, 1, 2 if len(header) == 3 else None
    for row in reader:
        cells = [cell.strip() for cell in row]
        if any(cells):
            if len(cells) < len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} cells, not {len(header)}")
            yield reader.line_num, cells[file], cells[label], "" if split is None else cells[split]


_COLUMNS = (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)


def _column(header: list[str], names: tuple[str, ...]) -> int | None:
    """The number of the column that has one of the names; the first of the names that is there."""
    return next((header.index(name) for name in names if name in header), None)
