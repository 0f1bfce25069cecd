"""The tuned lens: an affine map per layer into the last layer's basis (Belrose et al., arXiv 2303.08112).

`fit_tuned_lens` returns a frozen `TunedLens`; `logit_lens(..., lens=)` and `top_tokens(..., lens=)` read
through it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from workbench.models.model import Model
from workbench.results import effect_array, versions
from workbench.sites import Shape
from workbench.statistics import check_level, check_seed, summary
from workbench.stores.store import ActivationStore, SiteView

FORMAT = "interp-workbench tuned lens 1"
# Rows of a store that are read at a time.
BLOCK = 4096
# Of the least-squares maps, as a share of the mean square of the stream.
RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of a residual stream, one for each layer: rows @ weight[layer] + bias[layer].

    Attributes:
        layers: those that have a translator, in order.
        weight, bias: [layer, d_model, d_model] and [layer, d_model].
        kind: the stream that they translate.
        model, model_name: fingerprint and name of the model.
        heldout: Dataset (layer) of the KL (nats) from the last layer's distribution on held-out prompts:
            `tuned`, `logit` (the plain logit lens on the same rows) and their difference `gain`, each with
            `_low` and `_high`.
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
        """The stream of a layer in the last layer's basis.

        Raises:
            StoreError: the layer has no translator.
        """
        if layer not in self.layers:
            raise StoreError(
                f"This tuned lens has no translator for layer {layer}; it has layers {list(self.layers)}."
            )
        index = self.layers.index(layer)
        stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
        return torch.addmm(self.bias[index].to(stream), stream, self.weight[index].to(stream))

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
                        f"{str(path)!r} is not a tuned lens of this workbench: its format is "
                        f"{meta.get('format')!r}."
                    )
                facts = json.loads(meta["facts"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            layers = tuple(facts["layers"])
            table = {name: ("layer", values) for name, values in facts["heldout"].items()}
            heldout = xr.Dataset(table, coords={"layer": list(layers)}, attrs=facts["attrs"])
            if weight.shape != (len(layers), *bias.shape[1:], *bias.shape[1:]) or len(bias) != len(layers):
                raise StoreError(
                    f"{str(path)!r}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit "
                    f"{layers}."
                )
            return cls(layers, weight, bias, facts["kind"], facts["model"], facts["model_name"], heldout)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{str(path)!r} cannot be read as a tuned lens: {error}") from error

    def __repr__(self) -> str:
        gain = float(self.heldout["gain"].mean())
        layers = f"{len(self.layers)} layers of {self.kind}"
        return f"<TunedLens of {self.model_name}: {layers}, {gain:.3f} nats better than the logit lens>"


def fit_tuned_lens(
    store: ActivationStore,
    model: Model,
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
    """A tuned lens: one affine map per layer whose read-out gives the last layer's distribution, by KL over a
    store.

    Only the store's rows and the model's final norm and unembedding are used; no prompt is run again. Each
    map starts as the least-squares map to the last layer's stream and is trained by Adam with a rate that
    falls to zero.

    Args:
        store: holds `kind` at the layers to fit, and the last layer's `resid_post`.
        layers: by default all that the store has, without the last one's `resid_post`.
        test_share: share of the prompts that is held out; equal prompts stay together. BOS rows are left out.
        epochs: passes over the training rows.
        rate: Adam's first step size.
        batch: rows per step.
        level: coverage of the intervals over held-out prompts.
        seed: of the split, the order of rows and the intervals.
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
    stored = needed(store, kind, "fit_tuned_lens", layers=layers)
    # The last stream needs no translation: it is what the others are translated to.
    wanted = [layer for layer in stored if (kind, layer) != ("resid_post", last)]
    if not wanted:
        raise StoreError(
            f"fit_tuned_lens: the store holds no {kind} below the last layer. Capture it with "
            f"sites=[{kind!r}]."
        )
    of_rows = token_rows(final)
    held_out = _held_out(store, test_share, seed)[of_rows.prompts]
    # BOS is the same in every prompt, and its activations are far larger than others.
    counted = (of_rows.positions > 0) | (not store.prompts.bos)
    views = [store[kind, layer] for layer in wanted]
    train, test = (_StreamRows(views, final, counted & side) for side in (~held_out, held_out))
    read_out = ReadOut.of(model)
    # Logits of every layer, their log-softmax and the gradients of both are held at once.
    batch = min(batch, read_out.rows_at_once(budget, copies=6 * len(wanted)))
    maps = _trained(train, read_out, epochs=epochs, rate=rate, batch=batch, seed=seed, progress=progress)
    heldout = _compared(test, read_out, maps, of_rows.prompts, batch=batch, level=level, seed=seed)
    facts = {
        "kind": "tuned_lens", "site": kind, "epochs": epochs, "rate": rate, "batch": batch, "seed": seed,
        "level": level, "test_share": test_share, "model": store.model_name,
        "data_fingerprint": store.prompts.fingerprint,
    }  # fmt: skip
    heldout = heldout.assign_coords(layer=wanted).assign_attrs(facts | versions())
    weight, bias = maps.weight.cpu(), maps.bias.cpu()
    return TunedLens(tuple(wanted), weight, bias, kind, store.model, store.model_name, heldout)


@dataclass(frozen=True, eq=False)
class _Maps:
    """An affine map for each layer."""

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]

    def __call__(self, streams: Float[Tensor, "layer row d_model"]) -> Float[Tensor, "layer row d_model"]:
        return torch.baddbmm(self.bias[:, None], streams.to(self.weight), self.weight)

    @classmethod
    def identity_like(cls, maps: "_Maps") -> "_Maps":
        """The maps of the plain logit lens."""
        identity = torch.eye(maps.weight.shape[1]).to(maps.weight).expand_as(maps.weight)
        return cls(identity, torch.zeros_like(maps.bias))


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


@dataclass(frozen=True, eq=False)
class _Block:
    """Some rows: which they are, these of every site, and of the last stream."""

    rows: Tensor
    streams: list[Tensor]
    target: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which rows, streams [layer, row, d_model] and last streams [row, d_model]."""
        for start in range(0, len(self.target), size):
            chosen = slice(start, start + size)
            yield (
                self.rows[chosen],
                torch.stack([stream[chosen] for stream in self.streams]),
                self.target[chosen],
            )


class _StreamRows:
    """The same rows of several sites and of the last stream, in blocks."""

    def __init__(self, views: Sequence[SiteView], final: SiteView, chosen: Tensor) -> None:
        self.views, self.final, self.chosen = views, final, chosen
        if not bool(chosen.any()):
            raise ProbeError("fit_tuned_lens: there are no rows but BOS ones to train on or to hold out.")

    def blocks(self, *, shuffle: bool, seed: int = 0) -> Iterator[_Block]:
        """Every chosen row once."""
        of_views = [
            view.data.blocks(size=BLOCK, shuffle=shuffle, seed=seed) for view in (*self.views, self.final)
        ]
        for blocks in zip(*of_views, strict=True):
            rows = blocks[0][0]
            # One seed shuffles all sites alike; a map between different rows would be silent nonsense.
            assert all(bool((other == rows).all()) for other, _ in blocks[1:])
            kept = self.chosen[rows]
            if bool(kept.any()):
                *streams, target = (values[kept] for _, values in blocks)
                yield _Block(rows[kept], streams, target)

    def n_batches(self, size: int) -> int:
        """Batches of up to `size` rows, of which none lies in two blocks."""
        return sum(-(-len(block.rows) // size) for block in self.blocks(shuffle=False))


def _trained(
    rows: _StreamRows, read_out: ReadOut, *, epochs: int, rate: float, batch: int, seed: int, progress: bool
) -> _Maps:
    """Maps fitted by Adam from the least-squares maps, with a rate that falls linearly to zero."""
    start = _least_squares(rows)
    device = model_device(read_out.model)
    maps = _Maps(start.weight.to(device).requires_grad_(), start.bias.to(device).requires_grad_())
    steps = epochs * rows.n_batches(batch)
    adam = torch.optim.Adam([maps.weight, maps.bias], lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(0.0, 1 - step / steps))
    with torch.enable_grad(), tqdm(total=steps, desc="tuned lens", disable=not progress) as bar:
        for epoch in range(epochs):
            for block in rows.blocks(shuffle=True, seed=seed + epoch):
                for _, streams, target in block.batches(batch):
                    adam.zero_grad()
                    # Layers share no weights, so that their losses may be added.
                    _divergences(read_out, streams, target, maps).mean(1).sum().backward()
                    adam.step()
                    schedule.step()
                    bar.update()
    trained = _Maps(maps.weight.detach(), maps.bias.detach())
    if not bool(torch.isfinite(trained.weight).all()) or not bool(torch.isfinite(trained.bias).all()):
        raise ProbeError(f"fit_tuned_lens: training diverged at rate={rate}. Give a smaller one.")
    return trained


@torch.no_grad()
def _least_squares(rows: _StreamRows) -> _Maps:
    """Per layer the ridge map to the last layer's stream, by one pass of sums in float64."""
    size, n_layers = rows.final.data.row_shape[0], len(rows.views)
    # Sums of x x' and x y', where x has a 1 behind it for the bias.
    squares = torch.zeros(n_layers, size + 1, size + 1, dtype=torch.float64)
    products = torch.zeros(n_layers, size + 1, size, dtype=torch.float64)
    for block in rows.blocks(shuffle=False):
        target = block.target.cpu().double()
        for layer, stream in enumerate(block.streams):
            x = torch.cat([stream.cpu().double(), target.new_ones(len(target), 1)], 1)
            squares[layer] += x.T @ x
            products[layer] += x.T @ target
    ridge = RIDGE * squares.diagonal(dim1=1, dim2=2)[:, :size].mean(1) + 1e-12
    penalty = torch.eye(size + 1, dtype=torch.float64)
    # The bias is free.
    penalty[size, size] = 0
    penalties = ridge[:, None, None] * penalty
    # Towards the identity, which is the logit lens, where rows are too few to say.
    prior = torch.eye(size + 1, size, dtype=torch.float64)
    # The last term keeps the system solvable where the bias has no rows of its own.
    system = squares + penalties + 1e-9 * torch.eye(size + 1, dtype=torch.float64)
    solution = torch.linalg.solve(system, products + penalties @ prior)
    return _Maps(solution[:, :size].float().contiguous(), solution[:, size].float().contiguous())


def _divergences(
    read_out: ReadOut, streams: Tensor, target: Tensor, maps: _Maps
) -> Float[Tensor, "layer row"]:
    """KL (nats) from the last stream's distribution to that of every layer's translated stream."""
    with torch.no_grad():
        theirs = read_out(target).float().log_softmax(-1)
    translated = maps(streams)
    # [layer * row, vocab] -> [layer, row, vocab]
    ours = read_out(translated.flatten(0, 1)).float().log_softmax(-1).view(*translated.shape[:2], -1)
    return (theirs.exp() * (theirs - ours)).sum(-1)


@torch.no_grad()
def _compared(
    rows: _StreamRows,
    read_out: ReadOut,
    maps: _Maps,
    prompt_of_row: Tensor,
    *,
    batch: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """The held-out KL of tuned and plain lens, with intervals over prompts."""
    n, n_layers = len(rows.final.store), len(maps.weight)
    counts = torch.zeros(n, dtype=torch.float64)
    lenses = {"tuned": maps, "logit": _Maps.identity_like(maps)}
    # [example, layer]
    sums = {name: torch.zeros(n, n_layers, dtype=torch.float64) for name in lenses}
    for block in rows.blocks(shuffle=False):
        for chosen, streams, target in block.batches(batch):
            prompts = prompt_of_row[chosen]
            for name, lens in lenses.items():
                divergences = _divergences(read_out, streams, target, lens)
                sums[name].index_add_(0, prompts, divergences.T.double().cpu())
            counts.index_add_(0, prompts, torch.ones(len(prompts), dtype=torch.float64))
    measured = counts > 0
    means = {name: total[measured] / counts[measured, None] for name, total in sums.items()}
    means["gain"] = means["logit"] - means["tuned"]
    table: dict[str, xr.DataArray] = {}
    for name, values in means.items():
        estimate = summary(effect_array(values, ("example", "layer"), name=name), level=level, seed=seed)
        table |= {name: estimate["mean"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return xr.Dataset(table, attrs={"n_prompts": int(measured.sum()), "n_rows": int(counts.sum())})
