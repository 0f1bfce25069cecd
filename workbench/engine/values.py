"""The values: functions that say what is written at a site, as in `zero()`, `mean(store)`, `add(vector)`.

A `Value` is a frozen description; `value.bind(model, prompts, other)` checks it against a run and returns a
`Bound`, which maps the current activation of a site to the new one (`bound.py`). Those read from a store are
in `store_values.py`, names for them in `named_values.py`. Values never know where they are used; sites never
know what is done to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.arguments import checked, shown
from workbench.engine.bound import Bound, Value
from workbench.engine.store_values import FromStore, Mean, Resample
from workbench.errors import EditError, UnknownName
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Site
from workbench.stores.store import ActivationStore


@dataclass(frozen=True, eq=False)
class Zero(Value):
    """Zeros."""

    unitwise = True
    absolute = True
    positionless = True

    def replace(self, current: Tensor) -> Tensor:
        """Zeros of the same shape."""
        return torch.zeros_like(current)


@dataclass(frozen=True, eq=False)
class Constant(Value):
    """A number, or a tensor that fits the site's last axes."""

    # Not `unitwise`: a tensor for a whole layer need not fit one of its heads.
    absolute = True
    positionless = True
    content: Any

    def replace(self, current: Tensor) -> Tensor:
        """The content in the precision of the activation."""
        # Not expanded here: `Bound.edited` does, and names the site where it does not fit.
        return torch.as_tensor(self.content, dtype=current.dtype, device=current.device)


@dataclass(frozen=True, eq=False)
class Add(Value):
    """The current activation plus a vector."""

    # Neither `unitwise` (a vector is as wide as the site) nor `absolute` (the sum depends on what is there).
    positionless = True
    vector: Any

    def replace(self, current: Tensor) -> Tensor:
        """The sum, of the shape of the current activation."""
        vector = torch.as_tensor(self.vector, dtype=current.dtype, device=current.device)
        return current + vector.expand_as(current)  # expanded first: a vector that is too wide is an error


@dataclass(frozen=True, eq=False)
class Scale(Value):
    """The current activation times a number."""

    unitwise = True  # the same factor for each head; not `absolute`: the product depends on what is there
    positionless = True
    factor: float

    def replace(self, current: Tensor) -> Tensor:
        """The product."""
        return current * self.factor

    def describe(self) -> str:
        """`scale(0.5)`."""
        return f"scale({self.factor})"


@dataclass(frozen=True, eq=False)
class Project(Value):
    """Another value's part within a subspace, the current activation outside it."""

    basis: Tensor
    value: Value

    @cached_property
    def directions(self) -> Float[Tensor, "d rank"]:
        """An orthonormal basis of the span of the given vectors."""
        basis = self.basis[:, None] if self.basis.ndim == 1 else self.basis
        # In double precision: nearly parallel vectors would lose their small direction in float32.
        left, sizes, _ = torch.linalg.svd(basis.double(), full_matrices=False)
        # The usual numerical rank, but at float32's precision: what users give has seldom more.
        smallest = sizes.amax() * max(basis.shape) * torch.finfo(torch.float32).eps
        return left[:, sizes > smallest]

    @property
    def covers_answers(self) -> bool:
        """As the value within the subspace does."""
        return self.value.covers_answers

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """The inner value bound, with the directions. Raises `EditError` for a basis that is zero."""
        # Refused when it is bound and not when it is made: the rank is known only after a decomposition.
        if self.directions.shape[1] == 0:
            raise EditError(
                "project: the basis is zero, so it spans no direction and the edit would change nothing."
            )
        return _ProjectBound(self, prompts, self.directions, self.value.bind(model, prompts, other))

    def describe(self) -> str:
        """`project(rank 2, zero)`."""
        return f"project(rank {self.directions.shape[1]}, {self.value.describe()})"


class _ProjectBound(Bound):
    """Another bound value's part within a subspace."""

    def __init__(
        self, value: Value, prompts: Prompts, directions: Float[Tensor, "d rank"], inner: Bound
    ) -> None:
        super().__init__(value, prompts)
        self.directions, self.inner = directions, inner

    def select(self, examples: Sequence[int]) -> Bound:
        """The same subspace for some of the prompts."""
        inner = self.inner.select(examples)
        return _ProjectBound(self.value, inner.prompts, self.directions, inner)

    def new(self, site: Site, current: Tensor) -> Tensor:
        """The current activation, moved within the subspace to where the inner value is."""
        # Exact up to rounding for any basis, because the directions are orthonormal: P = D Dᵀ.
        directions = self.directions.to(current)
        return current + ((self.inner.edited(site, current) - current) @ directions) @ directions.T

    def has(self, site: Site) -> Bool[Tensor, "example"]:
        """As the inner value has it."""
        return self.inner.has(site)

    def first_change(self, site: Site) -> Int[Tensor, "example"]:
        """As of the inner value: where that changes nothing, its projection does not either."""
        return self.inner.first_change(site)


@checked
def from_store(store: ActivationStore, *, allow_self: bool = False, other_model: bool = False) -> Value:
    """The activations of the other run of the same pairs, matched by prompt id (activation patching).

    Answers of several tokens, which have no counterpart in the other run, are left unchanged.

    Args:
        allow_self: permits the store of the run that is edited.
        other_model: permits a store of another checkpoint of the same shape.

    Raises: (when it is used)
        StoreError: the store is of another model, or does not hold these prompts.
        EditError: it holds the very run that is edited.
    """
    return FromStore(store, allow_self, other_model)


@checked
def zero() -> Value:
    """Zeros (zero ablation).

    Without a position, this value, `constant`, `scale`, `add` and `mean(per="dataset")` are also written at
    the tokens of answers of several tokens: what is ablated stays ablated while the answer is read.
    """
    return Zero()


@checked
def mean(store: ActivationStore, *, per: Literal["dataset", "pos"] | str = "dataset") -> Value:
    """The store's mean activation (mean ablation).

    Args:
        per: "dataset": over all rows but BOS. "pos": per position, the same index or name; the tokens of
            an answer after the prompt are then left unchanged.

    Raises:
        UnknownName: an unknown `per`.
        StoreError: no store; when it is used, a store of another model.
    """
    if per not in ("dataset", "pos"):
        raise UnknownName("per", per, ("dataset", "pos"))
    return Mean(store, per)


@checked
def resample(store: ActivationStore, seed: int = 0) -> Value:
    """The activations of one other prompt of equal length per example, the same donor for every site.

    Answers of several tokens are left unchanged.
    """
    return Resample(store, seed)


@checked
def constant(content: Any) -> Value:
    """A given number or tensor that fits the site's last axes. Raises `EditError` for all but numbers."""
    _check_numbers("constant", content)
    return Constant(content)


@checked
def add(vector: Any) -> Value:
    """The current activation plus a vector (steering). Raises `EditError` for all but numbers."""
    _check_numbers("add", vector)
    return Add(vector)


@checked
def scale(factor: Any) -> Value:
    """The current activation times a number."""
    # NaN is refused where it would be written, with the site's name.
    _check_numbers("scale", factor)
    return Scale(factor)


@checked
def project(basis: Tensor, value: Value) -> Value:
    """Another value's part within a subspace, the current activation outside it (interchange of subspaces).

    Args:
        basis: [d] or [d, rank]; it need not be orthonormal.

    Raises:
        EditError: a basis of another shape, or with numbers that are not finite.
    """
    # A decomposition of NaN or infinity would fail far from here, or not at all.
    if basis.ndim not in (1, 2) or not bool(torch.isfinite(basis).all()):
        raise EditError(f"project: a basis is [d] or [d, rank] of finite numbers, not {tuple(basis.shape)}.")
    return Project(basis, value)


def _check_numbers(name: str, content: Any) -> None:
    """Raise `EditError` for what cannot be written into an activation."""
    try:
        tensor = torch.as_tensor(content)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise EditError(
            f"{name}: {shown(content)} is neither a number nor a tensor or list of numbers."
        ) from error
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise EditError(f"{name}: {shown(content)} is not made of real numbers.")
