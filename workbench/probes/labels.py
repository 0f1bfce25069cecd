"""Labels of the tokens of a store's prompts: rows of (prompt, position), each with a value of every concept.

Values are binary (bool, 0 and 1, or two strings), one of several classes (strings) or numbers. Probes are
fitted on these rows. Read `Labels.of` and `Labels.per_prompt`; reading files of labels ends in
`Labels.from_dataframe`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ProbeError, UnknownName
from workbench.prompts.prompts import Prompts
from workbench.prompts.tables import read_rows
from workbench.sites import Position
from workbench.tasks.concepts import values_of

# Columns that say which token; all others are concepts. `pos`, or a span from `start` up to, without, `end`.
PLACES = ("prompt", "pos", "start", "end")


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept's values on every row.

    Attributes:
        classes: their names, sorted; the last of two is the positive one. Empty for a number.
        codes: [row]: index of the class, or the number.
    """

    name: str
    classes: tuple[str, ...]
    codes: np.ndarray

    @property
    def loss(self) -> str:
        """Which regression fits it: logistic, softmax or squares."""
        if not self.classes:
            return "squares"
        return "logistic" if len(self.classes) == 2 else "softmax"

    @property
    def n_outputs(self) -> int:
        """Logits that a probe of it has: one for each of several classes."""
        return len(self.classes) if len(self.classes) > 2 else 1

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Concept":
        """A concept of bools, strings or numbers.

        Raises:
            ProbeError: a value is missing, infinite or of another kind than the others, or all are the same.
        """
        column = pd.Series([_plain(value) for value in values], dtype=object)
        unusable = [v for v in column if not isinstance(v, bool | int | float | str) and v is not None]
        if unusable:
            raise ProbeError(
                f"Concept {name!r} has a {type(unusable[0]).__name__} among its labels: bools, texts or "
                "numbers are needed."
            )
        missing = column.isna() | (column == "")
        if missing.any():
            raise ProbeError(
                f"Concept {name!r} has no label in row {int(np.flatnonzero(missing)[0])} "
                f"({int(missing.sum())} of {len(column)} are missing). Leave these rows out, or label them."
            )
        kinds = {_kind(value) for value in column}
        if len(kinds) > 1:
            raise ProbeError(
                f"Concept {name!r} mixes {' and '.join(sorted(kinds))}: give labels of one kind."
            )
        if column.nunique() < 2:
            raise ProbeError(
                f"Concept {name!r} is {column.iloc[0]!r} in every row: a probe needs at least two values."
            )
        # 0 and 1 alone are two classes.
        if kinds == {"number"} and set(column) != {0, 1}:
            return cls(name, (), _finite_numbers(name, column))
        names = column.astype(int if kinds == {"number"} else str).astype(str)
        classes, codes = np.unique(names.to_numpy(dtype=str), return_inverse=True)
        return cls(name, tuple(map(str, classes)), codes)


@dataclass(frozen=True, eq=False)
class Labels:
    """Labelled rows of a store's prompts.

    Attributes:
        prompts: those of the store.
        prompt, pos: [row] integers.
        concepts: what is known of the rows.
    """

    prompts: Prompts
    prompt: np.ndarray
    pos: np.ndarray
    concepts: tuple[Concept, ...]

    @classmethod
    def of(
        cls,
        store: Any,
        concepts: Mapping[str, Sequence[Any]],
        *,
        prompt: Sequence[int],
        pos: Sequence[Position],
    ) -> "Labels":
        """Labels of (prompt, position) rows.

        Args:
            store: whose prompts they are (anything with `.prompts`).
            concepts: name → a value per row: bools, strings or numbers.
            prompt: per row an index into `store.prompts`.
            pos: per row an index or a named position (`END`).

        Raises:
            ProbeError: an unknown prompt, a position outside its prompt, one value only, a missing label, a
                row twice.

        >>> import workbench as wb
        >>> prompts = wb.Prompts.of([[5, 6], [7, 8, 9]])
        >>> class Store: prompts = prompts
        >>> wb.Labels.of(Store, {"long": [False, True]}, prompt=[0, 1], pos=["END", "END"])
        <Labels: 2 rows of 2 prompts, long (binary)>
        """
        prompts, rows = store.prompts, len(prompt)
        if not concepts:
            raise ProbeError(
                "There are no concepts: give at least one column besides the prompt and the position."
            )
        counts = {"prompt": rows, "pos": len(pos)} | {name: len(values) for name, values in concepts.items()}
        if len(set(counts.values())) > 1 or not rows:
            raise ProbeError(
                "Labels need one value a row: there are "
                f"{', '.join(f'{n} of {name}' for name, n in counts.items())}."
            )
        owner, index = _indices(prompts, prompt, pos)
        repeated = pd.DataFrame({"prompt": owner, "pos": index}).duplicated().to_numpy()
        if repeated.any():
            row = int(np.flatnonzero(repeated)[0])
            raise ProbeError(
                f"Row {row} labels position {index[row]} of prompt {owner[row]} a second time: one row for a "
                "token."
            )
        labelled = tuple(Concept.of(name, values) for name, values in concepts.items())
        return cls(prompts, owner, index, labelled)

    @classmethod
    def per_prompt(
        cls, store: Any, concepts: Mapping[str, Sequence[Any]], *, pos: Position | Sequence[Position] = "END"
    ) -> "Labels":
        """One value of each concept for every prompt, read at one position or at each of several (where a
        prompt has it).

        Raises:
            ProbeError: not one value for each prompt, or no prompt has such a position.
        """
        positions = [pos] if isinstance(pos, str | int | np.integer) else list(pos)
        for name, values in concepts.items():
            if len(values) != len(store.prompts):
                raise ProbeError(
                    f"Concept {name!r} has {len(values)} labels for {len(store.prompts)} prompts: give one "
                    "of each."
                )
        # A dict, since two names may lie at one token.
        rows: dict[tuple[int, int], None] = {}
        for position in positions:
            for i, index in enumerate(store.prompts.at(position).tolist()):
                if index >= 0:
                    rows[i, index] = None
        if not rows:
            raise ProbeError(f"No prompt has a position {', '.join(map(repr, positions))}.")
        prompts, indices = map(list, zip(*rows, strict=True))
        spread = {name: [values[i] for i in prompts] for name, values in concepts.items()}
        return cls.of(store, spread, prompt=prompts, pos=indices)

    @classmethod
    def of_concepts(
        cls, store: Any, names: Sequence[str], *, pos: Position | Sequence[Position] = "END"
    ) -> "Labels":
        """Labels of what the tasks' prompts are about, read at `pos`.

        Args:
            names: "number" (of the subject), "gender" (of the name), "indirect-object", "country", or any
                named position, whose token is the class.

        Raises:
            UnknownName: no such concept.
            PromptError: the prompts do not say it.
        """
        return cls.per_prompt(store, {name: values_of(store.prompts, name) for name in names}, pos=pos)

    @classmethod
    def from_dataframe(cls, store: Any, frame: pd.DataFrame, *, source: str = "table") -> "Labels":
        """Labels from columns `prompt` (index or id), `pos` (index or name) or `start`, `end` (a span), and
        concepts.

        Cells of text that are all numbers are numbers, `true` and `false` are bools.
        """
        names = [str(name).strip() for name in frame.columns]
        _check_names(names, source)
        needed = _place_columns(frame, source)
        # Of equal prompts the first is meant.
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(store.prompts.ids)))}
        known = {str(name): _typed(frame[name].tolist()) for name in frame.columns if name not in PLACES}
        concepts: dict[str, list[Any]] = {name: [] for name in known}
        prompt: list[int] = []
        pos: list[Position] = []
        for row, cells in enumerate(frame.to_dict("records")):
            named = cells["prompt"]
            i = ids.get(named, _number(named)) if isinstance(named, str) else _number(named)
            if not isinstance(i, int):
                raise ProbeError(
                    f"{source}, row {row}: there is no prompt {i!r}. Give its index or its id "
                    "(store.prompts.ids)."
                )
            for position in _positions(cells, needed, f"{source}, row {row}"):
                prompt.append(i)
                pos.append(position)
                for name, values in known.items():
                    concepts[name].append(values[row])
        return cls.of(store, concepts, prompt=prompt, pos=pos)

    @classmethod
    def from_csv(cls, store: Any, path: str | Path) -> "Labels":
        """Labels from a CSV file; see `from_dataframe`."""
        return cls.from_dataframe(store, _read(path, "csv"), source=Path(path).name)

    @classmethod
    def from_jsonl(cls, store: Any, path: str | Path) -> "Labels":
        """Labels from a file with one JSON object a line; see `from_dataframe`."""
        return cls.from_dataframe(store, _read(path, "jsonl"), source=Path(path).name)

    def select(self, rows: np.ndarray) -> "Labels":
        """Some of the rows, given as a mask or indices; concepts keep their classes."""
        concepts = tuple(Concept(c.name, c.classes, c.codes[rows]) for c in self.concepts)
        return Labels(self.prompts, self.prompt[rows], self.pos[rows], concepts)

    def at(self, where: Position) -> "Labels":
        """The rows that lie at one index or named position."""
        return self.select(self.rows_at(where))

    def rows_at(self, where: Position) -> np.ndarray:
        """[row]: whether a row lies at one index or named position."""
        indices = self.prompts.at(where).numpy()
        return self.pos == indices[self.prompt]

    @property
    def groups(self) -> np.ndarray:
        """[row]: the prompt, equal prompts being one: rows of a group go to the same side of a split."""
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(self.prompts.ids)))}
        return np.array([ids[self.prompts.ids[i]] for i in self.prompt])

    @property
    def tokens(self) -> np.ndarray:
        """[row]: the token id at each row."""
        return self.prompts.tokens.cpu().numpy()[self.prompt, self.pos]

    def concept(self, name: str) -> Concept:
        """The concept of that name.

        Raises:
            UnknownName: there is none.
        """
        by_name = {concept.name: concept for concept in self.concepts}
        if name not in by_name:
            raise UnknownName("concept", name, by_name)
        return by_name[name]

    def __len__(self) -> int:
        return len(self.prompt)

    def __repr__(self) -> str:
        words = {"squares": "number", "logistic": "binary"}
        listed = ", ".join(
            f"{c.name} ({words.get(c.loss, f'{len(c.classes)} classes')})" for c in self.concepts
        )
        return f"<Labels: {len(self)} rows of {len(set(self.prompt.tolist()))} prompts, {listed}>"


def _kind(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "bool"
    return "text" if isinstance(value, str) else "number"


def _finite_numbers(name: str, column: pd.Series) -> np.ndarray:
    try:
        numbers = column.to_numpy(dtype=float)
    except OverflowError as error:
        raise ProbeError(f"Concept {name!r} has a number that is too large.") from error
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ProbeError(f"Concept {name!r} has an infinite value in row {row}.")
    return numbers


def _indices(
    prompts: Prompts, prompt: Sequence[int], pos: Sequence[Position]
) -> tuple[np.ndarray, np.ndarray]:
    """[row] index of the prompt and of the token in it. Raises `ProbeError` for a row that is in no
    prompt."""
    by_name = {name: prompts.at(name).tolist() for name in {p for p in pos if isinstance(p, str)}}
    lengths = prompts.lengths.tolist()
    owner, index = np.empty(len(prompt), dtype=int), np.empty(len(prompt), dtype=int)
    for row, (i, position) in enumerate(zip(prompt, pos, strict=True)):
        if not isinstance(i, int | np.integer) or not 0 <= i < len(prompts):
            raise ProbeError(f"Row {row} labels prompt {i}; the store has prompts 0 to {len(prompts) - 1}.")
        is_name = isinstance(position, str)
        token = by_name[position][int(i)] if is_name else position
        if not isinstance(token, int | np.integer) or not 0 <= token < lengths[int(i)]:
            names = f" and the named positions {', '.join(prompts.positions)}" if is_name else ""
            raise ProbeError(
                f"Row {row} labels position {position!r}; prompt {i} has {lengths[int(i)]} tokens{names}."
            )
        owner[row], index[row] = i, token
    return owner, index


def _check_names(names: Sequence[str], source: str) -> None:
    """Raise unless every column has a name of its own, and there is a position or a span."""
    unnamed = [name for name in names if not name or name.startswith("Unnamed: ")]
    repeated = [name for name in names if names.count(name) > 1]
    if unnamed or repeated:
        fault = "a column without a name (an index? write it with index=False)"
        if not unnamed:
            fault = f"the column {repeated[0]!r} twice"
        raise ProbeError(f"{source} has {fault}. Every column but prompt, pos, start and end is a concept.")
    if "pos" in names and {"start", "end"} & set(names):
        raise ProbeError(f"{source} has both pos and start, end: give a position or a span, not both.")


def _place_columns(frame: pd.DataFrame, source: str) -> tuple[str, ...]:
    """The columns that say which token a row labels."""
    spans = "pos" not in frame.columns and "start" in frame.columns
    needed = ("prompt", "start", "end") if spans else ("prompt", "pos")
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        present = ", ".join(map(str, frame.columns)) or "none"
        raise ProbeError(
            f"{source} has no column {', '.join(missing)}. Needed: {', '.join(needed)} and concepts; it has: "
            f"{present}."
        )
    return needed


def _read(path: str | Path, kind: str) -> pd.DataFrame:
    """The cells of a file as they are, every one of them text in a CSV file."""
    rows = read_rows(path, kind, ProbeError)
    if kind == "jsonl":
        return pd.DataFrame(rows, dtype=object)
    header, *cells = rows or [[]]
    for number, row in enumerate(cells, start=1):
        if row and len(row) != len(header):
            raise ProbeError(
                f"{Path(path).name}, row {number}: {len(row)} fields where the header has {len(header)}."
            )
    return pd.DataFrame([row for row in cells if row], columns=header, dtype=object)


def _plain(value: Any) -> Any:
    """A label as Python's own; a lone surrogate, which no array of texts can hold, is spelled out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _number(cell: Any) -> Any:
    """A cell of a file as an integer where it is one."""
    try:
        return int(cell) if not isinstance(cell, str) and int(cell) == cell else int(str(cell))
    except (TypeError, ValueError, OverflowError):
        return cell


def _positions(cells: Mapping[str, Any], needed: tuple[str, ...], row: str) -> Iterator[Position]:
    """The positions that a row labels: one, or those of its span."""
    if "pos" in needed:
        position = _number(cells["pos"])
        if not isinstance(position, int | str):
            raise ProbeError(f"{row}: pos={position!r} is neither an index nor the name of a position.")
        yield position
        return
    start, end = _number(cells["start"]), _number(cells["end"])
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise ProbeError(
            f"{row}: start={cells['start']!r}, end={cells['end']!r} is not a span: 0 <= start < end."
        )
    yield from range(start, end)


def _typed(cells: list[Any]) -> list[Any]:
    """The cells of a concept: text that is all numbers as numbers, all true or false as bools, the rest as it
    is."""
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return [cell.lower() == "true" for cell in cells]
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return cells
