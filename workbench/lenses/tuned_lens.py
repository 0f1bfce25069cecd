"""The tuned lens: an affine map per layer into the last layer's terms (Belrose et al., arXiv 2303.08112), from a store alone.

`fit_tuned_lens` returns a frozen `TunedLens`; `logit_lens(..., lens=)` and `top_tokens(..., lens=)` read through it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import ProbeError, StoreError
from workbench.files import check_free, whole
from workbench.lenses.unembedding import ReadOut, check_store, last_stream, needed, token_rows
from workbench.models.load import model_device
from workbench.results import effect_array, versions
from workbench.sites import Shape
from workbench.statistics import check_level, check_seed, summary
from workbench.stores.store import ActivationStore

FORMAT = "interp-workbench tuned lens 1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of a residual stream, one for each layer: rows @ weight[layer] + bias[layer].

    Attributes:
        layers: those that have a translator, in order.
        weight: [layer, d_model, d_model].  bias: [layer, d_model].
        kind: the stream that they translate.
        model: fingerprint of the model.  model_name: its name.
        heldout: Dataset (layer) of the KL (nats) from the last layer's distribution on held-out prompts: `tuned`, `logit`
            (the plain logit lens on the same rows) and their difference `gain`, each with `_low` and `_high`.
    """

    layers: tuple[int, ...]
    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    kind: str
    model: str
    model_name: str
    heldout: xr.Dataset
    name: str = "tuned"

    def __call__(self, stream: Float[Tensor, "row d_model"], layer: int) -> Float[Tensor, "row d_model"]:
        """The stream of a layer in the last layer's terms. Raises `StoreError` for a layer without a translator."""
        if layer not in self.layers:
            raise StoreError(
                f"This tuned lens has no translator for layer {layer}; it has layers {list(self.layers)}."
            )
        at = self.layers.index(layer)
        stream = stream if stream.dtype == torch.float64 else stream.float()
        weight, bias = (part[at].to(stream) for part in (self.weight, self.bias))
        return torch.addmm(bias, stream, weight)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as safetensors, whole or not at all. Raises `OutputExists` rather than replace a file."""
        path = Path(path)
        check_free(path, overwrite=overwrite)
        facts = {name: getattr(self, name) for name in ("kind", "model", "model_name")}
        table = {name: np.asarray(values).tolist() for name, values in self.heldout.items()}
        facts |= {"layers": list(self.layers), "heldout": table, "attrs": dict(self.heldout.attrs)}
        with whole(path) as partial:
            tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
            save_file(tensors, partial, metadata={"format": FORMAT, "facts": json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "TunedLens":
        """Read back what `save` wrote. Raises `StoreError` for anything else."""
        path = Path(path)
        if not path.is_file():
            raise StoreError(f"There is no tuned lens {str(path)!r}.")
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise StoreError(
                        f"{str(path)!r} is no tuned lens of this workbench: its format is {meta.get('format')!r}."
                    )
                facts, weight, bias = (
                    json.loads(meta["facts"]),
                    file.get_tensor("weight"),
                    file.get_tensor("bias"),
                )
            layers, table = (
                tuple(facts["layers"]),
                {name: ("layer", values) for name, values in facts["heldout"].items()},
            )
            heldout = xr.Dataset(table, coords={"layer": list(layers)}, attrs=facts["attrs"])
            if weight.shape != (len(layers), *bias.shape[1:], *bias.shape[1:]) or len(bias) != len(layers):
                raise StoreError(
                    f"{str(path)!r}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit {layers}."
                )
            return cls(layers, weight, bias, facts["kind"], facts["model"], facts["model_name"], heldout)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{str(path)!r} cannot be read as a tuned lens: {error}") from error

    def __repr__(self) -> str:
        gain = float(self.heldout["gain"].mean())
        return f"<TunedLens of {self.model_name}: {len(self.layers)} layers of {self.kind}, {gain:.3f} nats better than the logit lens>"


def fit_tuned_lens(
    store: ActivationStore,
    model: Any,
    *,
    kind: str = "resid_post",
    layers: Sequence[int] | None = None,
    test_share: float = 0.2,
    epochs: int = 20,
    rate: float = 1e-3,
    batch: int = 256,
    level: float = 0.95,
    seed: int = 0,
    budget: int = 2**30,
    progress: bool = False,
) -> TunedLens:
    """Fit one affine map per layer so that reading it out gives the last layer's distribution, by KL over a store's rows.

    Only the store's rows and the model's final norm and unembedding are used; no prompt is run again. Each map starts as
    the least-squares map to the last layer's stream and is trained by Adam with a rate that falls to zero.

    Args:
        store: holds `kind` at the layers to fit, and the last layer's `resid_post`.
        layers: all that the store has, but the last one's `resid_post`, unless told.
        test_share: share of the prompts that is held out; equal prompts stay together. BOS rows are left out.
        epochs: passes over the training rows.  rate: Adam's first step size.  batch: rows per step.
        level: coverage of the intervals over held-out prompts.
        budget: bytes that rows, logits and their gradients may take.

    Raises:
        StoreError: the store is of another model, or lacks a stream.
        ProbeError: too few prompts to hold some out.
    """
    check_seed(seed)
    check_level(level)
    check_store(store, model, "fit_tuned_lens")
    if min(epochs, batch) < 1 or rate <= 0:
        raise ProbeError(f"epochs={epochs}, batch={batch}, rate={rate}: all of them must be positive.")
    last = Shape.of(model).n_layers - 1
    final = last_stream(store, last, "fit_tuned_lens")
    wanted = [
        layer
        for layer in needed(store, kind, "fit_tuned_lens", layers=layers)
        if (kind, layer) != ("resid_post", last)
    ]
    if not wanted:
        raise StoreError(
            f"fit_tuned_lens: the store holds no {kind} below the last layer. Capture it with sites=[{kind!r}]."
        )
    owner, place = token_rows(final)
    held = _held_out(store, test_share, seed)[owner]
    counted = (place > 0) | (not store.prompts.bos)
    views = [store[kind, layer] for layer in wanted]
    rows = _StreamRows(views, final, counted & ~held)
    read_out = ReadOut.of(model)
    batch = min(batch, read_out.rows_at_once(budget, copies=6 * len(wanted)))
    weight, bias = _least_squares(rows)
    weight, bias = (part.to(model_device(model)).requires_grad_() for part in (weight, bias))
    steps = epochs * sum(-(-n // batch) for n in rows.sizes())
    descent = torch.optim.Adam([weight, bias], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(descent, lambda step: max(0.0, 1 - step / steps))
    with torch.enable_grad(), tqdm(total=steps, desc="tuned lens", disable=not progress) as bar:
        for epoch in range(epochs):
            for streams, target in rows.shuffled(batch, seed + epoch):
                descent.zero_grad()
                loss = _divergences(read_out, streams, target, weight, bias).mean(1).sum()
                loss.backward()
                descent.step()
                schedule.step()
                bar.update()
    weight, bias = weight.detach(), bias.detach()
    if not all(bool(torch.isfinite(part).all()) for part in (weight, bias)):
        raise ProbeError(f"fit_tuned_lens: training diverged at rate={rate}. Give a smaller one.")
    heldout = _compared(
        _StreamRows(views, final, counted & held), read_out, weight, bias, owner, batch, level, seed
    )
    facts = {
        "kind": "tuned_lens",
        "site": kind,
        "epochs": epochs,
        "rate": rate,
        "batch": batch,
        "seed": seed,
        "level": level,
    }
    facts |= {
        "test_share": test_share,
        "model": store.model_name,
        "data_fingerprint": store.prompts.fingerprint,
    }
    heldout = heldout.assign_coords(layer=wanted).assign_attrs(facts | versions())
    return TunedLens(tuple(wanted), weight.cpu(), bias.cpu(), kind, store.model, store.model_name, heldout)


def _held_out(store: ActivationStore, share: float, seed: int) -> Tensor:
    """[example]: whether a prompt is held out; equal prompts go together."""
    ids = {prompt_id: i for i, prompt_id in enumerate(dict.fromkeys(store.prompts.ids))}
    n = round(share * len(ids))
    if not 0 < share < 1 or not 0 < n < len(ids):
        raise ProbeError(
            f"test_share={share} of {len(ids)} different prompts leaves none to train on or none held out."
        )
    chosen = np.zeros(len(ids), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(ids))[:n]] = True
    return torch.from_numpy(chosen[[ids[prompt_id] for prompt_id in store.prompts.ids]])


class _StreamRows:
    """The same rows of several sites and of the last stream, in blocks."""

    def __init__(self, views: Sequence[Any], final: Any, chosen: Tensor) -> None:
        self.views, self.final, self.chosen = views, final, chosen
        if not bool(chosen.any()):
            raise ProbeError("fit_tuned_lens: there are no rows but BOS ones to train on or to hold out.")

    def blocks(self, *, shuffle: bool, seed: int = 0) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        """Which rows, these of every site, and of the last stream; every chosen row once."""
        how: dict[str, Any] = {"size": 4096, "shuffle": shuffle, "seed": seed}
        for parts in zip(*(view.data.blocks(**how) for view in (*self.views, self.final)), strict=True):
            rows = parts[0][0]
            assert all(bool((other == rows).all()) for other, _ in parts[1:])
            kept = self.chosen[rows]
            if bool(kept.any()):
                yield rows[kept], [block[kept] for _, block in parts[:-1]], parts[-1][1][kept]

    def sizes(self) -> list[int]:
        return [len(rows) for rows, _, _ in self.blocks(shuffle=False)]

    def shuffled(self, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Streams [layer, row, d_model] and last streams [row, d_model]."""
        for _, streams, target in self.blocks(shuffle=True, seed=seed):
            for start in range(0, len(target), batch):
                part = slice(start, start + batch)
                yield torch.stack([stream[part] for stream in streams]), target[part]


@torch.no_grad()
def _least_squares(rows: _StreamRows) -> tuple[Tensor, Tensor]:
    """Per layer the ridge map to the last stream, by one pass of sums in float64: weight [layer, d, d], bias [layer, d]."""
    size = rows.final.data.row_shape[0]
    n, squares = 0, torch.zeros(len(rows.views), size + 1, size + 1, dtype=torch.float64)
    across = torch.zeros(len(rows.views), size + 1, size, dtype=torch.float64)
    for _, streams, target in rows.blocks(shuffle=False):
        wanted = target.cpu().double()
        for at, stream in enumerate(streams):
            x = torch.cat([stream.cpu().double(), wanted.new_ones(len(wanted), 1)], 1)
            squares[at] += x.T @ x
            across[at] += x.T @ wanted
        n += len(wanted)
    ridge = 1e-4 * squares.diagonal(dim1=1, dim2=2)[:, :size].mean(1) + 1e-12
    penalty = torch.eye(size + 1, dtype=torch.float64)
    penalty[size, size] = 0
    # Towards the identity, which is the logit lens, where rows are too few to say.
    prior = torch.eye(size + 1, size, dtype=torch.float64)
    bent = ridge[:, None, None] * penalty
    found = torch.linalg.solve(
        squares + bent + 1e-9 * torch.eye(size + 1, dtype=torch.float64), across + bent @ prior
    )
    return found[:, :size].float().contiguous(), found[:, size].float().contiguous()


def _divergences(read_out: ReadOut, streams: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[layer, row]: KL (nats) from the last stream's distribution to that of every layer's translated stream."""
    with torch.no_grad():
        theirs = read_out(target).float().log_softmax(-1)
    translated = torch.baddbmm(bias[:, None], streams.to(weight), weight)
    ours = read_out(translated.flatten(0, 1)).float().log_softmax(-1).view(*translated.shape[:2], -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


@torch.no_grad()
def _compared(
    rows: _StreamRows,
    read_out: ReadOut,
    weight: Tensor,
    bias: Tensor,
    owner: Tensor,
    batch: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """The held-out KL of tuned and plain lens, with intervals over prompts."""
    plain = torch.eye(weight.shape[1]).to(weight).expand_as(weight), torch.zeros_like(bias)
    n = len(rows.final.store)
    sums, counts = torch.zeros(2, n, len(weight), dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for which, streams, target in rows.blocks(shuffle=False):
        for start in range(0, len(target), batch):
            part = slice(start, start + batch)
            x, y, prompt = torch.stack([stream[part] for stream in streams]), target[part], owner[which[part]]
            for at, (w, b) in enumerate(((weight, bias), plain)):
                sums[at].index_add_(0, prompt, _divergences(read_out, x, y, w, b).T.double().cpu())
            counts.index_add_(0, prompt, torch.ones(len(prompt), dtype=torch.float64))
    tuned, logit = sums[:, counts > 0] / counts[counts > 0, None]
    table = {}
    for name, values in (("tuned", tuned), ("logit", logit), ("gain", logit - tuned)):
        found = summary(effect_array(values, ("example", "layer"), name=name), level=level, seed=seed)
        table |= {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
    return xr.Dataset(table, attrs={"n_prompts": int((counts > 0).sum()), "n_rows": int(counts.sum())})
