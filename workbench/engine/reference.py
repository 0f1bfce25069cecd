"""One forward pass of any model with edits: the only place that installs hooks, and the definition of the truth.

An edit that did not run is an exception. `resid_mid` is defined here as resid_pre + attn_out, because
TransformerLens' hook of that name changes only the MLP's branch when a hook returns a new tensor.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, MetricError, SiteError
from workbench.models.load import check_eval, model_device
from workbench.sites import KINDS, Shape, Site

Key = tuple[str, int | None]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Write:
    """A change of the whole activation of one (kind, layer): `change` maps it to a new tensor of the same shape."""

    kind: str
    layer: int | None
    change: Change


@dataclass(frozen=True)
class Run:
    """What came out of a forward pass: logits [example, pos, vocab] and the activations that were asked for."""

    logits: Float[Tensor, "example pos vocab"]
    recorded: Mapping[Key, Tensor] = field(default_factory=dict)


def forward(
    model: Any,
    tokens: Int[Tensor, "example pos"],
    *,
    writes: Sequence[Write] = (),
    record: Iterable[Key] = (),
    raw_writes: Mapping[str, Change] | None = None,
    gradients: bool = False,
) -> Run:
    """Run the model on right-padded tokens, change activations on the way, keep some of them.

    Args:
        writes: applied in the order given; those of one place see each other's result.
        record: (kind, layer) pairs; what is kept is the value after the edits.
        raw_writes: TransformerLens hook name → change, for readers' inputs that are no kind of their own.
        gradients: keep the graph; recorded tensors are then the ones that gradients flow through.

    Raises:
        ModelError: the model is in train mode.  EditError: a hook of an edit did not fire.
    """
    check_eval(model)
    record = list(dict.fromkeys(record))
    recorded: dict[Key, Tensor] = {}
    fired: set[str] = set()
    streams: dict[int, Tensor] = {}
    plan = _Plan(writes, record, recorded, fired, streams, gradients)
    hooks = [(name, plan.hook(name, keys)) for name, keys in plan.by_hook().items()]
    for name, change in (raw_writes or {}).items():
        hooks.append((name, plan.raw_hook(name, change)))
    try:
        with nullcontext() if gradients else torch.no_grad():
            logits = model.run_with_hooks(tokens.to(model_device(model)), fwd_hooks=hooks, return_type="logits")
    except (ValueError, KeyError, AttributeError) as error:
        missing = [name for name, _ in hooks if not _has_hook(model, name)]
        if not missing:
            raise
        raise SiteError(f"This model has no hook {missing[0]!r}: {error}") from error
    silent = {name for name, _ in hooks} - fired
    if silent:
        raise EditError(
            f"The hooks {', '.join(sorted(silent))} did not fire, so an edit there would have changed nothing. "
            "Check that this model runs the place that was named."
        )
    return Run(logits, recorded)


class _Plan:
    """Which hooks are needed, and what each does."""

    def __init__(
        self,
        writes: Sequence[Write],
        record: Sequence[Key],
        recorded: dict[Key, Tensor],
        fired: set[str],
        streams: dict[int, Tensor],
        gradients: bool,
    ) -> None:
        self.writes, self.record, self.recorded, self.fired = writes, record, recorded, fired
        self.streams, self.gradients = streams, gradients

    def by_hook(self) -> dict[str, list[Key]]:
        keys = dict.fromkeys([*((write.kind, write.layer) for write in self.writes), *self.record])
        hooks: dict[str, list[Key]] = {}
        for kind, layer in keys:
            if kind == "resid_mid":
                hooks.setdefault(Site("resid_pre", layer).hook, [])
            hooks.setdefault(KINDS[kind].hook.format(layer=layer), []).append((kind, layer))
        return hooks

    def hook(self, name: str, keys: list[Key]) -> Callable[..., Tensor]:
        def run(value: Tensor, hook: Any) -> Tensor:
            self.fired.add(name)
            value = self._tracked(value)
            for key in sorted(keys, key=lambda key: key[0] == "resid_mid"):
                kind, layer = key
                offset = self.streams[layer] if kind == "resid_mid" and layer is not None else None
                value = value if offset is None else value + offset
                for write in self.writes:
                    if (write.kind, write.layer) == key:
                        value = _checked(write.change(value), value, name)
                if key in self.record:
                    value = self._tracked(value)
                    self.recorded[key] = value if self.gradients else value.clone()
                value = value if offset is None else value - offset
            if name.endswith("hook_resid_pre"):
                self.streams[int(name.split(".")[1])] = value
            return value

        return run

    def raw_hook(self, name: str, change: Change) -> Callable[..., Tensor]:
        def run(value: Tensor, hook: Any) -> Tensor:
            self.fired.add(name)
            return _checked(change(value), value, name)

        return run

    def _tracked(self, value: Tensor) -> Tensor:
        """A tensor that stands in the graph by itself: the bridge may convert what a hook returns unchanged."""
        if not self.gradients:
            return value
        return value.clone() if value.requires_grad else value.detach().requires_grad_()


def _checked(new: Tensor, old: Tensor, name: str) -> Tensor:
    if new.shape != old.shape:
        raise EditError(f"An edit at {name} returned shape {tuple(new.shape)} for an activation of {tuple(old.shape)}.")
    return new.to(old.dtype)


def _has_hook(model: Any, name: str) -> bool:
    try:
        return model.get_hook_point(name) is not None
    except (AttributeError, KeyError, ValueError):
        return name in getattr(model, "hook_dict", {})


def slopes_of(total: Tensor, at: Mapping[Any, Tensor], metric: str) -> dict[Any, Tensor]:
    """The gradient of a summed metric at each activation; zeros where it does not depend on one.

    Raises:
        MetricError: the metric has no gradient (ranks and accuracies are steps).
    """
    if not total.requires_grad:
        raise MetricError(
            f"The metric {metric!r} has no gradient, so nothing can be attributed to it. Use one that changes smoothly "
            "(logit_diff, prob_diff, nll, kl), or method='exact'."
        )
    found = torch.autograd.grad(total, list(at.values()), allow_unused=True)
    return {key: torch.zeros_like(at[key]) if slope is None else slope for key, slope in zip(at, found, strict=True)}


def rows_per_forward(model: Any, length: int, *, budget: int | None = None, gradients: bool = False) -> int:
    """How many prompts of this length fit into one forward pass under a memory budget.

    Args:
        budget: bytes; None takes 1 GiB on a CPU and half of the free memory of a GPU.
    """
    shape, device = Shape.of(model), model_device(model)
    if budget is None:
        budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30
    per_token = 3 * shape.d_vocab + 4 * shape.d_mlp + 12 * shape.d_model + 4 * shape.n_heads * length
    if gradients:
        per_token += shape.n_layers * (4 * shape.d_mlp + 16 * shape.d_model + 4 * shape.n_heads * length)
    itemsize = next(model.parameters()).element_size()
    return max(1, int(budget // (per_token * length * itemsize)))
