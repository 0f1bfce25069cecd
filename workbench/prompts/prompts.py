"""Prompts: the token sequences of one run, padded on the right, with named positions.

Read `Prompts`. It knows nothing of text or tokenizers: those are `encoder.py`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

import torch
import xxhash
from jaxtyping import Int
from torch import Tensor

from workbench.arguments import checked, shown
from workbench.errors import PromptError, UnknownName
from workbench.prompts.token_tables import whole_tokens
from workbench.sites import Position
from workbench.text import wrapped

PAD = 0


@runtime_checkable
class HasPrompts(Protocol):
    """What was computed from prompts and holds them, such as a store."""

    prompts: Any


@checked
@dataclass(frozen=True, eq=False)
class Prompts:
    """Token sequences of one run.

    Attributes:
        tokens: [example, pos], padded on the right.
        lengths: [example], real tokens of each, BOS included.
        positions: name → [example] position, -1 where an example has none of that name. `END` is always
            there.
        strings: the token strings of each example, for labels.
        bos: whether every sequence begins with the BOS token.
        tokenizer: the fingerprint of the vocabulary that made them; "" for token ids that stand for
            themselves.
    """

    tokens: Int[Tensor, "example pos"]
    lengths: Int[Tensor, "example"]
    positions: Mapping[str, Int[Tensor, "example"]]
    strings: tuple[tuple[str, ...], ...]
    bos: bool
    tokenizer: str = ""

    def __repr__(self) -> str:
        lengths = f"{int(self.lengths.min())} to {int(self.lengths.max())}" if len(self) else "no"
        named = ", ".join(self.positions)
        return wrapped(f"<Prompts: {len(self)} of {lengths} tokens, positions {named}>")

    @classmethod
    @checked
    def of(
        cls,
        rows: Sequence[Sequence[int]],
        *,
        strings: Sequence[Sequence[str]] | None = None,
        positions: Sequence[Mapping[str, int]] | None = None,
        bos: bool = False,
        tokenizer: str = "",
    ) -> "Prompts":
        """Prompts from lists of token ids.

        Args:
            strings: the token strings of each prompt, for labels; None: the ids as text.
            positions: name → index, prompt by prompt.
            bos: whether every list begins with the BOS token.
            tokenizer: the fingerprint of the vocabulary that made them, if one did.

        Raises:
            PromptError: there are no prompts, one is empty (named) or holds something else than token ids, or
                a position lies outside its prompt.

        >>> Prompts.of([[5, 7, 2], [5, 3]], positions=[{"NAME": 1}, {}]).at("NAME").tolist()
        [1, -1]
        """
        if len(rows) == 0:
            raise PromptError("There are no prompts: give at least one.")
        id_lists = [whole_tokens(row, f"Prompt {i}") for i, row in enumerate(rows)]
        for i, row in enumerate(id_lists):
            if not row:
                raise PromptError(f"Prompt {i} is empty: every prompt needs at least one token.")
        for name, column in (("strings", strings), ("positions", positions)):
            if column is not None and len(column) != len(id_lists):
                raise PromptError(
                    f"There are {len(column)} {name} for {len(id_lists)} prompts: give one of each."
                )
        for i, (row, named) in enumerate(zip(id_lists, positions or [{}] * len(id_lists), strict=True)):
            if not isinstance(named, Mapping):
                raise PromptError(f"Prompt {i}: its positions are {shown(named)}; give name → index.")
            for name, index in named.items():
                _check_position(i, len(row), name, index)
        # On the CPU whatever torch's default device is: every index into prompts is there.
        lengths = torch.tensor([len(row) for row in id_lists], device="cpu")
        tokens = torch.full((len(id_lists), int(lengths.max())), PAD, dtype=torch.long, device="cpu")
        for i, row in enumerate(id_lists):
            tokens[i, : len(row)] = torch.as_tensor(row, device="cpu")
        examples = positions or ()
        # A dict keeps the names in the order in which they are met first: results list them so.
        columns: dict[str, Tensor] = {}
        for name in chain.from_iterable(examples):
            if name not in columns:
                at_name = [example.get(name, -1) for example in examples]
                columns[name] = torch.tensor(at_name, device="cpu")
        # Where an example does not say what END is, it is the last token.
        end = columns.get("END", torch.full_like(lengths, -1))
        columns["END"] = end.where(end >= 0, lengths - 1)
        if strings is None:
            strings = [list(map(str, row)) for row in id_lists]
        return cls(tokens, lengths, columns, tuple(map(tuple, strings)), bos, tokenizer)

    def __post_init__(self) -> None:
        n, width = len(self.tokens), self.tokens.shape[1]
        if not n:
            raise PromptError("There are no prompts: give at least one.")
        counts = {"lengths": len(self.lengths), "strings": len(self.strings)}
        counts |= {f"positions {name!r}": len(index) for name, index in self.positions.items()}
        wrong = [name for name, count in counts.items() if count != n]
        if wrong:
            raise PromptError(f"There are {counts[wrong[0]]} {wrong[0]} for {n} prompts: give one of each.")
        if bool(((self.lengths < 1) | (self.lengths > width)).any()):
            lengths = self.lengths.tolist()
            raise PromptError(
                f"The lengths of prompts lie between 1 and {width}, the width of the tokens; these are from "
                f"{min(lengths)} to {max(lengths)}."
            )
        if "END" not in self.positions:
            raise PromptError("Prompts need the position END: Prompts.of(rows) names it.")
        indices = torch.stack(
            [index.to(self.lengths) for index in self.positions.values()]
        )  # [name, example]
        outside = (indices < -1) | (indices >= self.lengths)  # -1: the example has no such position
        if bool(outside.any()):
            name, i = outside.nonzero()[0].tolist()
            _check_position(i, int(self.lengths[i]), list(self.positions)[name], int(indices[name, i]))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """A hash of the unpadded token ids of each prompt: its identity everywhere."""
        hashes = []
        for row, length in zip(self.tokens.cpu().numpy(), self.lengths.tolist(), strict=True):
            # Little-endian 64-bit integers without padding: the same id on every machine and in every batch.
            hashes.append(xxhash.xxh3_128_hexdigest(row[:length].astype("<i8").tobytes()))
        return tuple(hashes)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all prompts in their order."""
        return xxhash.xxh3_128_hexdigest(" ".join(self.ids).encode())

    @checked
    def at(self, where: Position) -> Int[Tensor, "example"]:
        """The position of that index or name in each example, -1 where it has none."""
        if isinstance(where, str) and where not in self.positions:
            raise UnknownName("position", where, self.positions)
        if not isinstance(where, str) and where < 0:
            raise PromptError(
                f"Position {where}: positions count from 0. "
                "The last token of every prompt is 'END' where it is named."
            )
        indices = self.positions[where] if isinstance(where, str) else torch.full_like(self.lengths, where)
        # An index beyond the end of a shorter prompt would point at padding.
        return indices.where((indices >= 0) & (indices < self.lengths), -1)

    def from_end(self) -> Int[Tensor, "example step"]:
        """Every position from `END` to the last one, padded with the last one."""
        end = self.at("END")
        # Logits after END predict the second and later answer tokens.
        steps = torch.arange(int((self.lengths - end).max()))
        return torch.minimum(end[:, None] + steps, self.lengths[:, None] - 1)

    @checked
    def select(self, indices: Sequence[int] | slice) -> "Prompts":
        """Some of the prompts, padded no further than the longest of them.

        Raises:
            PromptError: no prompt is named, or one that is not there.
        """
        if isinstance(indices, slice):
            indices = range(len(self))[indices]
        chosen = list(indices)
        if not chosen:
            raise PromptError("Nothing is selected: name at least one example.")
        absent = [index for index in chosen if not -len(self) <= index < len(self)]
        if absent:
            raise PromptError(f"There is no example {absent[0]}: there are {len(self)}, from 0 on.")
        rows = torch.as_tensor(chosen, dtype=torch.long, device="cpu")
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return Prompts(
            self.tokens[rows, :longest],
            lengths,
            {name: column[rows] for name, column in self.positions.items()},
            tuple(self.strings[i] for i in chosen),
            self.bos,
            self.tokenizer,
        )

    def __len__(self) -> int:
        return len(self.tokens)


def _check_position(prompt: int, length: int, name: object, index: object) -> None:
    """Raise `PromptError` for a named position that a prompt does not have."""
    if not isinstance(name, str):
        raise PromptError(f"Prompt {prompt}: {shown(name)} is not a name of a position. Names are text.")
    # True is an integer of Python, and 2.0 equals one.
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise PromptError(f"Prompt {prompt}: the position {name}={shown(index)} is not a whole number.")
    if not 0 <= int(index) < length:
        raise PromptError(
            f"Prompt {prompt} has {length} tokens, and its position {name}={index} lies outside."
        )
