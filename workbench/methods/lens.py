"""The logit lens: what the model would say if it stopped at a layer (nostalgebraist 2020). It reads stores."""

from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from workbench.engine.reference import forward, rows_per_forward
from workbench.errors import ModelError, PromptError, StoreError, UnknownName
from workbench.models.load import model_device, model_fingerprint, model_name
from workbench.results import as_labels, effect_array, versions
from workbench.sites import Shape
from workbench.stores.store import ActivationStore
from workbench.tasks.metrics import alternatives_mass, alternatives_mean, rank_of_best

MEASURES = ("logit", "logprob", "prob", "rank")


def logit_lens(
    store: ActivationStore,
    model: Any,
    *,
    targets: Int[Tensor, "example alternative token"] | Int[Tensor, "example"],
    minus: Int[Tensor, "example wrong_alternative wrong_token"] | None = None,
    measure: Literal["logit", "logprob", "prob", "rank"] | str = "logit",
    kind: Literal["resid_pre", "resid_post", "resid_mid"] | str = "resid_post",
    budget: int | None = None,
) -> xr.DataArray:
    """Final norm and unembedding applied to the residual stream at every layer and position, read at target tokens.

    At the last layer's `resid_post` this is the model's own output, exactly.

    Args:
        targets: tokens per example (`pairs.answers`); the mean over alternatives is taken (`rank`: the best one).
        minus: tokens to subtract the same measure of (`pairs.wrong`): a logit difference.
        measure: "logit", "logprob" (nats), "prob" (summed over alternatives), "rank" (0 is the top).

    Returns:
        DataArray (example, layer, pos); NaN beyond an example's length. When all prompts have the same token
        strings, the coordinate `token` names the positions.

    Raises:
        StoreError: the store is of another model, or lacks the residual stream.
        PromptError: a target of several tokens, or not one target per example.
    """
    if measure not in MEASURES:
        raise UnknownName("measure of logit_lens", measure, MEASURES)
    if store.model != model_fingerprint(model):
        raise StoreError(
            f"logit_lens: the store is of the model {store.model_name} ({store.model[:8]}), not of {model_name(model)}."
        )
    layers = store.layers(kind)
    if not layers:
        raise StoreError(
            f"logit_lens needs {kind}; the store holds {', '.join(store.kinds)}. Capture it with sites=[..., {kind!r}]."
        )
    wanted = [_one_token(targets, store, "targets")] + ([] if minus is None else [_one_token(minus, store, "minus")])
    _check_read_out(model)
    lengths = store.prompts.lengths
    table = torch.full((len(store.prompts), len(layers), int(lengths.max())), float("nan"), dtype=torch.float64)
    chunk = max(1, rows_per_forward(model, 1, budget=budget))
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
    place = torch.cat([torch.arange(int(n)) for n in lengths])
    for column, layer in enumerate(layers):
        packed = store[kind, layer].packed
        for start in range(0, len(packed), chunk):
            rows = slice(start, start + chunk)
            logits = _read_out(model, packed[rows])
            values = [_measured(logits, tokens[owner[rows]], measure) for tokens in wanted]
            read = values[0] - values[1] if len(values) == 2 else values[0]
            table[owner[rows], column, place[rows]] = read.double().cpu()
    table = table if store[kind, layers[0]].packed.dtype == torch.float64 else table.float()
    attrs = {"kind": "logit_lens", "measure": measure, "minus": minus is not None, "site": kind, "model": store.model_name}
    coords: dict[str, Any] = {"example": np.arange(len(lengths)), "layer": layers, "pos": np.arange(table.shape[2])}
    attrs |= {"model_fingerprint": store.model, "data_fingerprint": store.prompts.fingerprint} | versions()
    made = effect_array(table, ("example", "layer", "pos"), coords, name=measure, attrs=attrs)
    same = len(set(store.prompts.strings)) == 1
    return made.assign_coords(token=("pos", as_labels(store.prompts.strings[0]))) if same else made


def _read_out(model: Any, residual: Tensor) -> Tensor:
    """Logits [row, vocab] of residual vectors, by the model's own final norm and unembedding."""
    with torch.no_grad():
        stream = residual.to(model_device(model))[None]
        logits = model.unembed(model.ln_final(stream) if hasattr(model, "ln_final") else stream)[0]
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or -1.0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def _check_read_out(model: Any) -> None:
    """Raise `ModelError` when norm and unembedding of the last stream are not the model's logits (four tokens)."""
    shape = Shape.of(model)
    last = ("resid_post", shape.n_layers - 1)
    result = forward(model, torch.arange(4)[None, : shape.n_ctx] % shape.d_vocab, record=[last])
    worst = float((_read_out(model, result.recorded[last][0]) - result.logits[0]).abs().max())
    if worst > 1e-3 * float(result.logits.abs().max()):
        raise ModelError(
            f"The logits of this model are not its final norm and unembedding (difference {worst:.2g}): it scales them "
            "afterwards, so the logit lens would not end in its own output."
        )


def _one_token(targets: Tensor, store: ActivationStore, name: str) -> Tensor:
    """[example, alternative, 1] tokens, -1 where there is no alternative."""
    table = targets[:, None, None] if targets.ndim == 1 else targets
    if table.ndim != 3 or len(table) != len(store.prompts):
        raise PromptError(
            f"logit_lens: {name} has shape {tuple(targets.shape)}; it needs [example] or [example, alternative, token] "
            f"for {len(store.prompts)} prompts."
        )
    if bool(((table >= 0).sum(-1) > 1).any()):
        raise PromptError(f"logit_lens: {name} has continuations of several tokens; it reads one token.")
    without = ((table >= 0).flatten(1).sum(1) == 0).nonzero()
    if len(without):
        raise PromptError(f"logit_lens: {name} has no token for example {int(without[0])}.")
    return table[:, :, :1]


def _measured(logits: Tensor, table: Tensor, measure: str) -> Tensor:
    """[row]: the measure of target tokens [row, alternative, 1] under logits [row, vocab]."""
    logits, table = logits if logits.dtype == torch.float64 else logits.float(), table.to(logits.device)
    if measure == "rank":
        return rank_of_best(logits, table)
    if measure == "prob":
        return alternatives_mass(logits, table)
    return alternatives_mean(logits.log_softmax(-1) if measure == "logprob" else logits, table)
