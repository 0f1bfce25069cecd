"""Values read from a store of activations: `FromStore` (patching), `Mean` and `Resample` (ablations).

Each is checked against the model and the prompts when it is bound; the rows are read when they are written.
Use the functions `from_store`, `mean` and `resample` of `values.py` to make one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.engine.bound import Bound, SitePositions, Value
from workbench.errors import EditError, PromptError, StoreError
from workbench.models.fingerprint import model_fingerprint, other_vocabulary
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Position, Site
from workbench.stores.store import ActivationStore

# What depends on the token at its own position only, so that equal tokens mean equal activations.
_OWN_TOKEN = ("embed", "pos_embed")
_FIRST_LAYER = (("resid_pre", 0), ("q", 0), ("k", 0), ("v", 0))


@dataclass(frozen=True, eq=False)
class Mean(Value):
    """The mean activation of a store: over all rows but BOS, or per position."""

    unitwise = True
    absolute = True
    store: ActivationStore
    per: str = "dataset"

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """Averages for these prompts. Raises `StoreError` for a store of another model."""
        check_same_model(self.store, model, "mean")
        return _MeanBound(self, prompts)

    @property
    def covers_answers(self) -> bool:
        """One average for all tokens does; averages of positions know none beyond the store's prompts."""
        return self.per == "dataset"

    def describe(self) -> str:
        """`mean(dataset)` or `mean(pos)`."""
        return f"mean({self.per})"


@dataclass(frozen=True, eq=False)
class FromStore(Value):
    """The activations of the other run of the same pairs."""

    unitwise = True
    absolute = True
    store: ActivationStore
    allow_self: bool = False
    other_model: bool = False

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """The row of each prompt's counterpart.

        Raises:
            StoreError: the store is of another model, or does not hold these prompts.
            EditError: it holds the very run that is edited.
        """
        if not self.other_model:
            hint = " For another checkpoint of the same shape pass other_model=True."
            check_same_model(self.store, model, "from_store", hint=hint)
        rows = [self._row(i, prompts, other) for i in range(len(prompts))]
        return _StoreBound(self, prompts, self.store, rows, rounded=_is_rounded(self.store, model))

    def describe(self) -> str:
        """`from_store`."""
        return "from_store"

    def _row(self, i: int, prompts: Prompts, other: Prompts | None) -> int:
        """The store's row for prompt i: that of its counterpart, or, where that is wanted, its own."""
        # The counterpart first: a store of both sides then patches, and does not write what is there.
        row = None if other is None else self.store.example(other.ids[i])
        if row is not None:
            return row
        row = self.store.example(prompts.ids[i])
        if row is None:
            raise StoreError(
                f"Prompt {i} of these pairs ({prompts.ids[i][:8]}) is not in the store: it holds "
                f"{len(self.store.prompts)} prompts ({self.store.prompts.fingerprint[:8]}) of other pairs. "
                "Capture these with wb.capture_pairs(model, pairs)."
            )
        if not self.allow_self:
            raise EditError(
                f"The store holds the very run that is edited (prompt {i}), so patching from it changes "
                "nothing. Pass the store of the other side, or from_store(..., allow_self=True)."
            )
        return row


@dataclass(frozen=True, eq=False)
class Resample(Value):
    """The activations of another prompt of equal length, the same donor for every site."""

    unitwise = True
    absolute = True
    store: ActivationStore
    seed: int = 0

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """A donor for each prompt.

        Raises:
            StoreError: the store is of another model.
            EditError: it has no other prompt of a prompt's length.
        """
        check_same_model(self.store, model, "resample")
        # Chosen once for a run: all sites together are then activations of one real prompt.
        rows = [self._donor(i, prompts) for i in range(len(prompts))]
        return _StoreBound(self, prompts, self.store, rows, rounded=_is_rounded(self.store, model))

    def describe(self) -> str:
        """`resample(seed=0)`."""
        return f"resample(seed={self.seed})"

    def _donor(self, i: int, prompts: Prompts) -> int:
        """The store's row that stands in for prompt i."""
        ids, prompt_id = self.store.prompts.ids, prompts.ids[i]
        equal_length = (self.store.prompts.lengths == prompts.lengths[i]).nonzero().flatten().tolist()
        donors = [row for row in equal_length if ids[row] != prompt_id]
        if not donors:
            raise EditError(
                f"resample: the store has no other prompt of {int(prompts.lengths[i])} tokens for prompt "
                f"{i}. Capture more prompts, or use mean(store)."
            )
        # A hash and not a random generator: the donor must not depend on the other prompts of the batch.
        return donors[xxhash.xxh3_64_intdigest(f"{self.seed} {prompt_id}".encode()) % len(donors)]


class _MeanBound(Bound):
    """Averages of a store, each computed once."""

    def __init__(self, value: Mean, prompts: Prompts) -> None:
        super().__init__(value, prompts)
        self._averages: dict[tuple[Key, Position | None], Tensor] = {}
        self.mean = value

    def select(self, examples: Sequence[int]) -> Bound:
        """The same averages for some of the prompts."""
        return _MeanBound(self.mean, self.prompts.select(examples))

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The average of the site's head or neuron, or of the whole layer."""
        if site.kind == "pattern":
            raise EditError(
                "A mean attention pattern is not defined for prompts of different length: use from_store or "
                "constant."
            )
        key = (site.key, site.pos if self.mean.per == "pos" else None)
        if key not in self._averages:
            self._averages[key] = self._average(site)
        # Averages are of the whole activation, with an axis of positions or without, so units are indexed
        # from the end.
        average = self._averages[key]
        if site.unit is None:
            return average.to(current)
        if KINDS[site.kind].unit == "neuron":
            return average[..., site.unit].to(current)
        return average[..., site.unit, :].to(current)  # a head is followed by an axis of its own

    def _average(self, site: Site) -> Tensor:
        """The mean over rows (without BOS), at one position, or at every index [pos, ...]."""
        view = self.mean.store[site.key]
        if self.mean.per == "dataset":
            return view.mean()
        # Prompts that lack the position are NaN in `view.at`: the mean is over the others.
        if site.pos is not None:
            average = _mean_of_known(view.at(site.pos))
        else:
            longest = int(self.prompts.lengths.max())
            average = torch.stack([_mean_of_known(view.at(index)) for index in range(longest)])
        if bool(average.isnan().any()):
            raise EditError(
                f"mean: no prompt of the store has every position of {site}, so there is nothing to average "
                "there."
            )
        return average


class _StoreBound(Bound):
    """Rows of a store that stand in for the prompts of a run.

    Args:
        rows: of the store, one for each prompt; `source` are the prompts that they belong to.
        rounded: whether the store has rounded its rows, so that none is what the model computes again.
    """

    def __init__(
        self, value: Value, prompts: Prompts, store: ActivationStore, rows: list[int], *, rounded: bool
    ) -> None:
        super().__init__(value, prompts)
        self.rounded = rounded
        self.store, self.rows, self.source = store, rows, store.prompts.select(rows)
        # The activation read last: edits of one layer's heads come one after another, and all need it.
        self._padded: tuple[Key, Tensor] | None = None

    def select(self, examples: Sequence[int]) -> Bound:
        """The same rows for some of the prompts."""
        prompts, rows = self.prompts.select(examples), [self.rows[i] for i in examples]
        return _StoreBound(self.value, prompts, self.store, rows, rounded=self.rounded)

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The source's activation at its own position of that name.

        Raises:
            PromptError: the site is not a named position, and a prompt and its source differ in length.
        """
        if not _is_at_a_name(site):
            self._check_equal_lengths(site)
        if self._padded is None or self._padded[0] != site.key:
            self._padded = (site.key, self.store[site.key].padded(self.rows).to(current.device))
        activation = self._padded[1]
        return activation[SitePositions.of(site, self.source).indices(activation)].to(current.dtype)

    def has(self, site: Site) -> Bool[Tensor, "example"]:
        """Whether both the prompt and its source have the site's position."""
        return super().has(site) & SitePositions.of(site, self.source).has

    # Cached, because every element of a sweep asks for it.
    @cached_property
    def same_tokens(self) -> Bool[Tensor, "example pos"]:
        """Whether the prompt and its source have the same token there, and the store what the model has."""
        own, source = self.prompts, self.source
        width = min(own.tokens.shape[1], source.tokens.shape[1])
        same = torch.zeros(own.tokens.shape, dtype=torch.bool)
        same[:, :width] = (own.tokens[:, :width] == source.tokens[:, :width]).cpu()
        lengths = torch.minimum(own.lengths, source.lengths)[:, None]
        inside = torch.arange(own.tokens.shape[1]) < lengths
        return same & inside & (not self.rounded and not getattr(self.value, "other_model", False))

    def first_change(self, site: Site) -> Int[Tensor, "example"]:
        """Until their tokens differ, the two runs are equal (attention is causal), so nothing changes."""
        first, same = super().first_change(site), self.same_tokens
        n_alike = same.long().cumprod(1).sum(1)  # activations cannot differ before the first token that does
        if site.pos is None:
            return torch.maximum(first, n_alike)
        position = first.clamp(max=same.shape[1] - 1)
        if site.kind in _OWN_TOKEN or site.key in _FIRST_LAYER:
            unchanged = same[torch.arange(len(first)), position]
        else:
            unchanged = position < n_alike
        # A name may mean another index in the source: then even equal beginnings say nothing.
        source_first = SitePositions.of(site, self.source).first
        aligned = torch.equal(source_first, SitePositions.of(site, self.prompts).first)
        return torch.where(unchanged & aligned, self.prompts.lengths, first)

    def _check_equal_lengths(self, site: Site) -> None:
        uneven = (self.source.lengths != self.prompts.lengths).nonzero()
        if len(uneven):
            i = int(uneven[0])
            raise PromptError(
                f"Pair {i} has {int(self.prompts.lengths[i])} and {int(self.source.lengths[i])} tokens, so "
                f"{site} does not line up. Use named positions (pos=['END']), or pairs of equal length."
            )


def check_same_model(store: ActivationStore, model: Model, caller: str, hint: str = "") -> None:
    """Raise `StoreError` for a store of another model, or of the same weights with another vocabulary.

    Args:
        caller: the function that was given the store, for the message.
        hint: what else to do, at the end of the message about another model.
    """
    if store.model != model_fingerprint(model):
        raise StoreError(
            f"{caller}: the store is of the model {store.model_name} ({store.model[:8]}), not of "
            f"{model_name(model)} ({model_fingerprint(model)[:8]}).{hint}"
        )
    if other_vocabulary(store.tokenizer, model):
        raise StoreError(
            f"{caller}: the store's prompts were made with another vocabulary than that of "
            f"{model_name(model)}: their token ids mean other words to it. Capture them again."
        )


def _is_rounded(store: ActivationStore, model: Model) -> bool:
    """Whether some rows of the store are of a precision that cannot hold the model's numbers."""
    exact = next(model.parameters()).dtype
    dtypes = {store[key].dtype for key in store.keys}
    return any(torch.promote_types(dtype, exact) != dtype for dtype in dtypes)


def _mean_of_known(rows: Tensor) -> Tensor:
    """[...]: the mean of rows [example, ...] but NaN ones; sums of half precision would overflow."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).nanmean(0)


def _is_at_a_name(site: Site) -> bool:
    """Whether the site is at a named position only, so that prompts of different length line up there."""
    positions = [site.pos, site.key_pos] if site.kind == "pattern" else [site.pos]
    return all(isinstance(position, str) for position in positions)
