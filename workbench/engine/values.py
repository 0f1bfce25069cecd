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

    Every token gets what the other prompt of its pair has at the same index; a site at a named position gets what
    the other prompt has at its own position of that name. Answers of several tokens, which have no counterpart in
    the other run, are left unchanged. By name: "corrupt" where the clean run is edited, "clean" where the corrupt
    one is.

    It misleads where the pair differs in more than what is asked about: then the effect is that of all differences
    together. What both prompts have in common is never found, even if the model uses it.

    Args:
        store: of the other run, with the kinds that are edited: `clean, corrupt = wb.capture_pairs(model, pairs)`.
        allow_self: permits the store of the run that is edited.
        other_model: permits a store of another checkpoint of the same shape.

    Raises: (when it is used)
        StoreError: the store is of another model, or does not hold these prompts.
        EditError: it holds the very run that is edited.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> clean, corrupt = wb.capture_pairs(model, pairs, sites=["z"])
    >>> wb.effects(model, pairs, sites="heads", value=wb.from_store(corrupt)).attrs["value"]
    'from_store'
    """
    return FromStore(store, allow_self, other_model)


@checked
def zero() -> Value:
    """Zeros, of the shape of the site (zero ablation).

    Nothing is read from a run, so that prompts may differ in length at named positions. By name: "zero". Without
    a position, this value, `constant`, `scale`, `add` and `mean(per="dataset")` are also written at the tokens of
    answers of several tokens: what is ablated stays ablated while the answer is read.

    It misleads where zero is far from everything that the site ever holds: the rest of the model then sees inputs
    that it was never trained on, and much of the effect is that. Compare it with "mean", "resample" or "optimal".

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> wb.effects(model, wb.load_task("ioi", model, n=4), sites=["z[3.1]"], value=wb.zero()).attrs["value"]
    'zero'
    """
    return Zero()


@checked
def mean(store: ActivationStore, *, per: Literal["dataset", "pos"] | str = "dataset") -> Value:
    """The store's mean activation, the same for every prompt of the edited run (mean ablation).

    The store may be of any prompts of the model, as of a corpus: what all of them have in common is kept, and what
    sets single prompts apart is taken away. By name, "mean" is over the edited run's own prompts. NaN rows (a
    position that a prompt lacks) are left out of the average.

    It misleads where the mean mixes kinds of prompts: it is then an activation that no prompt has, and what all
    prompts of the store share, such as the task itself, is not ablated at all.

    Args:
        store: any prompts, with the kinds that are edited.
        per: "dataset": over all rows but BOS. "pos": per position, the same index or name; the tokens of
            an answer after the prompt are then left unchanged.

    Raises:
        UnknownName: an unknown `per`.
        StoreError: no store; when it is used, a store of another model.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> store = wb.capture(model, pairs.clean, sites=["mlp_out"])
    >>> wb.effects(model, pairs, sites="mlps", value=wb.mean(store, per="pos")).attrs["value"]
    'mean(pos)'
    """
    if per not in ("dataset", "pos"):
        raise UnknownName("per", per, ("dataset", "pos"))
    return Mean(store, per)


@checked
def resample(store: ActivationStore, seed: int = 0) -> Value:
    """The activations of one other prompt of equal length per example, the same donor for every site.

    So what is written is always something that the model computed on a real prompt. By name, "resample" takes
    donors among the edited run's own prompts, with seed 0. Answers of several tokens are left unchanged.

    It misleads where the store holds few prompts of a length: one donor then stands for all others, and the number
    depends on the seed. Take several seeds, or `mean`.

    Args:
        store: of the donors, with the kinds that are edited; it needs another prompt of every length.
        seed: chooses the donors, from the seed and the prompt alone: the other prompts of a batch do not matter.

    Raises: (when it is used)
        StoreError: the store is of another model.
        EditError: it has no other prompt of a prompt's length.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=8)
    >>> store = wb.capture(model, pairs.clean, sites=["z"])
    >>> wb.effects(model, pairs, sites="heads", value=wb.resample(store, seed=1)).attrs["value"]
    'resample(seed=1)'
    """
    return Resample(store, seed)


@checked
def constant(content: Any) -> Value:
    """A given number or tensor, the same at every token of every prompt.

    A number fills the site; a tensor is broadcast over its last axes: [d_head] for one head, [d_model] for a
    stream, [pos, d_model] for prompts of one length. By name a number alone: "constant:0.5".

    It misleads as `zero` does, where the content is far from what the site ever holds.

    Args:
        content: a number, a tensor, an array or lists of numbers.

    Raises:
        EditError: something else than numbers; when it is used, a tensor that does not fit the site.

    >>> import torch, workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> value = wb.constant(torch.zeros(model.cfg.d_head))
    >>> wb.effects(model, pairs, sites=["z[3.1]"], value=value).attrs["value"]
    'constant'
    """
    _check_numbers("constant", content)
    return Constant(content)


@checked
def add(vector: Any) -> Value:
    """The current activation plus a vector, at every token that the site covers (steering).

    "Current" is what the edited run holds there when the edit is made: of several edits in one run the later ones
    see the earlier. It has no name, because a vector has none.

    It misleads where the vector is long beside the activation: the model then reacts to the size and not to the
    direction. Compare with a random vector of the same length.

    Args:
        vector: as wide as the site: [d_model] for a stream, [d_head] for a head.

    Raises:
        EditError: something else than numbers; when it is used, a vector that does not fit the site.

    >>> import torch, workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> steering = wb.add(0.1 * torch.ones(model.cfg.d_model))
    >>> wb.effects(model, pairs, sites=["resid_post[1]@END"], value=steering).shape
    (4, 1)
    """
    _check_numbers("add", vector)
    return Add(vector)


@checked
def scale(factor: Any) -> Value:
    """The current activation times a number: 0 is `zero()`, 1 changes nothing, 2 doubles what the site writes.

    By name: "scale:0.5". "Current" is what the edited run holds there, as of `add`.

    It misleads where a norm follows: of a stream that is scaled as a whole, the norm undoes most of it.

    Args:
        factor: a number.

    Raises:
        EditError: something else than a number; when it is used, a product that is not finite.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> unchanged = wb.effects(model, pairs, sites=["z[3.1]"], value=wb.scale(1.0))
    >>> bool((abs(unchanged) < 1e-4).all())
    True
    """
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
