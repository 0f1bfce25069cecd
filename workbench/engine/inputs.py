"""Prompts, pairs and sites as callers give them, checked: `as_prompts`, `as_sites`, `check_pairs`.

What a caller got wrong is an error from here, before any model runs.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workbench.engine.bound import SitePositions
from workbench.errors import EditError, PromptError
from workbench.models.model import Model
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Shape, Site

SiteLike = Site | str


def as_prompts(model: Model, tokens: Prompts | Tensor | Sequence[str] | Sequence[Sequence[int]]) -> Prompts:
    """Prompts from what a caller may have: prompts, texts, a token tensor, or lists of token ids.

    Raises:
        PromptError: no prompts, a single prompt that is not in a list, an unknown word, a prompt that is too
            long.
    """
    prompts = tokens if isinstance(tokens, Prompts) else _encoded(model, tokens)
    check_context(model, prompts)
    return prompts


def _encoded(model: Model, tokens: Tensor | Sequence[str] | Sequence[Sequence[int]]) -> Prompts:
    """Prompts of texts or token ids."""
    rows: Any = tokens
    if isinstance(tokens, Tensor):
        rows = tokens.tolist()
    # A string is a sequence too: without this, each of its letters would become a prompt.
    if isinstance(rows, str) or (len(rows) and not isinstance(rows[0], str | list | tuple | Tensor)):
        raise PromptError(
            "Prompts are given as [example, pos] token ids or as several texts: "
            "wrap a single prompt in a list."
        )
    if len(rows) and isinstance(rows[0], str):
        encode = TextEncoder(model)
        rows = [encode.prompt(str(text), where=f"Prompt {i}") for i, text in enumerate(rows)]
        return Prompts.of(rows, strings=encode.labels(rows), bos=encode.bos)
    # Token ids do not say whether their first is a BOS: it is one where every prompt begins with it.
    bos_token = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
    bos = bos_token is not None and all(len(row) and row[0] == bos_token for row in rows)
    return Prompts.of(rows, bos=bos)


def as_sites(element: SiteLike | tuple[SiteLike, ...]) -> tuple[Site, ...]:
    """The sites of one element of an edit or a list: a site, its string form, or a tuple of them."""
    if not isinstance(element, tuple):
        element = (element,)
    return tuple(Site.parse(site) if isinstance(site, str) else site for site in element)


def check_positions(site: Site, prompts: Prompts) -> None:
    """Raise `EditError` when no prompt has the site's position: an edit there would change nothing."""
    if not bool(SitePositions.of(site, prompts).has.any()):
        longest = int(prompts.lengths.max())
        raise EditError(f"No prompt has the position of {site}: the longest has {longest} tokens.")


def check_context(model: Model, prompts: Prompts) -> None:
    """Raise `PromptError` for prompts over the context length or token ids outside the vocabulary."""
    shape = Shape.of(model)
    longest = int(prompts.lengths.max())
    # Refused here, because models do not agree on it: learned positions raise an index error, rotary ones
    # run on and give numbers outside of what was trained.
    if longest > shape.n_ctx:
        i = int(prompts.lengths.argmax())
        raise PromptError(f"Prompt {i} has {longest} tokens; the model's context holds {shape.n_ctx}.")
    outside = (prompts.tokens < 0) | (prompts.tokens >= shape.d_vocab)
    if bool(outside.any()):
        token = int(prompts.tokens[outside][0])
        raise PromptError(f"Token id {token} is outside the model's vocabulary of {shape.d_vocab}.")


def stacked(tokens: Tensor, times: int) -> Tensor:
    """The batch repeated `times` times, copy after copy."""
    if times == 1:
        return tokens  # `repeat` would copy
    return tokens.repeat(times, *[1] * (tokens.ndim - 1))


def check_pairs(model: Model, pairs: PromptPairs) -> None:
    """Raise `PromptError` when circuits cannot be run on these pairs: unequal lengths, too many tokens."""
    if not isinstance(pairs, PromptPairs):
        raise PromptError(f"Pairs are wb.PromptPairs, as from wb.load_task(...), not {type(pairs).__name__}.")
    check_context(model, pairs.clean)
    check_context(model, pairs.corrupt)
    pairs.check_equal_lengths("Edges and circuits need equal lengths within a pair.")
