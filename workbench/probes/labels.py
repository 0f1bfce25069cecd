"""What the tokens of a store's prompts are called: rows of (prompt, position), with a value of every concept each.

Values are binary (bool, 0 and 1, or two strings), one of several classes (strings) or numbers. Probes are fitted on these rows.
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

PLACES = ("prompt", "pos", "start", "end")
"""Columns that say where; all others are concepts. `pos`, or a span from `start` up to, without, `end`."""


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
        return "squares" if not self.classes else "logistic" if len(self.classes) == 2 else "softmax"

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> "Concept":
        """A concept of bools, strings or numbers. Raises `ProbeError` when a value is missing or all are the same."""
        column = pd.Series([_plain(value) for value in values], dtype=object)
        odd = [v for v in column if not isinstance(v, bool | int | float | str) and v is not None]
        if odd:
            raise ProbeError(
                f"Concept {name!r} has a {type(odd[0]).__name__} among its labels: bools, texts or numbers are needed."
            )
        missing = column.isna() | (column == "")
        if missing.any():
            raise ProbeError(
                f"Concept {name!r} has no label in row {int(np.flatnonzero(missing)[0])} ({int(missing.sum())} of {len(column)} "
                "are missing). Leave these rows out, or label them."
            )
        kinds = {
            "bool" if isinstance(v, bool | np.bool_) else "text" if isinstance(v, str) else "number"
            for v in column
        }
        if len(kinds) > 1:
            raise ProbeError(
                f"Concept {name!r} mixes {' and '.join(sorted(kinds))}: give labels of one kind."
            )
        if column.nunique() < 2:
            raise ProbeError(
                f"Concept {name!r} is {column.iloc[0]!r} in every row: a probe needs at least two values."
            )
        if kinds == {"number"} and set(column) != {0, 1}:
            try:
                numbers = column.to_numpy(dtype=float)
            except OverflowError as error:
                raise ProbeError(f"Concept {name!r} has a number that is too large.") from error
            if not np.isfinite(numbers).all():
                raise ProbeError(
                    f"Concept {name!r} has an infinite value in row {int(np.flatnonzero(~np.isfinite(numbers))[0])}."
                )
            return cls(name, (), numbers)
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
            ProbeError: an unknown prompt, a position outside its prompt, one value only, a missing label, a row twice.

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
                f"Labels need one value a row: there are {', '.join(f'{n} of {name}' for name, n in counts.items())}."
            )
        places = {name: prompts.at(name).tolist() for name in {p for p in pos if isinstance(p, str)}}
        lengths = prompts.lengths.tolist()
        chosen, found = np.empty(rows, dtype=int), np.empty(rows, dtype=int)
        for row, (i, where) in enumerate(zip(prompt, pos, strict=True)):
            if not isinstance(i, int | np.integer) or not 0 <= i < len(prompts):
                raise ProbeError(
                    f"Row {row} labels prompt {i}; the store has prompts 0 to {len(prompts) - 1}."
                )
            at = places[where][int(i)] if isinstance(where, str) else where
            if not isinstance(at, int | np.integer) or not 0 <= at < lengths[int(i)]:
                named = (
                    f" and the named positions {', '.join(prompts.positions)}"
                    if isinstance(where, str)
                    else ""
                )
                raise ProbeError(
                    f"Row {row} labels position {where!r}; prompt {i} has {lengths[int(i)]} tokens{named}."
                )
            chosen[row], found[row] = i, at
        if len({*zip(chosen, found, strict=True)}) < rows:
            twice = pd.DataFrame({"prompt": chosen, "pos": found}).duplicated()
            row = int(np.flatnonzero(twice)[0])
            raise ProbeError(
                f"Row {row} labels position {found[row]} of prompt {chosen[row]} a second time: one row for a token."
            )
        return cls(
            prompts, chosen, found, tuple(Concept.of(name, values) for name, values in concepts.items())
        )

    @classmethod
    def per_prompt(
        cls, store: Any, concepts: Mapping[str, Sequence[Any]], *, pos: Position | Sequence[Position] = "END"
    ) -> "Labels":
        """One value of each concept for every prompt, read at one position or at each of several (where a prompt has it)."""
        wanted = [pos] if isinstance(pos, str | int | np.integer) else list(pos)
        for name, values in concepts.items():
            if len(values) != len(store.prompts):
                raise ProbeError(
                    f"Concept {name!r} has {len(values)} labels for {len(store.prompts)} prompts: give one of each."
                )
        rows = [(i, int(at)) for where in wanted for i, at in enumerate(store.prompts.at(where)) if at >= 0]
        rows = list(dict.fromkeys(rows))
        if not rows:
            raise ProbeError(f"No prompt has a position {', '.join(map(repr, wanted))}.")
        spread = {name: [values[i] for i, _ in rows] for name, values in concepts.items()}
        return cls.of(store, spread, prompt=[i for i, _ in rows], pos=[at for _, at in rows])

    @classmethod
    def of_concepts(
        cls, store: Any, names: Sequence[str], *, pos: Position | Sequence[Position] = "END"
    ) -> "Labels":
        """What the tasks' prompts are about, read at `pos`: "number" (of the subject), "gender" (of the name), "indirect-object",
        "country", or any named position, whose token is the class.

        Raises:
            UnknownName, PromptError: as `tasks.concepts.values_of`.
        """
        return cls.per_prompt(store, {name: values_of(store.prompts, name) for name in names}, pos=pos)

    @classmethod
    def from_dataframe(cls, store: Any, frame: pd.DataFrame, *, source: str = "table") -> "Labels":
        """Labels from columns `prompt` (index or id), `pos` (index or name) or `start`, `end` (a span), and concepts.

        Cells of text that are all numbers are numbers, `true` and `false` are bools.
        """
        names = [str(name).strip() for name in frame.columns]
        unnamed = [name for name in names if not name or name.startswith("Unnamed: ")]
        twice = [name for name in names if names.count(name) > 1]
        if unnamed or twice:
            what = (
                "a column without a name (an index? write it with index=False)"
                if unnamed
                else f"the column {twice[0]!r} twice"
            )
            raise ProbeError(
                f"{source} has {what}. Every column but prompt, pos, start and end is a concept."
            )
        if "pos" in names and {"start", "end"} & set(names):
            raise ProbeError(f"{source} has both pos and start, end: give a position or a span, not both.")
        spans = "pos" not in frame.columns
        needed = ("prompt", "start", "end") if spans and "start" in frame.columns else ("prompt", "pos")
        missing = [name for name in needed if name not in frame.columns]
        if missing:
            has = ", ".join(map(str, frame.columns)) or "none"
            raise ProbeError(
                f"{source} has no column {', '.join(missing)}. Needed: {', '.join(needed)} and concepts; it has: {has}."
            )
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(store.prompts.ids)))}
        known = {str(name): _typed(frame[name].tolist()) for name in frame.columns if name not in PLACES}
        concepts: dict[str, list[Any]] = {name: [] for name in known}
        prompt, pos = [], []
        for row, cells in enumerate(frame.to_dict("records")):
            named = cells["prompt"]
            i = ids.get(named, _number(named)) if isinstance(named, str) else _number(named)
            if not isinstance(i, int):
                raise ProbeError(
                    f"{source}, row {row}: there is no prompt {i!r}. Give its index or its id (store.prompts.ids)."
                )
            for at in _places(cells, needed, f"{source}, row {row}"):
                prompt.append(i)
                pos.append(at)
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
        places = self.prompts.at(where).numpy()
        return self.pos == places[self.prompt]

    @property
    def groups(self) -> np.ndarray:
        """[row]: what may not straddle a split: the prompt, equal prompts being one."""
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(self.prompts.ids)))}
        return np.array([ids[self.prompts.ids[i]] for i in self.prompt])

    @property
    def tokens(self) -> np.ndarray:
        """[row]: the token id at each row."""
        return self.prompts.tokens.cpu().numpy()[self.prompt, self.pos]

    def concept(self, name: str) -> Concept:
        """The concept of that name."""
        found = {concept.name: concept for concept in self.concepts}
        if name not in found:
            raise UnknownName("concept", name, found)
        return found[name]

    def __len__(self) -> int:
        return len(self.prompt)

    def __repr__(self) -> str:
        words = {"squares": "number", "logistic": "binary"}
        listed = ", ".join(
            f"{c.name} ({words.get(c.loss, f'{len(c.classes)} classes')})" for c in self.concepts
        )
        return f"<Labels: {len(self)} rows of {len(set(self.prompt.tolist()))} prompts, {listed}>"


def _read(path: str | Path, kind: str) -> pd.DataFrame:
    found = read_rows(path, kind, ProbeError)
    if kind == "jsonl":
        return pd.DataFrame(found, dtype=object)
    header, *cells = found or [[]]
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


def _places(cells: Mapping[str, Any], needed: tuple[str, ...], where: str) -> Iterator[Position]:
    if "pos" in needed:
        at = _number(cells["pos"])
        if not isinstance(at, int | str):
            raise ProbeError(f"{where}: pos={at!r} is neither an index nor the name of a position.")
        yield at
        return
    start, end = _number(cells["start"]), _number(cells["end"])
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end:
        raise ProbeError(
            f"{where}: start={cells['start']!r}, end={cells['end']!r} is no span: 0 <= start < end."
        )
    yield from range(start, end)


def _typed(cells: list[Any]) -> list[Any]:
    """The cells of a concept: text that is all numbers as numbers, all true or false as bools, the rest as it is."""
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        return [cell.lower() == "true" for cell in cells]
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return cells
