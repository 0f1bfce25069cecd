"""`forward`: one pass of any model with edits. It defines what an edit does.

This is the only module that installs hooks.

An edit that did not run is an exception. `resid_mid` is defined here as resid_pre + attn_out, because in
TransformerLens 4.3 the hook of that name changes only the MLP's branch when it returns a new tensor. `Write`
is an edit of a whole activation, `Run` what comes out. This module knows neither values nor metrics.
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
from workbench.models.model import Model
from workbench.sites import KINDS, Key

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Write:
    """A change of the whole activation of one (kind, layer).

    `change` gets a copy that it may write into, and returns the new value, of the same shape.
    """

    kind: str
    layer: int | None
    change: Change


@dataclass(frozen=True)
class Run:
    """What came out of a forward pass.

    Attributes:
        recorded: (kind, layer) or hook name → the activation that was asked for.
    """

    logits: Float[Tensor, "example pos vocab"]
    recorded: Mapping[Any, Tensor] = field(default_factory=dict)


def forward(
    model: Model,
    tokens: Int[Tensor, "example pos"],
    *,
    writes: Sequence[Write] = (),
    record: Iterable[Key] = (),
    raw_writes: Mapping[str, Change] | None = None,
    raw_record: Iterable[str] = (),
    gradients: bool = False,
) -> Run:
    """The logits of right-padded tokens, with activations changed on the way, and those that are to be kept.

    Args:
        writes: applied in this order; those of one activation see each other's result.
        record: (kind, layer) pairs; what is kept is the value after the edits.
        raw_writes, raw_record: the same by TransformerLens hook name, for readers' inputs that are no kind of
            their own.
        gradients: keep the graph; recorded tensors are then the ones that gradients flow through.

    Raises:
        ModelError: the model is in train mode.
        EditError: a hook of an edit did not fire, or changed the shape of its activation.
        SiteError: the model has no such hook.
    """
    check_eval(model)
    plan = _Hooks(writes, record, raw_writes or {}, raw_record, gradients)
    hooks = plan.hooks()
    model_tokens = tokens.to(model_device(model))
    try:
        with nullcontext() if gradients else torch.no_grad():
            logits = model.run_with_hooks(model_tokens, fwd_hooks=hooks, return_type="logits")
    except (ValueError, KeyError, AttributeError) as error:
        # TransformerLens 4.3 raises any of these for an unknown hook; others of their kind are errors of the
        # run itself.
        missing = [name for name, _ in hooks if not _has_hook(model, name)]  # asked only now: it is slow
        if not missing:
            raise
        raise SiteError(f"This model has no hook {missing[0]!r}: {error}") from error
    # Unless the attention implementation is "eager", TransformerLens skips the inner hooks without a word.
    silent = {name for name, _ in hooks} - plan.fired
    if silent:
        raise EditError(
            f"The hooks {', '.join(sorted(silent))} did not fire, "
            "so nothing can be edited or recorded there. "
            "Check that this model runs the place that was named (patterns need attn_implementation='eager')."
        )
    return Run(logits, plan.recorded)


class _Hooks:
    """Which hooks a run needs, what each does, and what they have recorded.

    Attributes:
        keys: hook name → the (kind, layer) pairs that are changed or recorded there.
        streams: hook name → what passed it last, from which `resid_mid` is made up.
        fired: names of the hooks that ran.
    """

    def __init__(
        self,
        writes: Sequence[Write],
        record: Iterable[Key],
        raw: Mapping[str, Change],
        raw_record: Iterable[str],
        gradients: bool,
    ) -> None:
        self.changes: dict[Key, list[Change]] = {}
        for write in writes:
            self.changes.setdefault((write.kind, write.layer), []).append(write.change)
        self.record, self.raw, self.raw_record, self.gradients = set(record), raw, set(raw_record), gradients
        self.keys: dict[str, list[Key]] = {}
        self.streams: dict[str, Tensor] = {}
        self.recorded: dict[Any, Tensor] = {}
        self.fired: set[str] = set()

    def hooks(self) -> list[tuple[str, Callable[..., Tensor]]]:
        """(name, function) of every hook that the run needs."""
        for kind, layer in dict.fromkeys([*self.changes, *self.record]):
            if kind == "resid_mid":
                self.keys.setdefault(_stream_before(layer), [])
            self.keys.setdefault(KINDS[kind].hook.format(layer=layer), []).append((kind, layer))
        raw = dict.fromkeys([*self.raw, *self.raw_record])
        hooks = [(name, self._hook(name)) for name in self.keys]
        return hooks + [(name, self._raw_hook(name)) for name in raw]

    def _hook(self, name: str) -> Callable[..., Tensor]:
        # attn_out comes before resid_mid where both are edited, as in the model.
        keys = sorted(self.keys[name], key=lambda key: key[0] == "resid_mid")

        def run(value: Tensor, hook: Any) -> Tensor:
            """The hook itself, with TransformerLens's arguments."""
            self.fired.add(name)
            value = self._tracked(value)
            for key in keys:
                stream = None
                if key[0] == "resid_mid":
                    stream = self.streams.get(_stream_before(key[1]))
                if stream is None:
                    value = self._edited(key, value, name)
                else:
                    # This hook is attn_out's: an edit of the sum is written as an edit of that summand.
                    value = self._edited(key, value + stream, name) - stream
            self.streams[name] = value
            return value

        return run

    def _edited(self, key: Key, value: Tensor, name: str) -> Tensor:
        if key in self.changes:
            value = value.clone()  # activations may be shared: one copy, which every edit writes into
            for change in self.changes[key]:
                value = _checked(change(value), value, name)
        if key in self.record:
            value = self._recorded(key, value)
        return value

    def _raw_hook(self, name: str) -> Callable[..., Tensor]:
        def run(value: Tensor, hook: Any) -> Tensor:
            """The hook itself, with TransformerLens's arguments."""
            self.fired.add(name)
            value = self._tracked(value)
            if name in self.raw:
                value = _checked(self.raw[name](value), value, name)
            if name in self.raw_record:
                value = self._recorded(name, value)
            return value

        return run

    def _recorded(self, key: Any, value: Tensor) -> Tensor:
        value = self._tracked(value)
        # With gradients, the tensor itself that the run continues with, or no gradient would reach it.
        # Without, a copy, since a later module may write into the activation in place.
        self.recorded[key] = value if self.gradients else value.clone()
        return value

    def _tracked(self, value: Tensor) -> Tensor:
        """A tensor that is its own graph node: the bridge (4.3) may convert what a hook returns unchanged."""
        if not self.gradients:
            return value
        if value.requires_grad:
            return value.clone()
        return value.detach().requires_grad_()  # frozen weights: nothing before it asked for gradients


def _stream_before(layer: int | None) -> str:
    return KINDS["resid_pre"].hook.format(layer=layer)


def _checked(new: Tensor, old: Tensor, name: str) -> Tensor:
    if new.shape != old.shape:
        raise EditError(
            f"An edit at {name} returned shape {tuple(new.shape)} for an activation of {tuple(old.shape)}."
        )
    return new.to(old.dtype)


def _has_hook(model: Any, name: str) -> bool:
    try:
        return model.get_hook_point(name) is not None
    except (AttributeError, KeyError, ValueError):
        return name in getattr(model, "hook_dict", {})


def gradients_of(total: Tensor, at: Mapping[Any, Tensor], metric: str) -> dict[Any, Tensor]:
    """The gradient of a summed metric at each activation; zeros where it does not depend on one.

    Args:
        total: a number, the metric summed over examples, so that one backward pass gives the gradient of
            each.
        at: any key → an activation of the run.
        metric: its name, for the message.

    Raises:
        MetricError: the metric has no gradient (ranks and accuracies are steps).
    """
    if not total.requires_grad:
        raise MetricError(
            f"The metric {metric!r} has no gradient, so nothing can be attributed to it. "
            "Use one that changes smoothly: logit_diff, prob_diff or nll."
        )
    # `allow_unused`: an activation that the metric never reads has gradient zero, which is not an error.
    gradients = torch.autograd.grad(total, list(at.values()), allow_unused=True)
    of_key = {}
    for key, gradient in zip(at, gradients, strict=True):
        of_key[key] = torch.zeros_like(at[key]) if gradient is None else gradient
    return of_key
