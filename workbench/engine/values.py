"""What is written at a site: the values, and how one becomes numbers for given prompts.

A `Value` is a frozen description (`zero()`, `mean(store)`, `add(vector)`); `value.bind(model, prompts, other)` checks
it against the model and the prompts of a run and returns a `Bound`, which maps the current activation of a site to the
new one. Values never know where they are used; sites never know what is done to them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import xxhash
from torch import Tensor

from workbench.errors import EditError, PromptError, StoreError, UnknownName
from workbench.models.load import model_fingerprint, model_name
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Position, Site
from workbench.stores.store import ActivationStore

_OWN_TOKEN = ("embed", "pos_embed")
_FIRST_LAYER = (("resid_pre", 0), ("q", 0), ("k", 0), ("v", 0))
"""What depends on the token at its own position only."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where a site's positions are in each example: position axis → [example], and which examples have them all."""

    site: Site
    index: Mapping[str, Tensor]
    has: Tensor

    @classmethod
    def of(cls, site: Site, prompts: Prompts) -> "Places":
        query = "query_pos" if site.kind == "pattern" else "pos"
        wanted = {
            axis: where for axis, where in ((query, site.pos), ("key_pos", site.key_pos)) if where is not None
        }
        found = {axis: prompts.at(where) for axis, where in wanted.items()}
        has = torch.ones(len(prompts), dtype=torch.bool)
        for where in found.values():
            has = has & (where >= 0)
        if len(found) == 2:
            has = has & (found["key_pos"] <= found[query])  # a query does not see later keys
        return cls(site, {axis: where.clamp(min=0) for axis, where in found.items()}, has)

    @property
    def first(self) -> Tensor:
        """[example]: the first token of the site; 0 where it is the whole sequence."""
        return self.index.get(
            "query_pos", self.index.get("pos", torch.zeros(len(self.has), dtype=torch.long))
        )

    def part(self, activation: Tensor) -> tuple[Any, ...]:
        """An index into an activation [example, ...] that picks the site's part of it."""
        picked: list[Any] = []
        for axis in KINDS[self.site.kind].axes:
            if axis == "example":
                picked.append(
                    torch.arange(len(self.has), device=activation.device) if self.index else slice(None)
                )
            elif axis in self.index:
                picked.append(self.index[axis].to(activation.device))
            elif axis in ("head", "kv_head", "neuron") and self.site.unit is not None:
                picked.append(self.site.unit)
            else:
                picked.append(slice(None))
        return tuple(picked)


class Bound:
    """A value made ready for one run: for these prompts, in this order."""

    def __init__(self, value: "Value", prompts: Prompts) -> None:
        self.value, self.prompts = value, prompts

    @property
    def reach(self) -> Tensor:
        """[example]: how many of its tokens the value may be written at; what comes behind them is left as it is."""
        return self.prompts.lengths

    def select(self, examples: Sequence[int]) -> "Bound":
        """The same value for some of the prompts; nothing is checked again."""
        return Bound(self.value, self.prompts.select(examples))

    def edited(self, site: Site, current: Tensor) -> Tensor:
        """The new value of the site's part of an activation, `current` [example, ...] being the part as it is."""
        try:
            new = self.new(site, current).expand_as(current)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EditError(
                f"{self.value.describe()} does not fit {site}, whose value has shape {tuple(current.shape)} "
                f"(the first axis is the example): {error}"
            ) from error
        if bool(new.isnan().any()) and not bool(current.isnan().any()):
            raise EditError(
                f"{self.value.describe()} is not a number at {site}, so nothing after it would be either."
            )
        return new

    def new(self, site: Site, current: Tensor) -> Tensor:
        """What is written at the site; anything that broadcasts to `current`."""
        return self.value.replace(current)

    def has(self, site: Site) -> Tensor:
        """[example]: whether the prompt, and whatever stands in for it, has the site's position."""
        return Places.of(site, self.prompts).has

    def first_change(self, site: Site) -> Tensor:
        """[example]: a position before which the edit cannot change a run; the prompt's length where it changes nothing."""
        places = Places.of(site, self.prompts)
        return places.first.where(places.has, self.prompts.lengths)


@dataclass(frozen=True, eq=False)
class Value:
    """What is written at a site. Use the functions of this module to make one.

    A kind of value implements `replace`, if the current activation is all it needs, or a `bind` of its own.

    `unitwise`: writing a whole layer writes to each head or neuron what writing that one alone would.
    `absolute`: what is written does not depend on what is there.
    """

    unitwise: ClassVar[bool] = False
    absolute: ClassVar[bool] = False

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """Check the value against a model and a run's prompts (`other`: the other side of the pairs)."""
        return Bound(self, prompts)

    def describe(self) -> str:
        """The name that results carry."""
        return type(self).__name__.lower()

    def replace(self, current: Tensor) -> Tensor:
        """The new value from the current one."""
        raise EditError(f"{type(self).__name__} does not say what is written.")


@dataclass(frozen=True, eq=False)
class Zero(Value):
    unitwise = True
    absolute = True

    def replace(self, current: Tensor) -> Tensor:
        return torch.zeros_like(current)


@dataclass(frozen=True, eq=False)
class Constant(Value):
    absolute = True
    content: Any

    def replace(self, current: Tensor) -> Tensor:
        return torch.as_tensor(self.content, dtype=current.dtype, device=current.device)


@dataclass(frozen=True, eq=False)
class Add(Value):
    vector: Any

    def replace(self, current: Tensor) -> Tensor:
        return current + torch.as_tensor(self.vector, dtype=current.dtype, device=current.device).expand_as(
            current
        )


@dataclass(frozen=True, eq=False)
class Scale(Value):
    unitwise = True
    factor: float

    def replace(self, current: Tensor) -> Tensor:
        return current * self.factor

    def describe(self) -> str:
        return f"scale({self.factor})"


@dataclass(frozen=True, eq=False)
class Mean(Value):
    unitwise = True
    absolute = True
    store: ActivationStore
    per: str = "dataset"

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        _check_same_model(self.store, model, "mean")
        return _MeanBound(self, prompts)

    def describe(self) -> str:
        return f"mean({self.per})"


@dataclass(frozen=True, eq=False)
class FromStore(Value):
    unitwise = True
    absolute = True
    store: ActivationStore
    allow_self: bool = False
    other_model: bool = False

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        if not self.other_model:
            hint = " For another checkpoint of the same shape pass other_model=True."
            _check_same_model(self.store, model, "from_store", hint=hint)
        rows = [self._row(i, prompts, other) for i in range(len(prompts))]
        return _StoreBound(self, prompts, self.store, rows)

    def describe(self) -> str:
        return "from_store"

    def _row(self, i: int, prompts: Prompts, other: Prompts | None) -> int:
        """The store's row for prompt i: that of its counterpart, or, where that is wanted, its own."""
        row = None if other is None else self.store.example(other.ids[i])
        if row is None:
            row = self.store.example(prompts.ids[i])
            if row is not None and not self.allow_self:
                raise EditError(
                    f"The store holds the very run that is edited (prompt {i}), so patching from it changes nothing. "
                    "Pass the store of the other side, or from_store(..., allow_self=True)."
                )
        if row is None:
            raise StoreError(
                f"Prompt {i} of these pairs ({prompts.ids[i][:8]}) is not in the store: it holds {len(self.store.prompts)} prompts "
                f"({self.store.prompts.fingerprint[:8]}) of other pairs. Capture these with wb.capture_pairs(model, pairs)."
            )
        return row


@dataclass(frozen=True, eq=False)
class Resample(Value):
    unitwise = True
    absolute = True
    store: ActivationStore
    seed: int = 0

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        _check_same_model(self.store, model, "resample")
        ids, rows = self.store.prompts.ids, []
        for i, prompt_id in enumerate(prompts.ids):
            equal = (self.store.prompts.lengths == prompts.lengths[i]).nonzero().flatten().tolist()
            donors = [j for j in equal if ids[j] != prompt_id]
            if not donors:
                raise EditError(
                    f"resample: the store has no other prompt of {int(prompts.lengths[i])} tokens for prompt {i}. "
                    "Capture more prompts, or use mean(store)."
                )
            rows.append(donors[xxhash.xxh3_64_intdigest(f"{self.seed} {prompt_id}".encode()) % len(donors)])
        return _StoreBound(self, prompts, self.store, rows)

    def describe(self) -> str:
        return f"resample(seed={self.seed})"


@dataclass(frozen=True, eq=False)
class Project(Value):
    basis: Tensor
    value: Value

    @cached_property
    def directions(self) -> Tensor:
        """[d, rank]: an orthonormal basis of what the given vectors span."""
        basis = self.basis[:, None] if self.basis.ndim == 1 else self.basis
        left, sizes, _ = torch.linalg.svd(basis.double(), full_matrices=False)
        return left[:, sizes > sizes.amax() * max(basis.shape) * torch.finfo(torch.float32).eps]

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        if self.directions.shape[1] == 0:
            raise EditError(
                "project: the basis is zero, so it spans no direction and the edit would change nothing."
            )
        return _ProjectBound(self, prompts, self.directions, self.value.bind(model, prompts, other))

    def describe(self) -> str:
        return f"project(rank {self.directions.shape[1]}, {self.value.describe()})"


class _MeanBound(Bound):
    """Averages of a store, each computed once."""

    def __init__(self, value: Mean, prompts: Prompts) -> None:
        super().__init__(value, prompts)
        self._averages: dict[tuple[Key, Position | None], Tensor] = {}
        self.mean = value

    def select(self, examples: Sequence[int]) -> Bound:
        return _MeanBound(self.mean, self.prompts.select(examples))

    def new(self, site: Site, current: Tensor) -> Tensor:
        if site.kind == "pattern":
            raise EditError(
                "A mean attention pattern is not defined for prompts of different length: use from_store or constant."
            )
        at = (site.key, site.pos if self.mean.per == "pos" else None)
        if at not in self._averages:
            self._averages[at] = self._average(site)
        average = self._averages[at]
        if site.unit is not None:
            average = (
                average[..., site.unit] if KINDS[site.kind].unit == "neuron" else average[..., site.unit, :]
            )
        return average.to(current)

    def _average(self, site: Site) -> Tensor:
        """The mean over rows (without BOS), at one place, or at every index [pos, ...]."""
        view = self.mean.store[site.key]
        if self.mean.per == "dataset":
            return view.mean()
        if site.pos is not None:
            average = view.at(site.pos).nanmean(0)
        else:
            average = torch.stack([view.at(i).nanmean(0) for i in range(int(self.prompts.lengths.max()))])
        if bool(average.isnan().any()):
            raise EditError(
                f"mean: no prompt of the store has every position of {site}, so there is nothing to average there."
            )
        return average


class _StoreBound(Bound):
    """Rows of a store that stand in for the prompts of a run; `source` are the prompts they belong to."""

    def __init__(self, value: Value, prompts: Prompts, store: ActivationStore, rows: list[int]) -> None:
        super().__init__(value, prompts)
        self.store, self.rows, self.source = store, rows, store.prompts.select(rows)
        self._padded: tuple[Key, Tensor] | None = None

    def select(self, examples: Sequence[int]) -> Bound:
        return _StoreBound(
            self.value, self.prompts.select(examples), self.store, [self.rows[i] for i in examples]
        )

    def new(self, site: Site, current: Tensor) -> Tensor:
        if not _named(site):
            uneven = (self.source.lengths != self.prompts.lengths).nonzero()
            if len(uneven):
                i = int(uneven[0])
                raise PromptError(
                    f"Pair {i} has {int(self.prompts.lengths[i])} and {int(self.source.lengths[i])} tokens, so {site} does not "
                    "line up. Use named positions (pos=['END']), or pairs of equal length."
                )
        if self._padded is None or self._padded[0] != site.key:
            self._padded = (site.key, self.store[site.key].padded(self.rows).to(current.device))
        table = self._padded[1]
        return table[Places.of(site, self.source).part(table)].to(current.dtype)

    def has(self, site: Site) -> Tensor:
        return super().has(site) & Places.of(site, self.source).has

    @cached_property
    def same_tokens(self) -> Tensor:
        """[example, pos]: whether the prompt and its source have the same token there, in the same model."""
        mine, theirs = self.prompts, self.source
        shared = min(mine.tokens.shape[1], theirs.tokens.shape[1])
        same = torch.zeros(mine.tokens.shape, dtype=torch.bool)
        same[:, :shared] = (mine.tokens[:, :shared] == theirs.tokens[:, :shared]).cpu()
        inside = torch.arange(mine.tokens.shape[1]) < torch.minimum(mine.lengths, theirs.lengths)[:, None]
        return same & inside & (not getattr(self.value, "other_model", False))

    def first_change(self, site: Site) -> Tensor:
        """Where the two runs have had the same tokens so far, they are the same (attention is causal)."""
        first, same = super().first_change(site), self.same_tokens
        alike = same.long().cumprod(1).sum(1)
        if site.pos is None:
            return torch.maximum(first, alike)
        place = first.clamp(max=same.shape[1] - 1)
        there = torch.equal(Places.of(site, self.source).first, Places.of(site, self.prompts).first)
        own = (
            same[torch.arange(len(first)), place]
            if site.kind in _OWN_TOKEN or site.key in _FIRST_LAYER
            else place < alike
        )
        return torch.where(own & there, self.prompts.lengths, first)


class _ProjectBound(Bound):
    """Another bound value's part within a subspace."""

    def __init__(self, value: Value, prompts: Prompts, directions: Tensor, inner: Bound) -> None:
        super().__init__(value, prompts)
        self.directions, self.inner = directions, inner

    def select(self, examples: Sequence[int]) -> Bound:
        inner = self.inner.select(examples)
        return _ProjectBound(self.value, inner.prompts, self.directions, inner)

    def new(self, site: Site, current: Tensor) -> Tensor:
        directions = self.directions.to(current)
        return current + ((self.inner.edited(site, current) - current) @ directions) @ directions.T

    def has(self, site: Site) -> Tensor:
        return self.inner.has(site)

    def first_change(self, site: Site) -> Tensor:
        return self.inner.first_change(site)


def _check_store(store: object, what: str) -> ActivationStore:
    if not isinstance(store, ActivationStore):
        raise StoreError(
            f"{what}: a store is expected, not {type(store).__name__}. Make one with capture or capture_pairs."
        )
    return store


def _named(site: Site) -> bool:
    """Whether the site means a named place only, so that prompts of different length line up there."""
    places = [site.pos, site.key_pos] if site.kind == "pattern" else [site.pos]
    return all(isinstance(place, str) for place in places)


def from_store(store: ActivationStore, *, allow_self: bool = False, other_model: bool = False) -> Value:
    """The activations of the other run of the same pairs, matched by prompt id (activation patching).

    `allow_self` permits the store of the run that is edited; `other_model` one of another checkpoint of the same shape.

    Raises (when it is used):
        StoreError: the store is of another model, or does not hold these prompts.
        EditError: it holds the very run that is edited.
    """
    return FromStore(_check_store(store, "from_store"), allow_self, other_model)


def zero() -> Value:
    """Zeros (zero ablation)."""
    return Zero()


def mean(store: ActivationStore, *, per: Literal["dataset", "pos"] | str = "dataset") -> Value:
    """The store's mean activation: over all rows but BOS ("dataset"), or per position ("pos": the same index or name)."""
    if per not in ("dataset", "pos"):
        raise UnknownName("per", per, ("dataset", "pos"))
    return Mean(_check_store(store, "mean"), per)


def resample(store: ActivationStore, seed: int = 0) -> Value:
    """The activations of one other prompt of equal length per example, the same donor for every site."""
    return Resample(_check_store(store, "resample"), seed)


def constant(content: Any) -> Value:
    """A given number or tensor that fits the site's last axes."""
    return Constant(content)


def add(vector: Any) -> Value:
    """The current activation plus a vector (steering)."""
    return Add(vector)


def scale(factor: float) -> Value:
    """The current activation times a number."""
    return Scale(factor)


def project(basis: Tensor, value: Value) -> Value:
    """Another value's part within a subspace, the current activation outside it (interchange of subspaces).

    Args:
        basis: [d] or [d, rank]; it need not be orthonormal.
    """
    if basis.ndim not in (1, 2) or not bool(torch.isfinite(basis).all()):
        raise EditError(f"project: a basis is [d] or [d, rank] of finite numbers, not {tuple(basis.shape)}.")
    return Project(basis, check_value(value))


def value_named(name: str, *, own: ActivationStore, other: ActivationStore, seed: int = 0) -> Value:
    """The value that a command calls `from_store` (the other run), `zero`, `mean` or `resample` (of the run's own store)."""
    known = {
        "from_store": lambda: from_store(other),
        "zero": zero,
        "mean": lambda: mean(own),
        "resample": lambda: resample(own, seed),
    }
    return known[name]()


def apply_edit(site: Site, bound: Bound, activation: Tensor, *, causal: bool = True) -> Tensor:
    """Write the bound value at a site into a whole activation [example, ...], in place, where the prompts have the site.

    Attention patterns are written only where a query sees a key, and nothing beyond a prompt's end is written to them.
    """
    where, has = Places.of(site, bound.prompts).part(activation), bound.has(site).to(activation.device)
    current = activation[where]
    edited = bound.edited(site, current).to(activation.dtype)
    if site.kind == "pattern" and (site.pos is None or site.key_pos is None):
        seen = _seen(bound.prompts, activation.shape[-2:], causal).to(activation.device)[:, None]
        edited = torch.where(seen.expand_as(activation)[where], edited, current)
    activation[where] = (
        edited if bool(has.all()) else torch.where(has.view(-1, *[1] * (current.ndim - 1)), edited, current)
    )
    return activation


def _seen(prompts: Prompts, shape: Sequence[int], causal: bool) -> Tensor:
    """[example, query, key]: whether that query of the prompt sees that key of it."""
    queries, keys = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    inside = (queries < prompts.lengths[:, None, None]) & (keys < prompts.lengths[:, None, None])
    return inside & (keys <= queries) if causal else inside


def check_value(value: object) -> Value:
    """The value itself; `EditError` for anything else, such as its name."""
    if not isinstance(value, Value):
        raise EditError(
            f"value is {type(value).__name__}, not a value such as zero(), mean(store) or from_store(store)."
        )
    return value


def _check_same_model(store: ActivationStore, model: Any, what: str, hint: str = "") -> None:
    if store.model != model_fingerprint(model):
        raise StoreError(
            f"{what}: the store is of the model {store.model_name} ({store.model[:8]}), not of {model_name(model)} "
            f"({model_fingerprint(model)[:8]}).{hint}"
        )
