"""Prompts, pairs and sites as callers give them, checked: `as_prompts`, `as_sites`, `check_pairs`.

What a caller got wrong is an error from here, before any model runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from workbench.arguments import shown
from workbench.engine.bound import SitePositions
from workbench.engine.bridge import output_vocabulary
from workbench.errors import EditError, PromptError, SiteError
from workbench.models.bos import bos_token
from workbench.models.fingerprint import other_vocabulary
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.encoder import TextEncoder, all_begin_with
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.prompts.token_tables import Padding, token_rows
from workbench.sites import Shape, Site

SiteLike = Site | str
Tokens = Prompts | Tensor | np.ndarray | Sequence[Any] | Mapping[str, Any]
"""What is run: prompts, several texts, token ids [example, pos], or what a tokenizer returns."""


def as_prompts(model: Model, tokens: Tokens) -> Prompts:
    """Prompts from what a caller may have: prompts, texts, token ids in lists or as a tokenizer returns them.

    Raises:
        PromptError: no prompts, a single prompt that is not in a list, an unknown word, a prompt that is too
            long, or padding that no attention mask marks.
    """
    prompts = tokens if isinstance(tokens, Prompts) else _encoded(model, tokens)
    check_context(model, prompts)
    return prompts


def _encoded(model: Model, tokens: Any) -> Prompts:
    """Prompts of texts or token ids."""
    rows = token_rows(tokens, Padding.of(model))
    if rows is not None:
        return Prompts.of(rows, bos=all_begin_with(bos_token(model), rows))
    encode = TextEncoder(model)
    encoded = [encode.prompt(text, where=f"Prompt {i}") for i, text in enumerate(tokens)]
    return encode.prompts(encoded)


def as_sites(element: SiteLike | tuple[SiteLike, ...]) -> tuple[Site, ...]:
    """The sites of one element of an edit or a list: a site, its string form, or a tuple of them."""
    if not isinstance(element, tuple):
        element = (element,)
    sites = []
    for site in element:
        if not isinstance(site, Site | str):
            raise SiteError(f"{shown(site)} is not a site. Write 'z[9.6]', or Site('z', 9, 6).")
        sites.append(Site.parse(site) if isinstance(site, str) else site)
    return tuple(sites)


def check_positions(site: Site, prompts: Prompts) -> None:
    """Raise `EditError` when no prompt has the site's position: an edit there would change nothing."""
    if not bool(SitePositions.of(site, prompts).has.any()):
        longest = int(prompts.lengths.max())
        raise EditError(f"No prompt has the position of {site}: the longest has {longest} tokens.")


def check_context(model: Model, prompts: Prompts) -> None:
    """Raise `PromptError` for prompts over the context length, or of another vocabulary than the model's."""
    if other_vocabulary(prompts.tokenizer, model):
        raise PromptError(
            "These prompts were made with the vocabulary of another model: their token ids mean other words "
            f"to {model_name(model)}. Make them again with this model."
        )
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


def check_answers(model: Model, pairs: PromptPairs) -> None:
    """Raise `PromptError` for answers that the model has no logit of."""
    # Not the vocabulary of its prompts: some models read more tokens than they have logits for.
    size = output_vocabulary(model)
    for name, table in (("answers", pairs.answers), ("wrong", pairs.wrong)):
        largest = int(table.max()) if table.numel() else -1
        if largest >= size:
            raise PromptError(
                f"Token id {largest} among the {name} is outside the vocabulary of {size} that the model has "
                "logits of."
            )


def check_pairs(model: Model, pairs: PromptPairs) -> None:
    """Raise `PromptError` when circuits cannot be run on these pairs: unequal lengths, too many tokens."""
    check_context(model, pairs.clean)
    check_context(model, pairs.corrupt)
    check_answers(model, pairs)
    pairs.check_equal_lengths("Edges and circuits need equal lengths within a pair.")
