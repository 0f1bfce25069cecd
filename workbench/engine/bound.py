"""`Value`, what is written at a site, and `Bound`, a value made ready for the prompts of one run.

`value.bind(model, prompts, other)` checks a value once; the `Bound` it returns then maps the current
activation of any site to the new one (`apply_edit` writes it). `SitePositions` says where a site is in each
example. The values themselves are in `values.py` and `store_values.py`. This module knows no engine: it never
runs a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from workbench.errors import EditError, NotFinite
from workbench.finite import is_finite
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Site

UNIT_AXES = ("head", "kv_head", "neuron")


@dataclass(frozen=True, eq=False)
class SitePositions:
    """Where a site's positions are in each example.

    Attributes:
        index: position axis of the site → [example]; an axis without a position of its own (all of it) is
            left out.
        has: [example], whether the example has all of these positions.
    """

    site: Site
    index: Mapping[str, Int[Tensor, "example"]]
    has: Bool[Tensor, "example"]

    @classmethod
    def of(cls, site: Site, prompts: Prompts) -> "SitePositions":
        """The positions of a site in some prompts, by index or by name."""
        # A pattern has two axes of positions, and a site's `pos` is that of the query.
        query = "query_pos" if site.kind == "pattern" else "pos"
        index: dict[str, Tensor] = {}
        for axis, position in ((query, site.pos), ("key_pos", site.key_pos)):
            if position is not None:
                index[axis] = prompts.at(position)
        has = torch.ones(len(prompts), dtype=torch.bool)
        for positions in index.values():
            has = has & (positions >= 0)
        if len(index) == 2:
            has = has & (index["key_pos"] <= index[query])  # a query does not see later keys
        # Absent positions are -1, which would index the last token; `has` says which of them mean nothing.
        return cls(site, {axis: positions.clamp(min=0) for axis, positions in index.items()}, has)

    @property
    def first(self) -> Int[Tensor, "example"]:
        """The first token of the site; 0 where it is the whole sequence."""
        whole_sequence = torch.zeros(len(self.has), dtype=torch.long)
        return self.index.get("query_pos", self.index.get("pos", whole_sequence))

    def indices(self, activation: Shaped[Tensor, "example ..."]) -> tuple[Any, ...]:
        """An index into an activation [example, ...] that selects what belongs to the site."""
        indices: list[Any] = []
        for axis in KINDS[self.site.kind].axes:
            if axis == "example" and self.index:
                # Positions differ between examples, so both axes are indexed by tensors that go together.
                indices.append(torch.arange(len(self.has), device=activation.device))
            elif axis in self.index:
                indices.append(self.index[axis].to(activation.device))
            elif axis in UNIT_AXES and self.site.unit is not None:
                indices.append(self.site.unit)
            else:
                indices.append(slice(None))
        return tuple(indices)


class Bound:
    """A value made ready for one run: for these prompts, in this order.

    Args:
        value: what is written.
        prompts: those of the run that is edited.
    """

    def __init__(self, value: "Value", prompts: Prompts) -> None:
        self.value, self.prompts = value, prompts

    @property
    def reach(self) -> Int[Tensor, "example"]:
        """At how many of a prompt's first tokens the value may be written; later ones are left unchanged."""
        return self.prompts.lengths

    def select(self, examples: Sequence[int]) -> "Bound":
        """The same value for some of the prompts; nothing is checked again."""
        return Bound(self.value, self.prompts.select(examples))

    def edited(self, site: Site, current: Shaped[Tensor, "example *site"]) -> Shaped[Tensor, "example *site"]:
        """The new activation of a site, of the shape of the `current` one.

        Raises:
            EditError: what the value writes does not fit that shape.
            NotFinite: it is NaN or infinite, where the activation is not.
        """
        try:
            # Expanded, never reshaped: a content of the wrong shape is an error, not a rearrangement.
            new = self.new(site, current).expand_as(current)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise EditError(
                f"{self.value.describe()} does not fit {site}, whose value has shape {tuple(current.shape)} "
                f"(the first axis is the example): {error}"
            ) from error
        # What was there before is the model's own, and is refused where its logits are read.
        if not is_finite(new) and is_finite(current):
            dtype = str(new.dtype).removeprefix("torch.")
            raise NotFinite(
                f"{self.value.describe()} is not finite at {site} (in {dtype}), so nothing after it would be "
                "either.",
                place=str(site),
            )
        return new

    def new(self, site: Site, current: Tensor) -> Tensor:
        """What is written at the site; anything that broadcasts to `current`."""
        return self.value.replace(current)

    def has(self, site: Site) -> Bool[Tensor, "example"]:
        """Whether the prompt, and the prompt that its values are taken from, has the site's position."""
        return SitePositions.of(site, self.prompts).has

    def first_change(self, site: Site) -> Int[Tensor, "example"]:
        """A position before which the edit cannot change a run; the prompt's length where it changes nothing.

        The fast engine starts an edited run here, so it may be too early, never too late.
        """
        positions = SitePositions.of(site, self.prompts)
        return positions.first.where(positions.has, self.prompts.lengths)


@dataclass(frozen=True, eq=False)
class Value:
    """What is written at a site. Use the functions of `values.py` to make one.

    A kind of value implements `replace`, if the current activation is all it needs, or a `bind` of its own.

    Attributes:
        unitwise: whether an edit of a whole layer gives each head or neuron what an edit of it alone would.
        absolute: whether what is written is independent of the current activation.
        positionless: whether what is written at a token is independent of where in a prompt it is.
    """

    unitwise: ClassVar[bool] = False
    absolute: ClassVar[bool] = False
    positionless: ClassVar[bool] = False

    @property
    def covers_answers(self) -> bool:
        """Whether an edit without a position is also made at the tokens of an answer after the prompt.

        A head that is ablated is ablated for as long as the run goes on. What another prompt's tokens hold
        has no counterpart there.
        """
        return self.positionless

    def bind(self, model: Model, prompts: Prompts, other: Prompts | None = None) -> Bound:
        """The value checked against a model and a run's prompts.

        Args:
            other: the other side of the pairs, prompt by prompt.
        """
        return Bound(self, prompts)

    def describe(self) -> str:
        """The name that results carry."""
        return type(self).__name__.lower()

    def replace(self, current: Tensor) -> Tensor:
        """The new value from the current one."""
        raise EditError(f"{type(self).__name__} does not say what is written.")


def apply_edit(
    site: Site, bound: Bound, activation: Shaped[Tensor, "example ..."], *, causal: bool = True
) -> Shaped[Tensor, "example ..."]:
    """The activation with the bound value written at a site, in place, in those prompts that have the site.

    Attention patterns are written only where a query sees a key, and not beyond the end of a prompt.

    Args:
        activation: the whole activation of the site's kind and layer; it is changed.
        causal: whether queries see earlier keys only.
    """
    indices = SitePositions.of(site, bound.prompts).indices(activation)
    current = activation[indices]
    edited = bound.edited(site, current).to(activation.dtype)
    if site.kind == "pattern" and (site.pos is None or site.key_pos is None):
        # What attention masks stays 0: a written value there would let a query see its own future.
        seen = _seen(bound.prompts, activation.shape[-2:], causal).to(activation.device)
        seen = seen[:, None].expand_as(activation)  # one mask for all heads: [example, head, query, key]
        edited = torch.where(seen[indices], edited, current)
    has = bound.has(site).to(activation.device)
    # Examples without the position were indexed at token 0 (see `SitePositions.of`): what is there stays.
    if not bool(has.all()):
        edited = torch.where(has.view(-1, *[1] * (current.ndim - 1)), edited, current)
    activation[indices] = edited
    return activation


def _seen(prompts: Prompts, shape: Sequence[int], causal: bool) -> Bool[Tensor, "example query key"]:
    """Whether that query of the prompt sees that key of it."""
    queries, keys = torch.arange(shape[0])[:, None], torch.arange(shape[1])
    lengths = prompts.lengths[:, None, None]
    inside = (queries < lengths) & (keys < lengths)
    return inside & (keys <= queries) if causal else inside
