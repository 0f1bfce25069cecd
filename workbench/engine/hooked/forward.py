"""`forward`: one pass of any model with edits. It defines what an edit does.

This is the only module that installs hooks.

An edit that did not run is an exception. `resid_mid` is defined here as resid_pre + attn_out, because in
TransformerLens 4.3 the hook of that name changes only the MLP's branch when it returns a new tensor; models
that have no such sum are refused. `Write` is an edit of a whole activation, `Run` what comes out. This module
knows neither values nor metrics.

Threads take turns on a model (`models.locks`), and hooks act in the thread that installed them alone.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, MetricError, ModelError, SiteError
from workbench.models.calls import plain_torch
from workbench.models.load import check_eval, model_device
from workbench.models.locks import hook_lock
from workbench.models.model import Model
from workbench.models.padding import padding_options
from workbench.models.verdicts import is_right, keep_right
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Key, Shape, Site

Change = Callable[[Tensor], Tensor]

# Models that have been checked to have a `resid_mid`; weak, so that the check keeps no model alive.
_mid_streams: "weakref.WeakSet[Any]" = weakref.WeakSet()
# The same of models whose attention uses a pattern that is edited.
_used_patterns: "weakref.WeakSet[Any]" = weakref.WeakSet()


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
    prompts: Prompts | Int[Tensor, "example pos"],
    *,
    copies: int = 1,
    writes: Sequence[Write] = (),
    record: Iterable[Key] = (),
    raw_writes: Mapping[str, Change] | None = None,
    raw_record: Iterable[str] = (),
    gradients: bool = False,
) -> Run:
    """The logits of prompts, with activations changed on the way, and those that are to be kept.

    Args:
        prompts: or their tokens, where no prompt is padded.
        copies: how many times the batch is run, copy after copy: [copy * example, pos, ...].
        writes: applied in this order; those of one activation see each other's result.
        record: (kind, layer) pairs; what is kept is the value after the edits.
        raw_writes, raw_record: the same by TransformerLens hook name, for readers' inputs that are no kind of
            their own.
        gradients: keep the graph; recorded tensors are then the ones that gradients flow through.

    Raises:
        ModelError: the model is in train mode, would attend to padding, or its weights let no gradient pass.
        EditError: a hook of an edit did not fire, changed the shape of its activation, or ran the model.
        SiteError: the model has no such hook, or no stream between attention and MLP where one is asked for.
    """
    check_eval(model)
    if gradients:
        check_gradients_pass(model)
    plan = _Hooks(writes, record, raw_writes or {}, raw_record, gradients, Shape.of(model))
    hooks = plan.hooks()
    if plan.uses("resid_mid"):
        _check_mid_stream(model)
    if plan.uses("pattern", only_changed=not gradients):
        _check_patterns(model)
    if isinstance(prompts, Prompts):
        tokens = prompts.tokens
        options = padding_options(model, prompts.lengths.repeat(copies), tokens.shape[1])
    else:
        tokens, options = prompts, {}
    with plain_torch(), hook_lock(model), torch.set_grad_enabled(gradients):
        # Copied: tokens made in inference mode cannot be kept for a backward pass.
        model_tokens = tokens.to(model_device(model), copy=True)
        if copies > 1:
            model_tokens = model_tokens.repeat(copies, 1)
        logits = _logits(model, model_tokens, hooks, options)
    # Unless the attention implementation is "eager", TransformerLens skips the inner hooks without a word.
    silent = {name for name, _ in hooks} - plan.fired
    if silent:
        raise EditError(
            f"The hooks {', '.join(sorted(silent))} did not fire, "
            "so nothing can be edited or recorded there. "
            "Check that this model runs the place that was named (patterns need attn_implementation='eager')."
        )
    return Run(logits, plan.recorded)


def _logits(
    model: Model,
    tokens: Tensor,
    hooks: Sequence[tuple[str, Callable[..., Tensor | None]]],
    options: dict[str, Any],
) -> Tensor:
    """A pass with hooks. Raises `SiteError` for one that the model lacks."""
    try:
        return model.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits", **options)
    except (ValueError, KeyError, AttributeError) as error:
        # TransformerLens 4.3 raises any of these for an unknown hook; others of their kind are errors of the
        # run itself.
        missing = [name for name, _ in hooks if not _has_hook(model, name)]  # asked only now: it is slow
        if not missing:
            raise
        raise SiteError(f"This model has no hook {missing[0]!r}: {error}") from error


@torch.no_grad()
def _check_mid_stream(model: Model) -> None:
    """Raise `SiteError` where resid_pre + attn_out is not the stream that the MLP's output is added to.

    Checked once per model, on four tokens: blocks that norm the sum itself (OPT-350m), or that add to a
    normed stream (BLOOM's post-norm), have no such sum.
    """
    if model in _mid_streams or is_right(model, "resid_mid"):
        _mid_streams.add(model)
        return
    shape = Shape.of(model)
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    record = [(kind, layer) for layer in range(shape.n_layers) for kind in kinds]
    tokens = torch.arange(4)[None, : shape.n_ctx] % shape.d_vocab
    kept = forward(model, tokens, record=record).recorded
    for layer in range(shape.n_layers):
        before, attn_out, mlp_out, after = (kept[kind, layer] for kind in kinds)
        difference = float((before + attn_out + mlp_out - after).abs().max())
        # A norm in between makes a difference as large as the stream; half precision alone a few percent.
        tolerance = 0.05 if after.dtype in (torch.bfloat16, torch.float16) else 1e-4
        if difference > tolerance * float(after.abs().max()):
            raise SiteError(
                f"This model has no resid_mid: what block {layer} adds to the stream is not the sum of its "
                f"attn_out and mlp_out (difference {difference:.2g}), so resid_pre + attn_out is nowhere in "
                "it. Use attn_out or resid_post."
            )
    _mid_streams.add(model)
    keep_right(model, "resid_mid")


@torch.no_grad()
def _check_patterns(model: Model) -> None:
    """Raise `EditError` where attention does not use the pattern that its hook returns.

    Checked once per model: TransformerLens 4.3 leaves the attention of some models (BERT) to transformers and
    shows the pattern afterwards, so that an edit of it changes nothing.
    """
    if model in _used_patterns or is_right(model, "patterns are used"):
        _used_patterns.add(model)
        return
    shape = Shape.of(model)
    layers = range(shape.n_layers)

    def halved(layer: int) -> Change:
        """The pattern, halved in the row of the layer; each layer has a row, and one row has no edit."""

        def change(pattern: Tensor) -> Tensor:
            pattern[layer] *= 0.5
            return pattern

        return change

    tokens = (torch.arange(4)[None, : shape.n_ctx] % shape.d_vocab).repeat(shape.n_layers + 1, 1)
    hooks = _Hooks([Write("pattern", layer, halved(layer)) for layer in layers],
                   [("z", layer) for layer in layers], {}, (), False, shape)  # fmt: skip
    with warnings.catch_warnings():
        # The bridge warns of an edit that it discards; here that is an error.
        warnings.filterwarnings("ignore", message=".*hook_pattern returned a modified tensor")
        _logits(model, tokens.to(model_device(model)), hooks.hooks(), {})
    for layer in layers:
        fired = {Site("pattern", layer).hook, Site("z", layer).hook} <= hooks.fired
        if not fired:
            return  # the run itself says which hooks do not fire
        z = hooks.recorded["z", layer]
        if torch.equal(z[layer], z[-1]) and bool(z[-1].any()):
            raise EditError(
                f"pattern[{layer}] of this model cannot be edited: its attention has used the pattern when "
                "its hook shows it, so an edit would change nothing. Use z, or q and k."
            )
    _used_patterns.add(model)
    keep_right(model, "patterns are used")


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
        shape: Shape,
    ) -> None:
        self.shape = shape
        self.changes: dict[Key, list[Change]] = {}
        for write in writes:
            self.changes.setdefault((write.kind, write.layer), []).append(write.change)
        self.record, self.raw, self.raw_record, self.gradients = set(record), raw, set(raw_record), gradients
        self.keys: dict[str, list[Key]] = {}
        self.streams: dict[str, Tensor] = {}
        self.recorded: dict[Any, Tensor] = {}
        self.fired: set[str] = set()
        self.thread = threading.get_ident()

    @property
    def is_foreign(self) -> bool:
        """Whether another thread passes a hook, in a run of its own that takes no lock: `model(tokens)`."""
        return threading.get_ident() != self.thread

    def uses(self, kind: str, *, only_changed: bool = False) -> bool:
        """Whether some activation of the kind is changed, or recorded."""
        keys = [*self.changes]
        if not only_changed:
            keys += self.record
        return any(key[0] == kind for key in keys)

    def hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """(name, function) of every hook that the run needs."""
        for kind, layer in dict.fromkeys([*self.changes, *self.record]):
            if kind == "resid_mid":
                self.keys.setdefault(_stream_before(layer), [])
            self.keys.setdefault(KINDS[kind].hook.format(layer=layer), []).append((kind, layer))
        raw = dict.fromkeys([*self.raw, *self.raw_record])
        hooks = [(name, self._hook(name)) for name in self.keys]
        return hooks + [(name, self._raw_hook(name)) for name in raw]

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        # attn_out comes before resid_mid where both are edited, as in the model.
        keys = sorted(self.keys[name], key=lambda key: key[0] == "resid_mid")

        def run(value: Tensor, hook: Any) -> Tensor | None:
            """The hook itself, with TransformerLens's arguments."""
            if self.is_foreign:
                return None
            self.fired.add(name)
            value = self._tracked(value)
            restore = _same
            if keys:  # those of one hook have the same axes
                value, restore = self._with_axes(keys[0], value, hook)
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
            return restore(value)

        return run

    def _with_axes(self, key: Key, value: Tensor, hook: Any) -> tuple[Tensor, Change]:
        """An activation with the axes of its kind, and what undoes that.

        TransformerLens 4.3 shows q, k and v of latent attention (DeepSeek) with heads before positions, and
        cuts its z into heads of the width of others.
        """
        kind, ordered, restore = KINDS[key[0]], value, _same
        n_heads = self.shape.n_heads
        if getattr(hook, "pos_dim", None) == 2:
            ordered, restore = _swap_heads(value), _swap_heads
        elif kind.name == "z" and (value.ndim != 4 or value.shape[2] != n_heads):
            # Whatever its width, z is the heads side by side.
            ordered = value.reshape(*value.shape[:2], n_heads, -1)
            restore = _reshape_to(value.shape)
        # Indexed by axes that it does not have, an activation would be edited at another place.
        misread = ordered.ndim != len(kind.axes)
        if not misread and key in self.changes and kind.unit in ("head", "kv_head"):
            misread = ordered.shape[kind.axes.index(kind.unit)] != self.shape.units(kind)
        if misread:
            raise SiteError(
                f"{kind.name}[{key[1]}] of this model has the shape {tuple(ordered.shape)}, which is not "
                f"({', '.join(kind.axes)}) with {self.shape.units(kind)} heads: its sites cannot be edited "
                "or recorded."
            )
        return ordered, restore

    def _edited(self, key: Key, value: Tensor, name: str) -> Tensor:
        if key in self.changes:
            value = value.clone()  # activations may be shared: one copy, which every edit writes into
            for change in self.changes[key]:
                value = _checked(change(value), value, name)
        if key in self.record:
            value = self._recorded(key, value)
        return value

    def _raw_hook(self, name: str) -> Callable[..., Tensor | None]:
        def run(value: Tensor, hook: Any) -> Tensor | None:
            """The hook itself, with TransformerLens's arguments."""
            if self.is_foreign:
                return None
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


def check_gradients_pass(model: Model) -> None:
    """Raise `ModelError` for weights that were made in inference mode: no gradient passes them."""
    if next(iter(model.parameters())).is_inference():
        raise ModelError(
            "The model's weights were made in torch.inference_mode(), so no gradient can pass them. Load the "
            "model outside of it."
        )


def _same(value: Tensor) -> Tensor:
    return value


def _swap_heads(value: Tensor) -> Tensor:
    """[example, head, pos, d_head] → [example, pos, head, d_head], and back."""
    return value.transpose(1, 2)


def _reshape_to(shape: torch.Size) -> Change:
    return lambda value: value.reshape(shape)


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
