"""Tables of right and wrong answers: [example, alternative, token], padded with -1, which is no token id.

Read `answer_table`, which takes what callers have; `padded_answers` makes the table of nested lists.
"""

from collections.abc import Sequence
from itertools import chain
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.arguments import shown
from workbench.errors import PromptError
from workbench.prompts.token_tables import whole_tokens


def answer_table(answers: Any, name: str) -> Int[Tensor, "example alternative token"]:
    """The table of token ids given as [example], [example, alternative] or [example, alternative, token].

    Args:
        answers: a tensor, an array or lists; examples may have different numbers of alternatives, and these
            of tokens. -1 at the end of an array is padding.
        name: of the table, for errors.

    Raises:
        PromptError: anything else, or an example without an answer.
    """
    examples = answers.tolist() if hasattr(answers, "tolist") else answers
    if not isinstance(examples, Sequence) or isinstance(examples, str | bytes):
        raise PromptError(f"{name} are {shown(answers)}; give token ids, one or several for each example.")
    table = [_alternatives(example, f"{name}, example {i}") for i, example in enumerate(examples)]
    return padded_answers(table)


def _alternatives(example: Any, where: str) -> list[list[int]]:
    """The alternatives of one example, each with its tokens."""
    entries = example.tolist() if hasattr(example, "tolist") else example
    if isinstance(entries, Integral) and not isinstance(entries, bool):
        entries = [entries]  # a single token
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise PromptError(
            f"{where}: {shown(entries)} is not a token id. Encode words with the model's tokenizer."
        )
    alternatives: list[list[int]] = []
    for i, alternative in enumerate(entries):
        is_number = isinstance(alternative, Integral | float | bool)
        tokens = whole_tokens([alternative] if is_number else alternative, f"{where}, alternative {i}")
        while tokens and tokens[-1] == -1:
            tokens.pop()
        if any(token < 0 for token in tokens):
            raise PromptError(
                f"{where}, alternative {i}: {min(tokens)} is not a token id; -1 is padding, at the end only."
            )
        if tokens:
            alternatives.append(tokens)
    if not alternatives:
        raise PromptError(f"{where} has no token. Every example needs an answer and a wrong one.")
    return alternatives


def padded_answers(
    alternatives: Sequence[Sequence[Sequence[int]]],
) -> Int[Tensor, "example alternative token"]:
    """Token lists of every alternative of every example as one tensor [example, alternative, token]."""
    # At least one alternative of one token, so that metrics need not treat empty tables.
    most = max([1, *map(len, alternatives)])
    longest = max([1, *map(len, chain.from_iterable(alternatives))])
    table = torch.full((len(alternatives), most, longest), -1, dtype=torch.long, device="cpu")
    for i, example in enumerate(alternatives):
        for j, tokens in enumerate(example):
            table[i, j, : len(tokens)] = torch.as_tensor(tokens, device="cpu")
    return table


def check_answers(
    answers: Int[Tensor, "example alternative token"],
    wrong: Int[Tensor, "example wrong_alternative wrong_token"],
) -> None:
    """Raise `PromptError` for token ids below -1, gaps, and answers given twice, or as right and as wrong."""
    for name, table in (("answers", answers), ("wrong", wrong)):
        if table.numel() and int(table.min()) < -1:
            raise PromptError(
                f"{name} hold {int(table.min())}; they are token ids, and -1 where there is none."
            )
        _check_gaps(table, name)
        _check_distinct(table, name)
    width = max(answers.shape[2], wrong.shape[2])
    right, wrong = (_widened(table, width) for table in (answers, wrong))
    # [example, alternative, wrong_alternative]: the same tokens, where the alternative is not padding
    same = (right[:, :, None] == wrong[:, None]).all(-1) & (right >= 0).any(-1)[:, :, None]
    if bool(same.any()):
        i, alternative, _ = same.nonzero()[0].tolist()
        tokens = [token for token in right[i, alternative].tolist() if token >= 0]
        raise PromptError(
            f"Pair {i}: the answer of token {', '.join(map(str, tokens))} is both right and wrong. Take it "
            "out of answers or of wrong."
        )


def _check_gaps(table: Int[Tensor, "example alternative token"], name: str) -> None:
    """Raise `PromptError` for an alternative with a token after -1: its first tokens alone would be read."""
    gaps = ((table[:, :, :-1] < 0) & (table[:, :, 1:] >= 0)).flatten(1).any(1).nonzero()
    if len(gaps):
        raise PromptError(
            f"{name}, example {int(gaps[0])}: an alternative has a gap. Tokens come first, and -1 fills up "
            "the rest."
        )


def _check_distinct(table: Int[Tensor, "example alternative token"], name: str) -> None:
    """Raise `PromptError` for an alternative that is there twice: its probability would count twice."""
    if table.shape[1] < 2:
        return
    if table.shape[2] == 1:
        tokens = table[:, :, 0].sort(1).values  # neighbours are enough, and tables of years are wide
        twice = (tokens[:, 1:] == tokens[:, :-1]) & (tokens[:, 1:] >= 0)
    else:
        same = (table[:, :, None] == table[:, None]).all(-1) & (table >= 0).any(-1)[:, :, None]
        twice = same.triu(1).flatten(1)
    if bool(twice.any()):
        raise PromptError(
            f"{name}, example {int(twice.any(1).nonzero()[0])}: an alternative is there twice. They are "
            "a set: give each once."
        )


def _widened(table: Tensor, width: int) -> Tensor:
    """[example, alternative, width]: the table, padded with -1."""
    return torch.nn.functional.pad(table, (0, width - table.shape[2]), value=-1)
