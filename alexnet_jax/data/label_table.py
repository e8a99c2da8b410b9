"""Tables of labels: CSV, TSV or JSON lines that give the class of each image, and perhaps its split."""

import csv
import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.data.layouts import SUFFIXES, split_name
from alexnet_jax.errors import UserError, reason

_FILE = (
    *("file", "filename", "image", "imageid", "imagename", "imagefile", "img", "imgname", "path", "filepath"),
    *("imagepath", "imgpath", "id", "name"),
)
_LABEL = (
    *("label", "labels", "labelname", "class", "classname", "classlabel", "classid", "category", "target", "species"),
    *("breed", "y"),
)
_COLUMNS = (_FILE, _LABEL, ("split", "set", "subset", "partition", "dataset"))
"""Names of the columns of file, label and split, in lower case, letters alone; the first that is there counts."""


class Row(NamedTuple):
    """A row: the line of the table, the file as it is written there, its class, its split and the column of the class.

    The split is "" if none is given.
    """

    line: int
    file: str
    label: str
    split: str
    column: str


def read_labels(table: Path, images: Iterable[str]) -> dict[str, Row]:
    """The rows of a table of labels, by the path of their image.

    The columns are known by their names, or are file, label and perhaps split. A file may be written with its path
    below the folder, or as a name that one image alone has, with or without suffix. A path may begin above or below the
    folder, but has to agree with the image's as far as both go: photos/a/1.jpg is a/1.jpg, and b/1.jpg is not.

    Args:
      table: the file; .tsv is separated by tabs, .json and .jsonl hold an object a line, or an array of them.
      images: paths of all images below their folder.

    Raises UserError that names the line if a row has no label, an unknown split, no image or one that is not clear, or
    contradicts another row.
    """
    known, rows, missing = _by_name(images), dict[str, Row](), list[Row]()
    for row in _rows(table):
        found = known.get(row.file) or known.get(Path(row.file).name, [])
        found = [image for image in found if _agree(row.file, image)]
        if not found:
            missing.append(row)
            continue
        if len(found) > 1:
            raise UserError(f"{table}, line {row.line}: {len(found)} images are called {row.file!r}; give its path")
        if not row.label:
            raise UserError(f"{table}, line {row.line}: {row.file!r} has no label; add it or remove the row")
        before = rows.setdefault(found[0], row)
        if (before.label, before.split) != (row.label, row.split):
            raise UserError(
                f"{table}: lines {before.line} and {row.line} contradict each other about {row.file!r} "
                f"({before.label!r}, {row.label!r}); remove one"
            )
    if missing:
        more = f" (nor one of {len(missing) - 1:,} other rows)" if len(missing) > 1 else ""
        raise UserError(
            f"{table}, line {missing[0].line}: there is no image {missing[0].file!r}{more}; correct the row or "
            "remove it"
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
        is_json = table.suffix.lower() in (".json", ".jsonl", ".ndjson")
        for line, cells in (_objects if is_json else _cells)(table, _text(table)):
            columns = _columns(tuple(cells))
            file, label, split = (cells.get(column, "") for column in columns)
            name = split_name(split)
            if split and not name:
                raise UserError(f"{table}, line {line}: {split!r} is no split; there are: train, validation, test")
            yield Row(line, file.replace("\\", "/").removeprefix("./"), label, name.split if name else "", columns[1])
    except (OSError, ValueError, RecursionError, csv.Error, AttributeError) as error:
        raise UserError(f"{table} is no table of labels (CSV, TSV or JSON lines): {reason(error)}") from error


def _text(table: Path) -> str:
    """The text of a table, in UTF-8 or, as Excel's "Unicode text", in UTF-16."""
    content = table.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeError:
        raise ValueError("it is no text in UTF-8; save it as CSV in UTF-8") from None


def _objects(_table: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of JSON lines, or of one array of objects, whose number then stands for the line."""
    is_array = text.lstrip().startswith("[")
    for line, written in enumerate(json.loads(text) if is_array else text.splitlines(), start=1):
        fields = written if is_array else json.loads(written.strip() or "null")
        if fields is None:
            continue
        if not isinstance(fields, dict):
            raise ValueError(f"line {line} holds no object")
        used = [key for key in _columns(tuple(fields)) if isinstance(fields.get(key), list | dict)]
        if used:
            raise ValueError(f"line {line} has a list or an object for {used[0]!r}, not text")
        yield line, {key: "" if value is None else str(value).strip() for key, value in fields.items()}


def _cells(table: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV or TSV, or of a list with spaces, as Caffe has it; the first line may be a header."""
    first = text.partition("\n")[0]
    separator = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    if separator not in first and first.partition(" ")[0].lower().endswith(SUFFIXES):
        separator = " "
    reader = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    header = None
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if header is None:
            header = cells
            if len(cells) not in (2, 3) or not cells[0].lower().endswith(SUFFIXES):
                _columns(tuple(header))
                continue
            header = ["file", "label", "split"][: len(cells)]  # there is none
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise ValueError(f"line {reader.line_num} has {len(cells)} cells, not {len(header)}")
        yield reader.line_num, dict(zip(header, cells, strict=False))


@functools.lru_cache
def _columns(header: tuple[str, ...]) -> tuple[str, str, str]:
    """The columns of file, label and split, by their names. Raises ValueError if there is none of files or labels."""
    plain = {re.sub(r"[\W_]+", "", name.lower()): name for name in reversed(header)}
    file, label, split = (next((plain[name] for name in names if name in plain), "") for names in _COLUMNS)
    if not file or not label:
        raise ValueError(f"its columns are {', '.join(header)}; name two of them file and label")
    return file, label, split or "split"
