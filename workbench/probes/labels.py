"""Labels of the tokens of a store's prompts: rows of (prompt, position), each with a value of every concept.

Values are binary (bool, 0 and 1, or two strings), one of several classes (strings) or numbers. Probes are
fitted on these rows. Read `Labels.of` and `Labels.per_prompt`; reading files of labels ends in
`Labels.from_dataframe`. `concepts` has the values, `label_tables` the columns and cells of files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.arguments import checked
from workbench.errors import ProbeError, UnknownName
from workbench.probes.concepts import Concept
from workbench.probes.label_tables import (
    PLACES,
    check_names,
    number_of,
    place_columns,
    read_cells,
    row_positions,
    typed,
)
from workbench.prompts.prompts import HasPrompts, Prompts
from workbench.sites import Position
from workbench.tasks.concepts import values_of
from workbench.text import spelled


@checked
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
    @checked
    def of(
        cls,
        store: HasPrompts,
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
                "Labels need one value for each row: there are "
                f"{', '.join(f'{n} of {name}' for name, n in counts.items())}."
            )
        owner, index = _indices(prompts, prompt, pos)
        repeated = pd.DataFrame({"prompt": owner, "pos": index}).duplicated().to_numpy()
        if repeated.any():
            row = int(np.flatnonzero(repeated)[0])
            raise ProbeError(
                f"Row {row} labels position {index[row]} of prompt {owner[row]} a second time: "
                "give each token one row."
            )
        labelled = tuple(Concept.of(name, values) for name, values in concepts.items())
        return cls(prompts, owner, index, labelled)

    @classmethod
    @checked
    def per_prompt(
        cls,
        store: HasPrompts,
        concepts: Mapping[str, Sequence[Any]],
        *,
        pos: Position | Sequence[Position] = "END",
    ) -> "Labels":
        """One value of each concept for every prompt, read at one position or at each of several (where a
        prompt has it).

        Raises:
            ProbeError: not one value for each prompt, or no prompt has such a position.
        """
        positions: list[Any] = [pos]
        if not isinstance(pos, str | int | np.integer):
            positions = list(pos)
        for name, values in concepts.items():
            if len(values) != len(store.prompts):
                raise ProbeError(
                    f"Concept {name!r} has {len(values)} labels for {len(store.prompts)} prompts: give one "
                    "for each."
                )
        # A dict, since two names may lie at one token, which counts once.
        rows: dict[tuple[int, int], None] = {}
        for position in positions:
            for i, index in enumerate(store.prompts.at(position).tolist()):
                if index >= 0:
                    rows[i, index] = None
        if not rows:
            raise ProbeError(f"No prompt has a position {', '.join(map(repr, positions))}.")
        prompts, indices = map(list, zip(*rows, strict=True))
        by_row = {name: [values[i] for i in prompts] for name, values in concepts.items()}
        return cls.of(store, by_row, prompt=prompts, pos=indices)

    @classmethod
    @checked
    def of_concepts(
        cls, store: HasPrompts, names: Sequence[str], *, pos: Position | Sequence[Position] = "END"
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
    @checked
    def from_dataframe(cls, store: HasPrompts, frame: pd.DataFrame, *, source: str = "table") -> "Labels":
        """Labels from columns: prompts, positions and concepts.

        Columns are `prompt` (index or id), `pos` (index or name) or `start`, `end` (a span), and concepts.
        Cells of text that are all numbers are numbers, `true` and `false` are bools.
        """
        names = [str(name).strip() for name in frame.columns]
        check_names(names, source)
        needed = place_columns(frame, source)
        # Backwards, so that of equal prompts the first is kept.
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(store.prompts.ids)))}
        known = {str(name): typed(frame[name].tolist()) for name in frame.columns if name not in PLACES}
        concepts: dict[str, list[Any]] = {name: [] for name in known}
        prompt: list[int] = []
        pos: list[Position] = []
        for row, cells in enumerate(frame.to_dict("records")):
            prompt_cell = cells["prompt"]
            i = number_of(prompt_cell)
            if isinstance(prompt_cell, str):  # an id may look like a number, and an id wins
                i = ids.get(prompt_cell, i)
            if not isinstance(i, int):
                raise ProbeError(
                    f"{source}, row {row}: there is no prompt {i!r}. Give its index or its id "
                    "(store.prompts.ids)."
                )
            for position in row_positions(cells, needed, f"{source}, row {row}"):
                prompt.append(i)
                pos.append(position)
                for name, values in known.items():
                    concepts[name].append(values[row])
        return cls.of(store, concepts, prompt=prompt, pos=pos)

    @classmethod
    @checked
    def from_csv(cls, store: HasPrompts, path: str | Path) -> "Labels":
        """Labels from a CSV file; see `from_dataframe`."""
        return cls.from_dataframe(store, read_cells(path, "csv"), source=Path(path).name)

    @classmethod
    @checked
    def from_jsonl(cls, store: HasPrompts, path: str | Path) -> "Labels":
        """Labels from a file with one JSON object a line; see `from_dataframe`."""
        return cls.from_dataframe(store, read_cells(path, "jsonl"), source=Path(path).name)

    def select(self, rows: np.ndarray) -> "Labels":
        """Some of the rows, given as a mask or indices; concepts keep their classes."""
        concepts = tuple(Concept(c.name, c.classes, c.codes[rows]) for c in self.concepts)
        return Labels(self.prompts, self.prompt[rows], self.pos[rows], concepts)

    @checked
    def at(self, where: Position) -> "Labels":
        """The rows that lie at one index or named position."""
        return self.select(self.rows_at(where))

    def rows_at(self, where: Position) -> np.ndarray:
        """[row]: whether a row lies at one index or named position."""
        indices = self.prompts.at(where).numpy()
        return self.pos == indices[self.prompt]

    @property
    def groups(self) -> np.ndarray:
        """[row]: the prompt; equal prompts count as one. Rows of a group go to the same side of a split."""
        ids = {prompt_id: i for i, prompt_id in reversed(list(enumerate(self.prompts.ids)))}
        return np.array([ids[self.prompts.ids[i]] for i in self.prompt])

    @property
    def tokens(self) -> np.ndarray:
        """[row]: the token id at each row."""
        return self.prompts.tokens.cpu().numpy()[self.prompt, self.pos]

    @checked
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
            f"{spelled(c.name)} ({words.get(c.loss, f'{len(c.classes)} classes')})" for c in self.concepts
        )
        return f"<Labels: {len(self)} rows of {len(set(self.prompt.tolist()))} prompts, {listed}>"


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
        token, names = position, ""
        if isinstance(position, str):
            token = by_name[position][int(i)]
            names = f" and the named positions {', '.join(prompts.positions)}"
        if not isinstance(token, int | np.integer) or not 0 <= token < lengths[int(i)]:
            raise ProbeError(
                f"Row {row} labels position {position!r}; prompt {i} has {lengths[int(i)]} tokens{names}."
            )
        owner[row], index[row] = i, token
    return owner, index
