"""Edited runs: `run` for one forward pass with edits, and the writes that edits become."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from workbench.engine.values import Bound, Places, Value, apply_edit, check_value
from workbench.engine.hooked.forward import Run, Write, forward
from workbench.errors import EditError, PromptError
from workbench.sites import Key, Shape, Site
from workbench.prompts.pairs import PromptPairs, Prompts, TextEncoder

SiteLike = Site | str


@dataclass(frozen=True)
class Edit:
    """A bound value at a site, for the batch rows `rows` (None: all of them)."""

    site: Site
    bound: Bound
    rows: slice | None = None
    causal: bool = True

    def write(self) -> Write:
        """The write that performs the edit, in place, on the examples that have the site's position."""

        def change(value: Tensor) -> Tensor:
            n = len(self.bound.prompts)
            part = value if self.rows is None else value[self.rows]
            if len(part) != n:
                raise EditError(f"The edit at {self.site} is for {n} prompts and the batch has {len(part)}.")
            apply_edit(self.site, self.bound, part, causal=self.causal)
            return value

        return Write(self.site.kind, self.site.layer, change)


def run(
    model: Any,
    tokens: Prompts | Tensor | Sequence[str] | Sequence[Sequence[int]],
    *,
    edits: Mapping[SiteLike | tuple[SiteLike, ...], Value] | None = None,
    record: Iterable[SiteLike] = (),
    other: Prompts | None = None,
) -> Run:
    """One forward pass with edits: its logits [example, pos, vocab], and the recorded activations by (kind, layer).

    Args:
        tokens: prompts, texts, a tensor [example, pos] without padding, or lists of token ids.
        edits: site (or a tuple of sites) → value.
        record: sites whose whole activation (after the edits) is kept.
        other: the other side of the pairs, which `from_store` matches by.

    Raises:
        SiteError: the model lacks a site.  EditError: an edit did not run.  ModelError: train mode.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> result = wb.run(model, [[0, 5, 7]], edits={"z[1.2]": wb.zero()}, record=["resid_post[3]"])
    >>> tuple(result.recorded["resid_post", 3].shape)
    (1, 3, 128)
    """
    prompts = as_prompts(model, tokens)
    made = []
    for sites, value in (edits or {}).items():
        bound = check_value(value).bind(model, prompts, other)
        for site in as_sites(sites):
            check_positions(site.check(model), prompts)
            made.append(Edit(site, bound, causal=Shape.of(model).causal))
    keys: list[Key] = [site.key for place in record for site in as_sites(place) if site.check(model)]
    return forward(model, prompts.tokens, writes=[edit.write() for edit in made], record=keys)


def as_prompts(model: Any, tokens: Prompts | Tensor | Sequence[str] | Sequence[Sequence[int]]) -> Prompts:
    """Prompts from what a caller may have: prompts, texts, a token tensor, or lists of token ids.

    Raises:
        PromptError: nothing, a single prompt that is not in a list, an unknown word, too long a prompt.
    """
    if not isinstance(tokens, Prompts):
        rows = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        if isinstance(rows, str) or (len(rows) and not isinstance(rows[0], str | list | tuple | Tensor)):
            raise PromptError(
                "Prompts are given as [example, pos] token ids or as several texts: wrap a single prompt in a list."
            )
        if len(rows) and isinstance(rows[0], str):
            encode = TextEncoder(model)
            rows = [encode.prompt(str(text), where=f"Prompt {i}") for i, text in enumerate(rows)]
            tokens = Prompts.of(rows, strings=encode.labels(rows), bos=encode.bos)
        else:
            first = getattr(getattr(model, "tokenizer", None), "bos_token_id", None)
            tokens = Prompts.of(rows, bos=first is not None and all(len(row) and row[0] == first for row in rows))  # pyright: ignore[reportArgumentType]
    check_context(model, tokens)
    return tokens


def as_sites(place: SiteLike | tuple[SiteLike, ...]) -> tuple[Site, ...]:
    """The sites of one element of an edit or a list: a site, its string form, or a tuple of them."""
    given = place if isinstance(place, tuple) else (place,)
    return tuple(Site.parse(site) if isinstance(site, str) else site for site in given)


def check_positions(site: Site, prompts: Prompts) -> None:
    """Raise `EditError` when no prompt has the site's position, so that an edit there would change nothing."""
    if not bool(Places.of(site, prompts).has.any()):
        longest = int(prompts.lengths.max())
        raise EditError(f"No prompt has the position of {site}: the longest has {longest} tokens.")


def check_context(model: Any, prompts: Prompts) -> None:
    """Raise `PromptError` for prompts over the context length or token ids outside the vocabulary."""
    shape = Shape.of(model)
    longest = int(prompts.lengths.max())
    if longest > shape.n_ctx:
        i = int(prompts.lengths.argmax())
        raise PromptError(f"Prompt {i} has {longest} tokens; the model's context holds {shape.n_ctx}.")
    outside = (prompts.tokens < 0) | (prompts.tokens >= shape.d_vocab)
    if bool(outside.any()):
        token = int(prompts.tokens[outside][0])
        raise PromptError(f"Token id {token} is outside the model's vocabulary of {shape.d_vocab}.")


def stacked(tokens: Tensor, times: int) -> Tensor:
    """The batch repeated `times` times, copy after copy."""
    return tokens.repeat(times, *[1] * (tokens.ndim - 1)) if times != 1 else tokens


def check_pairs(model: Any, pairs: PromptPairs) -> None:
    """Raise `PromptError` when circuits cannot be run on these pairs: unequal lengths, prompts over the context."""
    if not isinstance(pairs, PromptPairs):
        raise PromptError(f"Pairs are wb.PromptPairs, as from wb.load_task(...), not {type(pairs).__name__}.")
    check_context(model, pairs.clean)
    check_context(model, pairs.corrupt)
    pairs.check_equal_lengths("Edges and circuits need equal lengths within a pair.")
