"""Tables of pairs: which columns they have, what a row must hold, and what it says in tokens.

Read `encoded_table`, which `PromptPairs.from_dataframe` calls; `read_table` reads files. `COLUMNS` are needed;
`corrupt2`, `corrupt3`, ... are more counterfactuals, and `pos_NAME` names a place of the prompts (see
`named_positions`, which reads marks in the text as well).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from workbench.documents import read_json
from workbench.errors import PromptError
from workbench.files import check_ordinary
from workbench.models.model import Model
from workbench.prompts.answers import padded_answers
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.named_positions import check_name, index_in, marked, token_before
from workbench.prompts.prompts import Prompts
from workbench.prompts.tables import read_rows
from workbench.text import listed

COLUMNS = ("clean", "corrupt", "answer", "wrong")
# Columns of further counterfactuals, as people number them: corrupt2, corrupt_3.
FURTHER = re.compile("corrupt[_ ]?([0-9]+)")
# Columns of positions: pos_S2, and pos_S2@corrupt where it is elsewhere in the corrupt prompts.
PLACE = re.compile("pos_(?P<name>[^@]+)(?:@(?P<side>.+))?")
KINDS_OF_FILE = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}
"""Suffix of a file of pairs → how it is read."""


@dataclass(frozen=True)
class EncodedTable:
    """What a table of pairs says in tokens.

    Attributes:
        sides: "clean", "corrupt" and further counterfactuals → their prompts.
        answers, wrong: [example, alternative, token].
        provenance: of the pairs.
    """

    sides: dict[str, Prompts]
    answers: Int[Tensor, "example alternative token"]
    wrong: Int[Tensor, "example wrong_alternative wrong_token"]
    provenance: dict[str, Any]


def is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def encoded_table(
    model: Model, frame: pd.DataFrame, *, joiner: str, source: str, bos: bool | None, chat: bool
) -> EncodedTable:
    """The prompts, answers and positions of a table; arguments and errors as in `PromptPairs.from_dataframe`."""
    frame = with_plain_columns(frame, source)
    encode = TextEncoder(model, bos=bos, chat=chat)
    corrupt = ["corrupt", *filter(FURTHER.fullmatch, filter(is_text, frame.columns))]
    places = _places(frame, ("clean", *corrupt), source)
    sides: dict[str, list[list[int]]] = {name: [] for name in ("clean", *corrupt)}
    named: dict[str, list[dict[str, int]]] = {name: [] for name in sides}
    continuations: dict[str, list[list[list[int]]]] = {"answer": [], "wrong": []}
    for number, row in enumerate(frame.to_dict("records"), start=1):
        place = f"{source}, row {number}"
        check_row(row, corrupt, place)
        texts = {name: marked(row[name], f"{place}, {name}") for name in sides}
        _check_differ({name: one.text for name, one in texts.items()}, place)
        for name, one in texts.items():
            sides[name].append(encode.prompt(one.text, where=f"{place}, {name}"))
            at = {
                mark: token_before(encode, one.text, end, f"{place}, {name}")
                for mark, end in one.ends.items()
            }
            for column, (position, side) in places.items():
                if side == name and not _is_missing(row[column]):
                    if position in at:
                        raise PromptError(
                            f"{place}: the position {position} is marked in {name} and in the column {column!r}."
                        )
                    at[position] = index_in(encode, one.text, _place_cell(row[column]), f"{place}, {column}")
            named[name].append(at)
        _fill_in(named, sides, place)
        for name in continuations:
            alternatives = []
            for text in alternatives_of(row[name]):
                cell = f"{place}, {name}"
                alternatives.append(encode.continuation(texts["clean"].text, text, joiner=joiner, where=cell))
            continuations[name].append(alternatives)
    provenance = {
        "task": source, "n": len(frame), "tokenizer": encode.fingerprint, "bos": encode.bos, "chat": chat,
    }  # fmt: skip
    prompts = {name: encode.prompts(rows, positions=named[name]) for name, rows in sides.items()}
    right, wrong = padded_answers(continuations["answer"]), padded_answers(continuations["wrong"])
    provenance["answer_words"] = encode.words(right, wrong)
    return EncodedTable(prompts, right, wrong, provenance)


def with_plain_columns(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The table with the names of its columns as they are documented: without spaces around, in small letters.

    Raises `PromptError` for a table without the columns or without rows.
    """
    if frame.columns.nlevels > 1:
        raise PromptError(f"{source} has columns of {frame.columns.nlevels} levels. Give each one name.")
    frame = frame.set_axis([_plain_name(name) for name in frame.columns], axis=1)
    repeated = frame.columns[frame.columns.duplicated()].tolist()
    if repeated:
        n_times = frame.columns.tolist().count(repeated[0])
        raise PromptError(
            f"{source} has the column {repeated[0]!r} {n_times} times. Give each column its own name."
        )
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        has = ", ".join(map(str, frame.columns)) or "none"
        raise PromptError(
            f"{source} has no column {', '.join(missing)}. Needed: {', '.join(COLUMNS)}; it has: {has}."
        )
    if frame.empty:
        raise PromptError(f"{source} has no rows.")
    return frame


def _plain_name(name: Any) -> Any:
    """A column's name without spaces around; in small letters, but for the name of a position."""
    if not isinstance(name, str):
        return name
    stripped = name.strip()
    if stripped.lower().startswith("pos_"):
        position, at, side = stripped[4:].partition("@")
        return f"pos_{position.strip()}{at}{side.strip().lower()}"
    return stripped.lower()


def _places(frame: pd.DataFrame, sides: Sequence[str], source: str) -> dict[str, tuple[str, str]]:
    """Column → the position that it names, and the side that it is of."""
    places = {}
    for column in filter(is_text, frame.columns):
        match = PLACE.fullmatch(column)
        if match is None:
            continue
        check_name(match["name"], column, source)
        side = match["side"] or "clean"
        if side not in sides:
            raise PromptError(
                f"{source}: the column {column!r} is of {side!r}; this table has {listed(sides)}."
            )
        places[column] = (match["name"], side)
    return places


def _fill_in(
    named: Mapping[str, list[dict[str, int]]], sides: Mapping[str, list[list[int]]], place: str
) -> None:
    """Give the row's corrupt prompts the positions of its clean one, at the same index, where they name none.

    Raises `PromptError` where they differ in length, so that an index means something else.
    """
    clean, length = named["clean"][-1], len(sides["clean"][-1])
    for name, tokens in sides.items():
        lacking = [position for position in clean if position not in named[name][-1]]
        if lacking and len(tokens[-1]) != length:
            raise PromptError(
                f"{place}: clean has {length} tokens and {name} {len(tokens[-1])}, so that the position {lacking[0]} "
                f"is not at the same index. Say where it is in a column 'pos_{lacking[0]}@{name}', or mark it in the "
                f"text of both: [[{lacking[0]}:...]]."
            )
        named[name][-1].update({position: clean[position] for position in lacking})


def _place_cell(cell: Any) -> str | int:
    """A cell of a column of positions: an index, also where pandas made floats of a column with gaps, or text."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, Integral | float) and float(cell).is_integer():
        return int(cell)
    return str(cell)


def check_row(row: Mapping[Any, Any], corrupt: Sequence[str], name: str) -> None:
    """Raise `PromptError` for a row from which nothing could be measured.

    Args:
        corrupt: the columns of corrupt prompts.
        name: which row it is.
    """
    for column in dict.fromkeys((*COLUMNS, *corrupt)):
        text: Any = row[column]
        if column in ("answer", "wrong") and _is_list_of_texts(text):
            text = "|".join(text)
        if not isinstance(text, str) and not _is_missing(text):
            raise PromptError(
                f"{name}: the column {column!r} is {type(text).__name__}, not text. Put it in quotes, or read the table "
                "with dtype=str."
            )
        if _is_missing(text) or not text.replace("|", "").strip():
            raise PromptError(f"{name}: the column {column!r} is empty. Fill it, or leave the row out.")
    for column in ("answer", "wrong"):
        texts = [text.strip() for text in alternatives_of(row[column])]
        if len(set(texts)) < len(texts):
            raise PromptError(f"{name}: the column {column!r} has an answer twice. Give each once.")
    shared = _stripped(row["answer"]) & _stripped(row["wrong"])
    if shared:
        raise PromptError(f"{name}: {sorted(shared)[0]!r} is both an answer and wrong.")


def _check_differ(texts: Mapping[str, str], name: str) -> None:
    """Raise `PromptError` where clean and corrupt are the same, or differ by a space that nobody sees."""
    clean = texts["clean"]
    for column, text in texts.items():
        if column == "clean":
            continue
        if clean == text:
            raise PromptError(f"{name}: clean and {column} are the same, so nothing could make a difference.")
        for where, a, b in (
            ("begins", clean[:1].isspace(), text[:1].isspace()),
            ("ends", clean[-1:].isspace(), text[-1:].isspace()),
        ):
            if a != b:
                spaced, other = ("clean", column) if a else (column, "clean")
                raise PromptError(
                    f"{name}: {spaced} {where} with a space and {other} does not, which changes its tokens. Take the "
                    "space out (in a CSV file none belongs after a comma), or give both one."
                )


def alternatives_of(cell: str | Sequence[str]) -> list[str]:
    """The texts of a cell: those between bars, or those of a list; spaces at an end are never part of an answer."""
    texts = cell.split("|") if isinstance(cell, str) else map(str, cell)
    return [text.rstrip() for text in texts if text.strip()]


def _is_list_of_texts(cell: Any) -> bool:
    return isinstance(cell, list | tuple | np.ndarray) and all(map(is_text, cell))


def _stripped(cell: str | Sequence[str]) -> set[str]:
    return {text.strip() for text in alternatives_of(cell)}


def _is_missing(cell: Any) -> bool:
    """Whether nothing is in a cell: None, NaN or blanks."""
    if isinstance(cell, str):
        return not cell.strip()
    return bool(pd.api.types.is_scalar(cell) and pd.isna(cell))


def read_table(path: str | Path, kind: str | None = None) -> pd.DataFrame:
    """A file of pairs as a table of objects.

    Args:
        kind: one of `KINDS_OF_FILE`; None goes by the suffix.

    Raises:
        PromptError: a file that cannot be read, or of another kind.
    """
    suffix = Path(path).suffix.lower()
    if kind is None and suffix not in KINDS_OF_FILE:
        raise PromptError(
            f"{str(path)!r} is none of {listed(KINDS_OF_FILE)}: save the table as one of them (spreadsheets write CSV)."
        )
    kind = kind or KINDS_OF_FILE[suffix]
    if kind == "parquet":
        return _parquet(Path(path))
    if kind == "json":
        return _one_document(Path(path))
    rows = read_rows(path, kind, PromptError)
    if kind == "jsonl":
        # As objects: pandas would turn a column of texts and nothing into floats and NaN.
        return pd.DataFrame(rows, dtype=object)
    # A file without a line is a table without columns, of which `from_dataframe` says what is missing.
    header: list[str] = next(iter(rows), [])
    for number, row in enumerate(rows[1:], start=1):
        if len(row) != len(header):
            raise PromptError(
                f"{Path(path).name}, row {number}: {len(row)} fields where the header has {len(header)}. "
                "Put cells that hold commas in double quotes."
            )
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def _one_document(path: Path) -> pd.DataFrame:
    """A JSON file: a list of objects, an object of columns, or, as many are, one object a line."""
    try:
        document = read_json(path)
    except FileNotFoundError as error:
        raise PromptError(f"There is no file {str(path)!r}.") from error
    except OSError as error:
        raise PromptError(f"{str(path)!r} cannot be read: {error}") from error
    except ValueError:
        return read_table(path, "jsonl")  # says what is wrong, if it is none of that either
    if isinstance(document, list) and all(isinstance(row, dict) for row in document):
        return pd.DataFrame(document, dtype=object)
    if isinstance(document, dict) and all(isinstance(column, dict | list) for column in document.values()):
        columns = {name: list(c.values()) if isinstance(c, dict) else c for name, c in document.items()}
        if len(set(map(len, columns.values()))) == 1:
            return pd.DataFrame(columns, dtype=object)
    raise PromptError(
        f"{str(path)!r} is no table of pairs: a JSON file is a list of objects, "
        '[{"clean": ..., "corrupt": ..., "answer": ..., "wrong": ...}, ...], or one object a line.'
    )


def _parquet(path: Path) -> pd.DataFrame:
    try:
        check_ordinary(path)
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise PromptError(f"There is no file {str(path)!r}.") from error
    # pyarrow's own errors are subclasses of these.
    except (OSError, ValueError) as error:
        raise PromptError(f"{str(path)!r} cannot be read as parquet: {error}") from error
