"""The tuned lens: an affine map per layer into the last layer's basis (Belrose et al., arXiv 2303.08112).

`fit_tuned_lens` returns a frozen `TunedLens`; `logit_lens(..., lens=)` and `top_tokens(..., lens=)` read
through it. Training itself is in `translators`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr
import xxhash
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.arguments import checked
from workbench.documents import parse_json
from workbench.engine.hooked.forward import check_gradients_pass
from workbench.engine.store_values import check_same_model
from workbench.errors import ProbeError, StoreError
from workbench.files import check_free, whole
from workbench.finite import check_finite
from workbench.lenses.store_reading import last_stream, needed, token_rows
from workbench.lenses.stream_rows import StreamRows
from workbench.lenses.translators import Translators, divergences, trained
from workbench.lenses.unembedding import ReadOut
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.names import KindName
from workbench.results import effect_array, versions
from workbench.sites import Shape
from workbench.statistics import check_level, check_seed, summary
from workbench.stores.format import memory_of
from workbench.stores.store import ActivationStore
from workbench.text import spelled

FORMAT = "interp-workbench tuned lens 1"


@checked
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

    @checked
    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as safetensors, whole or not at all. Raises `OutputExists` rather than replace a file."""
        path = Path(path)
        check_free(path, overwrite=overwrite)
        facts = {name: getattr(self, name) for name in ("kind", "model", "model_name")}
        table = {name: np.asarray(values).tolist() for name, values in self.heldout.items()}
        facts |= {"layers": list(self.layers), "heldout": table, "attrs": dict(self.heldout.attrs)}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        metadata = {"format": FORMAT, "facts": json.dumps(facts)}
        metadata["checksum"] = _checksum(metadata["facts"], tensors.values())
        with whole(path) as partial:
            save_file(tensors, partial, metadata=metadata)
        return path

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "TunedLens":
        """Read back what `save` wrote.

        Raises:
            StoreError: it is something else, or was changed since it was written: its checksum shows it.
        """
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
                facts = parse_json(meta["facts"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            # Files of earlier versions have none.
            if meta.get("checksum") not in (None, _checksum(meta["facts"], (weight, bias))):
                raise StoreError(
                    f"{str(path)!r} was changed since it was written (checksum). Fit the lens again, or take "
                    "the file from a copy."
                )
            layers = tuple(facts["layers"])
            table = {name: ("layer", values) for name, values in facts["heldout"].items()}
            heldout = xr.Dataset(table, coords={"layer": list(layers)}, attrs=facts["attrs"])
            if weight.shape != (len(layers), *bias.shape[1:], *bias.shape[1:]) or len(bias) != len(layers):
                raise StoreError(
                    f"{str(path)!r}: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit "
                    f"{layers}."
                )
            if "gain" not in heldout or len(set(layers)) < len(layers):
                raise ValueError("its layers or its held-out measures are not those of a lens")
            for name, tensor in (("weight", weight), ("bias", bias)):
                check_finite(tensor, f"{name!r} of {str(path)!r}", "Fit the lens again.")
            return cls(layers, weight, bias, facts["kind"], facts["model"], facts["model_name"], heldout)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{str(path)!r} cannot be read as a tuned lens: {error}") from error

    def __repr__(self) -> str:
        gain = float(self.heldout["gain"].mean())
        layers = f"{len(self.layers)} layers of {spelled(self.kind)}"
        return (
            f"<TunedLens of {spelled(self.model_name)}: {layers}, {gain:.3f} nats better than the logit lens>"
        )


def _checksum(facts: str, tensors: Iterable[Tensor]) -> str:
    """xxh3_128 of what a file of a lens says: its facts as they are written, and its numbers."""
    digest = xxhash.xxh3_128(facts.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memory_of(tensor.detach().cpu().contiguous().flatten().view(torch.uint8)))
    return digest.hexdigest()


@checked
@model_call()
def fit_tuned_lens(
    store: ActivationStore,
    model: Model,
    *,
    kind: KindName = "resid_post",
    layers: Sequence[int] | None = None,
    test_share: float = 0.2,
    epochs: int = 20,
    rate: float = 1e-3,
    batch: int = 256,
    level: float = 0.95,
    seed: int = 0,
    budget: int = 2**30,
    progress: bool = True,
) -> TunedLens:
    """A tuned lens: one affine map per layer, trained by KL to give the last layer's distribution.

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
    check_same_model(store, model, "fit_tuned_lens")
    check_gradients_pass(model)
    if min(epochs, batch) < 1 or rate <= 0:
        raise ProbeError(f"epochs={epochs}, batch={batch}, rate={rate}: all of them must be positive.")
    last = Shape.of(model).n_layers - 1
    final = last_stream(store, last, "fit_tuned_lens")
    stored = needed(store, kind, "fit_tuned_lens", layers=layers)
    # The last stream needs no translation: it is what the others are translated to.
    fitted_layers = [layer for layer in stored if (kind, layer) != ("resid_post", last)]
    if not fitted_layers:
        raise StoreError(
            f"fit_tuned_lens: the store holds no {kind} below the last layer. Capture it with "
            f"sites=[{kind!r}]."
        )
    of_rows = token_rows(final)
    held_out = _held_out(store, test_share, seed)[of_rows.prompts]
    # BOS is the same in every prompt, and its activations are far larger than others.
    counted = (of_rows.positions > 0) | (not store.prompts.bos)
    views = [store[kind, layer] for layer in fitted_layers]
    train, test = (StreamRows(views, final, counted & side) for side in (~held_out, held_out))
    read_out = ReadOut.of(model)
    # Logits of every layer, their log-softmax and the gradients of both are held at once.
    batch = min(batch, read_out.rows_at_once(budget, copies=6 * len(fitted_layers)))
    maps = trained(train, read_out, epochs=epochs, rate=rate, batch=batch, seed=seed, progress=progress)
    heldout = _compared(test, read_out, maps, of_rows.prompts, batch=batch, level=level, seed=seed)
    facts = {
        "kind": "tuned_lens", "site": kind, "epochs": epochs, "rate": rate, "batch": batch, "seed": seed,
        "level": level, "test_share": test_share, "model": store.model_name,
        "data_fingerprint": store.prompts.fingerprint,
    }  # fmt: skip
    heldout = heldout.assign_coords(layer=fitted_layers).assign_attrs(facts | versions())
    weight, bias = maps.weight.cpu(), maps.bias.cpu()
    return TunedLens(tuple(fitted_layers), weight, bias, kind, store.model, store.model_name, heldout)


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


@torch.no_grad()
def _compared(
    rows: StreamRows,
    read_out: ReadOut,
    maps: Translators,
    prompt_of_row: Tensor,
    *,
    batch: int,
    level: float,
    seed: int,
) -> xr.Dataset:
    """The held-out KL of tuned and plain lens, with intervals over prompts."""
    n, n_layers = len(rows.final.store), len(maps.weight)
    counts = torch.zeros(n, dtype=torch.float64)
    lenses = {"tuned": maps, "logit": Translators.identity_like(maps)}
    # Summed by prompt, because the intervals are over prompts: [example, layer].
    sums = {name: torch.zeros(n, n_layers, dtype=torch.float64) for name in lenses}
    for block in rows.blocks(shuffle=False):
        for chosen, streams, target in block.batches(batch):
            prompts = prompt_of_row[chosen]
            for name, lens in lenses.items():
                kl = divergences(read_out, streams, target, lens)
                sums[name].index_add_(0, prompts, kl.T.double().cpu())
            counts.index_add_(0, prompts, torch.ones(len(prompts), dtype=torch.float64))
    measured = counts > 0
    means = {name: total[measured] / counts[measured, None] for name, total in sums.items()}
    means["gain"] = means["logit"] - means["tuned"]
    table: dict[str, xr.DataArray] = {}
    for name, values in means.items():
        estimate = summary(effect_array(values, ("example", "layer"), name=name), level=level, seed=seed)
        table |= {name: estimate["mean"], f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return xr.Dataset(table, attrs={"n_prompts": int(measured.sum()), "n_rows": int(counts.sum())})
