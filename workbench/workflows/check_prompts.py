"""`check_prompts`: what a file of pairs looks like to a model, row by row, before anything is measured with it.

Reading stops at the first row that cannot be used. Here every row is looked at, and each problem comes with what to do.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.errors import PromptError
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.pair_tables import read_table
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.measure import Score, measure
from workbench.text import listed, visible
from workbench.workflows.verdict import competence_text, competence_warning

WIDTH = 110
"""Columns of the text."""
_REPEATED = "Leave one out: counted twice, a prompt makes intervals too narrow."
SHOWN = 12
"""Problems that the text lists; the others are counted."""


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with a row, and what to do.

    Attributes:
        row: counted from 1, without the header.
    """

    row: int
    problem: str


@dataclass(frozen=True)
class PromptsCheck:
    """What a file of pairs looks like to a model.

    Attributes:
        source, model: names of the file and the model.
        n: rows.
        problems: of rows that cannot be used, or not by what replaces whole runs.
        pairs: the rows that can be read; None where none can.
        competence: how well the model does on these; None where none can be read.
    """

    source: str
    model: str
    n: int
    problems: tuple[RowProblem, ...]
    pairs: PromptPairs | None
    competence: Score | None

    def __str__(self) -> str:
        lines = [f"{visible(self.source)}: {self.n} rows, read by {visible(self.model)}"]
        if self.pairs is not None:
            lines += _described(self.pairs)
        if self.problems:
            rows = len({problem.row for problem in self.problems})
            lines.append(f"Problems in {rows} of {self.n} rows:")
            lines += [f"  row {problem.row}: {problem.problem}" for problem in self.problems[:SHOWN]]
            if len(self.problems) > SHOWN:
                lines.append(f"  ... and {len(self.problems) - SHOWN} more (--json lists all)")
        else:
            lines.append("No problems: clean and corrupt prompts line up in every row.")
        if self.competence is not None:
            lines += filter(None, (competence_text(self.competence), competence_warning(self.competence)))
        wrapped = []
        for line in lines:
            indent = " " * (len(line) - len(line.lstrip()) + 2)
            wrapped += textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=True) or [line]
        return "\n".join(wrapped)


def check_prompts(
    model: Model, path: str | Path, *, joiner: str = " ", bos: bool | None = None, chat: bool = False
) -> PromptsCheck:
    """Look at every row of a file of pairs.

    Args:
        joiner, bos, chat: as in `PromptPairs.from_dataframe`.

    Raises:
        PromptError: a file that is no table of pairs: of another kind, without the columns, or without rows.
    """
    frame, source = read_table(path), Path(path).name
    readable: list[int] = []
    problems: list[RowProblem] = []
    first_rows: dict[Any, int] = {}
    for place in range(len(frame)):
        try:
            pair = _read(model, frame.iloc[[place]], source, joiner, bos, chat)
        except PromptError as error:
            text = str(error).removeprefix(f"{source}, row 1")
            # Without its row the message is of the whole table: every row would repeat it.
            if text == str(error):
                raise
            problems.append(RowProblem(place + 1, text.lstrip(":, ")))
            continue
        earlier = first_rows.setdefault((pair.clean.ids, pair.corrupt.ids), place + 1)
        if earlier <= place:
            problems.append(RowProblem(place + 1, f"the same prompts as in row {earlier}. {_REPEATED}"))
        readable.append(place)
        problems += [RowProblem(place + 1, text) for text in _unequal(pair)]
    if frame.empty:
        _read(model, frame, source, joiner, bos, chat)  # says what is missing
    if not readable:
        return PromptsCheck(source, model_name(model), len(frame), tuple(problems), None, None)
    pairs = _read(model, frame.iloc[readable], source, joiner, bos, chat)
    [score] = measure(model, pairs, progress=False)
    return PromptsCheck(source, model_name(model), len(frame), tuple(problems), pairs, score)


def _read(
    model: Model, frame: pd.DataFrame, source: str, joiner: str, bos: bool | None, chat: bool
) -> PromptPairs:
    return PromptPairs.from_dataframe(model, frame, joiner=joiner, source=source, bos=bos, chat=chat)


def _unequal(pair: PromptPairs) -> list[str]:
    """For each corruption of another length than the clean prompt: the words that make the difference."""
    problems = []
    clean = list(pair.clean.strings[0])
    for name, one in pair.counterfactuals.items():
        corrupt = list(one.corrupt.strings[0])
        if len(clean) == len(corrupt):
            continue
        pieces = []
        for what, a, b, c, d in SequenceMatcher(None, clean, corrupt, autojunk=False).get_opcodes():
            if what != "equal" and b - a != d - c:
                pieces.append(f"{_pieces(clean[a:b])} against {_pieces(corrupt[c:d])}")
        problems.append(
            f"clean has {len(clean)} tokens and {visible(name)} {len(corrupt)}: {'; '.join(pieces)}. Take words of as "
            "many tokens, or leave the row out: whole runs are replaced token by token."
        )
    return problems


def _pieces(tokens: Sequence[str]) -> str:
    """Some tokens as a text, with how many they are."""
    if not tokens:
        return "nothing"
    return f"{visible(repr(''.join(tokens)))} ({'|'.join(map(visible, tokens))})"


def positions_of(pairs: PromptPairs) -> dict[str, int]:
    """Named position → in how many of the clean prompts it is; `END`, which all have, left out."""
    at_names = {name: int((at >= 0).sum()) for name, at in pairs.clean.positions.items()}
    return {name: n for name, n in at_names.items() if name != "END"}


def _described(pairs: PromptPairs) -> list[str]:
    """How the readable rows are read: lengths, BOS, the first row's tokens, answers and corruptions."""
    shortest, longest = int(pairs.clean.lengths.min()), int(pairs.clean.lengths.max())
    n_tokens = [
        int(n) for table in (pairs.answers, pairs.wrong) for n in (table >= 0).sum(-1).flatten().tolist() if n
    ]
    answers = "answers of one token"
    if max(n_tokens) > 1:
        answers = f"answers of {min(n_tokens)} to {max(n_tokens)} tokens, each read in a run of its own"
    first = "|".join(map(visible, pairs.clean.strings[0]))
    places = "  named positions: none; name them in columns such as pos_S2, or in the text, [[S2:Mary]]"
    if positions := positions_of(pairs):
        counts = [f"{name} (in {n} of {len(pairs)} rows)" for name, n in positions.items()]
        places = f"  named positions: {listed(map(visible, counts))}"
    return [
        f"  {shortest} to {longest} tokens, {'with' if pairs.clean.bos else 'without'} BOS; {answers}; measured by "
        f"{pairs.metric}",
        f"  corruptions: {listed(map(visible, pairs.counterfactuals))}",
        places,
        f"  the tokens of the first row: {first}",
    ]
