"""What is written at a site: the values, and how one becomes numbers for given prompts.

A `Value` is a frozen description (`zero()`, `mean(store)`, `add(vector)`); `value.bind(model, prompts, other)` checks
it against the model and the prompts of a run and returns a `Bound`, which maps the current activation of a site to the
new one. Values never know where they are used; sites never know what is done to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import xxhash
from torch import Tensor

from workbench.errors import EditError, PromptError, StoreError, UnknownName
from workbench.models.load import model_device, model_fingerprint, model_name
from workbench.sites import KINDS, Position, Site
from workbench.stores.store import ActivationStore
from workbench.tasks.pairs import Prompts


@dataclass(frozen=True, eq=False)
class Places:
    """Where a site's positions are in each example: position axis → [example], and which examples have them all."""

    index: Mapping[str, Tensor]
    has: Tensor

    @classmethod
    def of(cls, site: Site, prompts: Prompts) -> "Places":
        axes = KINDS[site.kind].axes
        wanted: dict[str, Position] = {}
        if site.pos is not None:
            wanted["query_pos" if "query_pos" in axes else "pos"] = site.pos
        if site.key_pos is not None:
            wanted["key_pos"] = site.key_pos
        has = torch.ones(len(prompts), dtype=torch.bool)
        index = {}
        for axis, position in wanted.items():
            where = prompts.at(position) if isinstance(position, str) else torch.full((len(prompts),), position)
            inside = (where >= 0) & (where < prompts.lengths)
            index[axis], has = where * inside, has & inside
        return cls(index, has)

    def slices(self, site: Site, n: int, device: torch.device) -> tuple[Any, ...]:
        """An index into the activation [example, ...] of n examples that picks the site's part of it."""
        picked: list[Any] = []
        for axis in KINDS[site.kind].axes:
            if axis == "example":
                picked.append(torch.arange(n, device=device) if self.index else slice(None))
            elif axis in self.index:
                picked.append(self.index[axis].to(device))
            elif axis in ("head", "kv_head", "neuron") and site.unit is not None:
                picked.append(site.unit)
            else:
                picked.append(slice(None))
        return tuple(picked)


class Bound:
    """A value made ready for one run: the prompts that are run, and, for stores, the rows that stand in for them."""

    def __init__(self, value: "Value", prompts: Prompts, source: Prompts, device: torch.device) -> None:
        self.value, self.prompts, self.source, self.device = value, prompts, source, device

    def edited(self, site: Site, current: Tensor) -> Tensor:
        """The new value of the site's part of an activation, `current` being the part as it is."""
        try:
            return self.value.replace(site, current, self).expand_as(current)
        except (RuntimeError, ValueError) as error:
            raise EditError(
                f"{self.value.describe()} does not fit {site}, whose value has shape {tuple(current.shape)} "
                f"(the first axis is the example): {error}"
            ) from error

    def has(self, site: Site) -> Tensor:
        """[example]: whether the prompt, and whatever stands in for it, has the site's position."""
        return Places.of(site, self.prompts).has


@dataclass(frozen=True, eq=False)
class Value:
    """What is written at a site. Use the functions of this module to make one."""

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """Check the value against a model and a run's prompts (`other`: the other side of the pairs)."""
        return Bound(self, prompts, prompts, model_device(model))

    def describe(self) -> str:
        """The name that results carry."""
        return type(self).__name__.lower()

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        raise EditError(f"{type(self).__name__} says nothing about what is written.")


@dataclass(frozen=True, eq=False)
class Zero(Value):
    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        return torch.zeros_like(current)


@dataclass(frozen=True, eq=False)
class Constant(Value):
    content: Any

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        return torch.as_tensor(self.content, dtype=current.dtype, device=current.device).expand_as(current)


@dataclass(frozen=True, eq=False)
class Add(Value):
    vector: Any

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        return current + torch.as_tensor(self.vector, dtype=current.dtype, device=current.device).expand_as(current)


@dataclass(frozen=True, eq=False)
class Scale(Value):
    factor: float

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        return current * self.factor

    def describe(self) -> str:
        return f"scale({self.factor})"


@dataclass(frozen=True, eq=False)
class Mean(Value):
    store: ActivationStore
    per: str = "dataset"

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        _check_same_model(self.store, model, "mean")
        return super().bind(model, prompts, other)

    def describe(self) -> str:
        return f"mean({self.per})"

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        view = self.store[site.kind, site.layer]
        if site.kind == "pattern":
            raise EditError(
                "A mean attention pattern is not defined for prompts of different length: use from_store or constant."
            )
        if self.per == "dataset":
            average = view.mean()
        elif isinstance(site.pos, str):
            average = view.at(site.pos).nanmean(0)
        else:
            every = torch.stack([view.at(i).nanmean(0) for i in range(int(bound.prompts.lengths.max()))])
            average = every if site.pos is None else every[site.pos]
        if site.unit is not None:
            average = average[..., site.unit] if KINDS[site.kind].unit == "neuron" else average[..., site.unit, :]
        average = average.to(current)
        return average.expand_as(current)


@dataclass(frozen=True, eq=False)
class FromStore(Value):
    store: ActivationStore
    allow_self: bool = False
    other_model: bool = False

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        if not self.other_model:
            _check_same_model(
                self.store, model, "from_store", hint=" For another checkpoint of the same shape pass other_model=True."
            )
        rows, sides = [], (("other", other), ("same", prompts))
        for i, prompt_id in enumerate(prompts.ids):
            found = [(name, self.store.example(side.ids[i])) for name, side in sides if side is not None]
            match = next(((name, row) for name, row in found if row is not None), None)
            if match is None:
                raise StoreError(
                    f"Prompt {i} of these pairs ({prompt_id[:8]}) is not in the store: it holds {len(self.store.prompts)} prompts "
                    f"({self.store.prompts.fingerprint[:8]}) of other pairs. Capture these with wb.capture_pairs(model, pairs)."
                )
            identical = other is not None and other.ids[i] == prompt_id
            if match[0] == "same" and not self.allow_self and not identical:
                raise EditError(
                    f"The store holds the very run that is edited (prompt {i}), so patching from it changes nothing. "
                    "Pass the store of the other side, or from_store(..., allow_self=True)."
                )
            rows.append(match[1])
        return StoreBound(self, self.store, prompts, rows, model_device(model))

    def describe(self) -> str:
        return "from_store"

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        assert isinstance(bound, StoreBound)
        return bound.stored(site, current)


@dataclass(frozen=True, eq=False)
class Resample(Value):
    store: ActivationStore
    seed: int = 0

    def bind(self, model: Any, prompts: Prompts, other: Prompts | None = None) -> Bound:
        _check_same_model(self.store, model, "resample")
        ids, lengths, rows = self.store.prompts.ids, self.store.prompts.lengths, []
        for i, prompt_id in enumerate(prompts.ids):
            donors = [
                j for j in (lengths == prompts.lengths[i].to(lengths.device)).nonzero().flatten().tolist() if ids[j] != prompt_id
            ]
            if not donors:
                raise EditError(
                    f"resample: the store has no other prompt of {int(prompts.lengths[i])} tokens for prompt {i}. "
                    "Capture more prompts, or use mean(store)."
                )
            rows.append(donors[xxhash.xxh3_64_intdigest(f"{self.seed} {prompt_id}".encode()) % len(donors)])
        return StoreBound(self, self.store, prompts, rows, model_device(model))

    def describe(self) -> str:
        return f"resample(seed={self.seed})"

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        assert isinstance(bound, StoreBound)
        return bound.stored(site, current)


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
            raise EditError("project: the basis is zero, so it spans no direction and the edit would change nothing.")
        return ProjectBound(self, self.value.bind(model, prompts, other))

    def describe(self) -> str:
        return f"project(rank {self.directions.shape[1]}, {self.value.describe()})"

    def replace(self, site: Site, current: Tensor, bound: Bound) -> Tensor:
        assert isinstance(bound, ProjectBound)
        directions = self.directions.to(current)
        change = bound.inner.edited(site, current) - current
        return current + (change @ directions) @ directions.T


class StoreBound(Bound):
    """Rows of a store that stand in for the prompts of a run."""

    def __init__(self, value: Value, store: ActivationStore, prompts: Prompts, rows: list[int], device: torch.device) -> None:
        super().__init__(value, prompts, store.prompts.select(rows), device)
        self.store, self.rows = store, rows
        self._padded: tuple[tuple[str, int | None], Tensor] | None = None

    def stored(self, site: Site, current: Tensor) -> Tensor:
        """The store's value at the site, at its own named positions."""
        if not _named(site):
            uneven = (self.source.lengths != self.prompts.lengths).nonzero()
            if len(uneven):
                i = int(uneven[0])
                raise PromptError(
                    f"Pair {i} has {int(self.prompts.lengths[i])} and {int(self.source.lengths[i])} tokens, so {site} does not "
                    "line up. Use named positions (pos=['END']), or pairs of equal length."
                )
        key = (site.kind, site.layer)
        if self._padded is None or self._padded[0] != key:
            table = self.store[key].padded(self.rows)
            self._padded = (key, table.to(self.device))
        places = Places.of(site, self.source)
        return self._padded[1][places.slices(site, len(self.rows), self.device)].to(current.dtype)

    def has(self, site: Site) -> Tensor:
        return super().has(site) & Places.of(site, self.source).has


class ProjectBound(Bound):
    """A projected value with the value that it projects."""

    def has(self, site: Site) -> Tensor:
        return self.inner.has(site)

    def __init__(self, value: Project, inner: Bound) -> None:
        super().__init__(value, inner.prompts, inner.source, inner.device)
        self.inner = inner


def _named(site: Site) -> bool:
    """Whether the site means a named place only, so that prompts of different length line up there."""
    places = [site.pos, site.key_pos] if site.kind == "pattern" else [site.pos]
    return all(isinstance(place, str) for place in places)


def from_store(store: ActivationStore, *, allow_self: bool = False, other_model: bool = False) -> Value:
    """The activations of the other run of the same pairs, matched by prompt id (activation patching).

    `allow_self` permits the store of the run that is edited; `other_model` one of another checkpoint of the same shape.
    """
    return FromStore(store, allow_self, other_model)


def zero() -> Value:
    """Zeros (zero ablation)."""
    return Zero()


def mean(store: ActivationStore, *, per: Literal["dataset", "pos"] | str = "dataset") -> Value:
    """The store's mean activation: over all rows but BOS ("dataset"), or per position ("pos": the same index or name)."""
    if per not in ("dataset", "pos"):
        raise UnknownName("kind of mean", per, ("dataset", "pos"))
    return Mean(store, per)


def resample(store: ActivationStore, seed: int = 0) -> Value:
    """The activations of one other prompt of equal length per example, the same donor for every site."""
    return Resample(store, seed)


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
    return Project(basis, value)


VALUES = ("from_store", "zero", "mean", "resample", "constant", "add", "scale", "project")


def _check_same_model(store: ActivationStore, model: Any, what: str, hint: str = "") -> None:
    if store.model != model_fingerprint(model):
        raise StoreError(
            f"{what}: the store is of the model {store.model_name} ({store.model[:8]}), not of {model_name(model)} "
            f"({model_fingerprint(model)[:8]}).{hint}"
        )
