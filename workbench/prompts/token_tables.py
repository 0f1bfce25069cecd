"""Token ids as other libraries hand them over, without their padding: tensors and arrays, lists, what a
Hugging Face tokenizer returns, data frames.

Read `token_rows`. An attention mask says which tokens a prompt has, at either side. Without one, a table
whose rows begin or end in padding is refused: the model would read the padding as tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from workbench.arguments import LARGEST, shown
from workbench.errors import PromptError
from workbench.models.model import Model

IDS = ("tokens", "input_ids")
MASK = "attention_mask"
# What changes a run and cannot be said by a prompt.
_REFUSED = ("inputs_embeds", "position_ids", "past_key_values")


@dataclass(frozen=True)
class Padding:
    """The token that fills up short rows.

    Attributes:
        token: its id.
        exclusive: whether it means nothing else. GPT-2's also ends a text, which a prompt may well contain.
    """

    token: int
    exclusive: bool = True

    @classmethod
    def of(cls, model: Model) -> "Padding | None":
        """The padding token of the model's tokenizer; None where it has none."""
        tokenizer = getattr(model, "tokenizer", None)
        token = getattr(tokenizer, "pad_token_id", None)
        if token is None:
            return None
        others = ("bos_token_id", "eos_token_id", "unk_token_id")
        return cls(int(token), token not in [getattr(tokenizer, name, None) for name in others])


def token_rows(table: Any, padding: Padding | None) -> list[list[int]] | None:
    """The token ids of each prompt of a table, without padding; None where an entry is a text.

    Args:
        table: [example, pos] as a tensor, an array or lists; a mapping or data frame with `input_ids` or
            `tokens` and perhaps `attention_mask`; or a mapping like that for each prompt.

    Raises:
        PromptError: numbers that are no token ids, a mask with holes or of another shape, or padding without
            a mask.
    """
    if hasattr(table, "columns") and hasattr(table, "to_dict"):
        table = table.to_dict("list")
    if isinstance(table, Mapping):
        rows = list(_rows_of_mapping(table))
    else:
        rows = [_row(f"Prompt {i}", entry) for i, entry in enumerate(_entries(table))]
    if any(not row.is_tokens for row in rows):
        return None
    _check_padding([row for row in rows if row.mask is None], padding)
    return [row.unpadded for row in rows]


def row_tokens(ids: Any, mask: Any, padding: Padding | None, where: str) -> list[int]:
    """The token ids of one prompt, without padding. Raises as `token_rows`; `where` names the prompt."""
    row = _Row(where, ids, mask)
    if mask is None:
        _check_padding([row], padding)
    return row.unpadded


def whole_tokens(ids: Any, where: str) -> list[int]:
    """Token ids as Python's integers. Raises `PromptError` for all else: truth values, fractions, text."""
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
        raise PromptError(f"{where} is {shown(ids)}, neither a text nor a list of token ids.")
    if all(type(token) is int for token in listed):
        tokens = list(listed)
    else:
        # Numbers of numpy and tensors of one number as Python's own.
        plain = [token.tolist() if hasattr(token, "tolist") else token for token in listed]
        # True is an integer of Python, and 5.0 is none though it equals one.
        wrong = [token for token in plain if isinstance(token, bool) or not isinstance(token, Integral)]
        if wrong:
            raise PromptError(f"{where}: token ids are whole numbers, and {shown(wrong[0])} is none.")
        tokens = list(map(int, plain))
    if tokens and max(map(abs, tokens)) > LARGEST:
        raise PromptError(f"{where}: a token id has more than 64 bits.")
    return tokens


@dataclass(frozen=True)
class _Row:
    """A prompt of a table.

    Attributes:
        where: what names it in errors.
        ids: its token ids, padding among them; or a text.
        mask: 1 for each token and 0 for padding; None where nothing says which is which.
    """

    where: str
    ids: Any
    mask: Any = None

    @property
    def is_tokens(self) -> bool:
        """Whether it holds token ids and is not a text."""
        return not isinstance(self.ids, str)

    @property
    def tokens(self) -> list[int]:
        """All of its token ids, padding among them. Raises `PromptError` for what is not a token id."""
        return whole_tokens(self.ids, self.where)

    @property
    def unpadded(self) -> list[int]:
        """The tokens that the mask keeps."""
        tokens = self.tokens
        if self.mask is None:
            return tokens
        mask = self.mask.tolist() if hasattr(self.mask, "tolist") else self.mask
        if (
            not isinstance(mask, Sequence)
            or len(mask) != len(tokens)
            or any(keep not in (0, 1) for keep in mask)
        ):
            raise PromptError(
                f"{self.where}: its attention mask must hold 0 or 1 for each of its {len(tokens)} tokens."
            )
        kept = [i for i, keep in enumerate(mask) if keep]
        if not kept:
            raise PromptError(f"{self.where}: its attention mask keeps no token.")
        first, last = kept[0], kept[-1]
        # Without the tokens in between, those after them would move to other positions.
        if len(kept) != last - first + 1:
            raise PromptError(
                f"{self.where}: its attention mask leaves out tokens in the middle. Masks may leave out "
                "padding at the beginning and at the end."
            )
        return tokens[first : last + 1]


def _entries(table: Any) -> list[Any]:
    """The entries of a table, one for each prompt. Raises `PromptError` for a single prompt."""
    listed = table.tolist() if hasattr(table, "tolist") else table
    entries = list(listed) if isinstance(listed, Sequence) and not isinstance(listed, str | bytes) else None
    # A number among them: a single prompt that is not in a list.
    if entries is None or not all(map(_is_entry, entries)):
        raise PromptError(
            "Prompts are given as [example, pos] token ids or as several texts: "
            "wrap a single prompt in a list."
        )
    return entries


def _is_entry(entry: Any) -> bool:
    """Whether it may be a whole prompt: a text, token ids, or a mapping with them."""
    return isinstance(entry, Sequence | Mapping) or getattr(entry, "ndim", 0) == 1


def _row(where: str, entry: Any) -> "_Row":
    """The row of one prompt by itself."""
    if not isinstance(entry, Mapping):
        return _Row(where, entry)
    return _Row(where, entry[_column(entry, where)], entry.get(MASK))


def _column(table: Mapping[Any, Any], where: str) -> str:
    """The key of the token ids in a mapping. Raises `PromptError` for keys that would change the run."""
    names = [name for name in IDS if name in table]
    if not names:
        listed = ", ".join(map(str, table)) or "nothing"
        raise PromptError(f"{where} needs {' or '.join(map(repr, IDS))}; the mapping has {listed}.")
    refused = [name for name in _REFUSED if table.get(name) is not None]
    if refused:
        raise PromptError(
            f"{where}: {refused[0]!r} is not read. Prompts are token ids, whose positions count from 0."
        )
    return names[0]


def _rows_of_mapping(table: Mapping[Any, Any]) -> Iterator[_Row]:
    """The rows of what a tokenizer returns."""
    rows, masks = _entries(table[_column(table, "A table of prompts")]), table.get(MASK)
    listed_masks: list[Any] = [None] * len(rows)
    if masks is not None:
        listed_masks = list(masks.tolist() if hasattr(masks, "tolist") else masks)
    if len(listed_masks) != len(rows):
        raise PromptError(f"There are {len(rows)} prompts and {len(listed_masks)} attention masks.")
    for i, (ids, mask) in enumerate(zip(rows, listed_masks, strict=True)):
        yield _Row(f"Prompt {i}", ids, mask)


def _check_padding(rows: Sequence[_Row], padding: Padding | None) -> None:
    """Raise `PromptError` where rows of one length, which have no mask, begin or end in padding."""
    tokens = [row.tokens for row in rows]
    if padding is None or len(set(map(len, tokens))) != 1:
        return
    for verb, step in (("ends", -1), ("begins", 1)):
        n_padding = [_n_leading(row[::step], padding.token) for row in tokens]
        longest = max(n_padding)
        # One such token may be meant where it is also BOS or the end of a text: in front of any row, or at
        # the end of all of them.
        is_meant = not padding.exclusive and longest <= 1 and (verb == "begins" or min(n_padding) == longest)
        if longest and not is_meant:
            raise PromptError(
                f"{rows[n_padding.index(longest)].where} {verb} in {longest} of the tokenizer's padding "
                f"token ({padding.token}), which the model would read as tokens. Give what the tokenizer "
                "returned, with its attention_mask; or lists of unequal length; or Prompts.of(rows), "
                "which takes rows as they are."
            )


def _n_leading(row: Sequence[int], token: int) -> int:
    """How many of that token a row begins with."""
    for i, other in enumerate(row):
        if other != token:
            return i
    return len(row)
