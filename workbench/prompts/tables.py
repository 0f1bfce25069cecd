"""Rows of CSV and JSON Lines files as they occur in the wild, with errors that name the row.

Read `read_rows`. A table need not be UTF-8 with commas: UTF-16 and cp1252, tabs and semicolons (as
spreadsheets write them) are recognised, and a warning says what was. What columns mean is not known here.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from workbench.documents import parse_json
from workbench.errors import WorkbenchError, warn
from workbench.files import check_ordinary
from workbench.text import with_article

# Bytes at the beginning of a corpus that decide about its encoding.
_SAMPLE = 2**20
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
# Marks at the beginning of a file. UTF-32's begins with that of UTF-16, so it comes first.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF8: "utf-8-sig",
}  # fmt: skip


@dataclass(frozen=True)
class _Text:
    """The text of a file, and the name of its encoding."""

    text: str
    encoding: str


def read_rows(path: str | Path, kind: str, refused: type[WorkbenchError]) -> list[Any]:
    """The objects of a "jsonl" file, or the rows of cells of a "csv" file, its header first.

    Blank lines are left out. A warning names the encoding and the separator that were recognised, where they
    are not UTF-8 and a comma. Raises `refused` for a file that cannot be read so.
    """
    content = _decoded(Path(path), refused)
    separator, text = None, content.text
    if kind == "csv":
        separator, text = _separator(text)
    try:
        rows = _objects(text) if separator is None else _cells(text, separator)
    except (ValueError, csv.Error) as error:
        raise refused(f"{str(path)!r} cannot be read as {kind}: {error}") from error
    _warn_of_format(path, content.encoding, separator)
    return rows


def _cells(text: str, separator: str) -> list[list[str]]:
    """The rows of a table, without those of blank lines."""
    # newline="": line ends within quotes belong to the cell.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    return [row for row in rows if not _is_blank(row)]


def text_lines(path: Path, refused: type[WorkbenchError]) -> Iterator[str]:
    """The lines of a text file, one by one, without their line ends.

    A warning names the encoding that was recognised, where it is not UTF-8. Raises `refused` for a file that
    cannot be read.
    """
    with _opened(path, refused) as file:
        try:
            sample = file.read(_SAMPLE)
            encoding = _encoding(sample, refused, path, is_whole=len(sample) < _SAMPLE)
            _warn_of_format(path, encoding, None)
            file.seek(0)
            with io.TextIOWrapper(file, encoding) as lines:
                for line in lines:
                    yield line.rstrip("\n")
        except (UnicodeDecodeError, OSError) as error:
            raise refused(f"{str(path)!r} cannot be read: {error}") from error


def _objects(text: str) -> list[dict[str, Any]]:
    """One JSON object a line. Raises `ValueError` for anything else."""
    rows: list[dict[str, Any]] = []
    # Not `splitlines`: it also splits at U+2028 and others, which may stand within a string.
    for line in filter(str.strip, text.split("\n")):
        name = f"row {len(rows) + 1}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{name} is {with_article(type(row).__name__)}, not an object")
        rows.append(row)
    return rows


@contextmanager
def _opened(path: Path, refused: type[WorkbenchError]) -> Iterator[BinaryIO]:
    """An ordinary file, open for its bytes."""
    try:
        check_ordinary(path)
        file = path.open("rb")
    except FileNotFoundError as error:
        raise refused(f"There is no file {str(path)!r}.") from error
    except (OSError, ValueError) as error:
        raise refused(f"{str(path)!r} cannot be read: {error}") from error
    with file:
        yield file


def _decoded(path: Path, refused: type[WorkbenchError]) -> _Text:
    """The whole text of a file."""
    with _opened(path, refused) as file:
        try:
            content = file.read()
        except OSError as error:
            raise refused(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    encoding = _encoding(content, refused, path, is_whole=True)
    return _Text(content.decode(encoding), encoding)


def _encoding(content: bytes, refused: type[WorkbenchError], path: Path, *, is_whole: bool) -> str:
    """The encoding of a file, or of its beginning: UTF-8, UTF-16, UTF-32 or, if it is none of them, cp1252.

    Raises `refused` for what is no text in any of them.
    """
    marked = [encoding for mark, encoding in _MARKS.items() if content.startswith(mark)]
    candidates = marked[:1] or _unmarked(content)
    for encoding in candidates:
        try:
            # A beginning may end within a character, and a whole file may not.
            codecs.getincrementaldecoder(encoding)().decode(content, final=is_whole)
            return encoding
        except UnicodeDecodeError:
            continue
    raise refused(f"{str(path)!r} is not text in {' or '.join(candidates)}. Save it as UTF-8.")


def _unmarked(content: bytes) -> list[str]:
    """The encodings that a file without a mark may have, the likeliest first."""
    # Text in Latin letters has every other byte 0 in UTF-16, and none in the others.
    beginning = content[:1000]
    if beginning[1::2].count(0) > len(beginning) // 4:
        return ["utf-16-le"]
    if beginning[::2].count(0) > len(beginning) // 4:
        return ["utf-16-be"]
    return ["utf-8", "cp1252"]


def _separator(text: str) -> tuple[str, str]:
    """What stands between the cells of a table, and the table."""
    first, _, rest = text.partition("\n")
    # A line that spreadsheets write, and no row.
    if first.startswith("sep=") and first.rstrip("\r")[4:] in SEPARATORS:
        return first.rstrip("\r")[4:], rest
    header = next((line for line in re.split("[\r\n]", text) if line.strip()), "")
    # A header with a comma is one of commas: a semicolon may then be part of a name.
    for separator in SEPARATORS:
        if len(next(csv.reader([header], delimiter=separator), [])) > 1:
            return separator, text
    return ",", text


def _is_blank(row: Sequence[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _warn_of_format(path: str | Path, encoding: str, separator: str | None) -> None:
    """Warn that a file was not read as UTF-8 with commas."""
    facts = []
    if encoding not in ("utf-8", "utf-8-sig"):
        facts.append(encoding.upper() if encoding != "cp1252" else "cp1252 (Windows)")
    if separator not in (",", None):
        facts.append(f"a table with {SEPARATORS[separator]} between its cells")
    if facts:
        warn(f"{Path(path).name} was read as {', '.join(facts)}.")
