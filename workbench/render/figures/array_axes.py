"""The axes of an array as a figure shows them: without axes of one label, and of many cells the strongest.

They are applied in the order of the file: `up_to_end`, `without_single`, `by_layer_and_head`,
`strongest_cells`. Which figure is drawn is decided in `array_plots`.
"""

import re
from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.render.figures.notes import noted, over_examples

MOST_BARS, MOST_NEURONS = 60, 64
FEW_WRITERS = 8
"""Writers of paths that are no grid of layers and heads: most of its cells would be empty."""
AT_LAST_TOKEN = ("logit_lens", "norms")
"""Kinds of results whose prompts are compared at their last token."""
STRONGEST = 24
"""Cells shown, the strongest, of an axis with more than `MOST_BARS` (edges, paths) or `MOST_NEURONS`."""


def axes_of_cells(result: xr.DataArray) -> list[str]:
    """The axes that a figure shows: all but `example`, over which the mean is taken."""
    return [str(axis) for axis in result.dims if axis != "example"]


def comparable_positions(result: xr.DataArray) -> xr.DataArray:
    """The result without a mean over prompts at positions that are not the same word in each.

    Position 5 of one template is another word in the next, so that a mean over both says nothing. A measure of
    the stream is shown at the last token of each prompt; of other results the first prompt is shown, and a note
    says how to ask for more. Named positions, and prompts whose tokens are all alike (`token`), are comparable.
    """
    places = [axis for axis in ("pos", "query_pos", "key_pos") if axis in result.dims]
    if result.sizes.get("example", 1) < 2 or not places or _are_alike(result, places):
        return result
    if result.attrs.get("kind") in AT_LAST_TOKEN:
        return noted(at_last_token(result), "at the last token of each prompt")
    n = result.sizes["example"]
    first = result.isel(example=0)
    note = f"prompt 0 of {n}: positions of different prompts are not averaged; name them, as in pos=['END']"
    return noted(first, note)


def at_last_token(result: xr.DataArray) -> xr.DataArray:
    """The last position of each prompt that was measured."""
    if "pos" not in result.dims:
        return result
    measured = result.notnull().any([axis for axis in result.dims if axis not in ("example", "pos")])
    places = xr.DataArray(np.arange(result.sizes["pos"]), dims="pos")
    last = xr.where(measured, places, -1).max("pos").clip(min=0)
    return result.isel(pos=last).drop_vars(
        [name for name in result.coords if "pos" in str(name)], errors="ignore"
    )


def _are_alike(result: xr.DataArray, places: Sequence[str]) -> bool:
    """Whether the positions mean the same in every prompt: named ones, single ones, or equal tokens."""
    for axis in places:
        labels = result.coords.get(axis)
        is_named = labels is not None and labels.dtype.kind in "OUT"
        if result.sizes[axis] > 1 and not is_named and "token" not in result.coords:
            return False
    return True


def up_to_end(result: xr.DataArray) -> xr.DataArray:
    """One prompt without the positions after its end, whose tokens are ""."""
    tokens = result.coords.get("pos_token")
    if tokens is None or "pos" not in tokens.dims:
        return result
    others = tuple(i for i, dim in enumerate(tokens.dims) if dim != "pos")
    filled = np.flatnonzero((tokens.values != "").any(others))
    if len(filled):
        return result.isel(pos=slice(0, int(filled[-1]) + 1))
    return result


def without_single(result: xr.DataArray) -> xr.DataArray:
    """The result without axes of one label, which become notes; one axis besides `example` stays."""
    notes = []
    for axis in map(str, result.dims):
        if axis == "example" or result.sizes[axis] > 1:
            continue
        if len(axes_of_cells(result)) == 1:  # without any axis there would be nothing to draw
            break
        notes.append(f"{axis} {result[axis].values[0]}")
        result = result.isel({axis: 0}, drop=True)
    return noted(result, *notes)


def by_layer_and_head(result: xr.DataArray) -> xr.DataArray:
    """An axis of heads `a3.4` and MLPs `m3` as two axes, layer and head, with the MLP as the last column.

    Done where there is more than one head, and no other axis than `example` and a few readers beside it. What
    is neither (input, bias, embeddings) becomes a note.
    """
    dim = next((str(axis) for axis in result.dims if axis in ("writer", "component")), None)
    others = [axis for axis in result.dims if axis not in ("example", dim)]
    if dim is None or any(axis != "reader" or result.sizes[axis] > 6 for axis in others):
        return result
    if dim == "writer" and "reader" in others and result.sizes[dim] <= FEW_WRITERS:
        return result
    names = list(map(str, result[dim].values))
    cells: dict[int, tuple[int, str]] = {}
    for i, name in enumerate(names):
        match = re.fullmatch(r"(?:a(\d+)\.(\d+)|m(\d+))", name)
        if match:
            cells[i] = int(match[1] or match[3]), match[2] or "mlp"
    rest = [i for i in range(len(names)) if i not in cells]
    heads = {int(column) for _, column in cells.values() if column != "mlp"}
    if len(heads) < 2 or any(names[i] not in ("input", "bias", "embed", "pos_embed") for i in rest):
        return result
    result = over_examples(result).transpose(*others, dim)
    layers = sorted({layer for layer, _ in cells.values()})
    columns = list(map(str, sorted(heads)))
    if any(column == "mlp" for _, column in cells.values()):
        columns.append("mlp")
    # layers need not have the same heads; a cell that is not there stays NaN and is hatched
    table = np.full((*result.shape[:-1], len(layers), len(columns)), np.nan)
    for i, (layer, column) in cells.items():
        table[..., layers.index(layer), columns.index(column)] = result.values[..., i]
    coords = {axis: result[axis] for axis in others}
    coords |= {"layer": layers, "head": np.array(columns, dtype=object)}
    dims = (*others, "layer", "head")
    grid = xr.DataArray(table, dims=dims, coords=coords, name=result.name, attrs=result.attrs)
    if others:
        return grid
    return noted(grid, *(f"{names[i]} {float(result.values[i]):+.3g}" for i in rest))


def strongest_cells(result: xr.DataArray) -> xr.DataArray:
    """The strongest neurons, edges or paths where there are too many to show; the rest of the axes stays.

    Layers and neurons become one axis.
    """
    axes = axes_of_cells(result)
    if result.sizes.get("neuron", 0) > MOST_NEURONS or ("neuron" in axes and len(axes) > 2):
        if "layer" in axes:
            result = _layers_and_neurons(result)
        return _cut(result, "neuron")
    # positions and layers are read in their order: a few of them alone would say nothing
    is_ordered = axes[0] in ("layer", "pos", "query_pos", "key_pos")
    if len(axes) == 1 and result.sizes[axes[0]] > MOST_BARS and not is_ordered:
        return _cut(_edge_names(result), axes[0])
    return result


def _layers_and_neurons(result: xr.DataArray) -> xr.DataArray:
    """Neurons of all layers along one axis, named as in `m3:113`."""
    names = [f"m{layer}:{n}" for layer in result["layer"].values for n in result["neuron"].values]
    coords = [name for name, coord in result.coords.items() if {"layer", "neuron"} & set(coord.dims)]
    # coordinates of either axis would be repeated for every cell of the other, and hide the new names
    flat = result.drop_vars(coords).stack(at=("layer", "neuron"), create_index=False)
    return flat.rename(at="neuron").assign_coords(neuron=np.array(names, dtype=object))


def _edge_names(result: xr.DataArray) -> xr.DataArray:
    """An axis of edges with names as in `a3.4->logits`; other results as they are."""
    if "edge" not in result.dims or not {"writer", "reader"} <= set(result.coords):
        return result
    ends = zip(result["writer"].values, result["reader"].values, strict=True)
    names = [f"{writer}->{reader}" for writer, reader in ends]
    return result.drop_vars(("writer", "reader")).assign_coords(edge=np.array(names, dtype=object))


def _cut(result: xr.DataArray, axis: str) -> xr.DataArray:
    """The strongest cells along an axis, which becomes the first besides `example`."""
    shown = result.isel({axis: by_strength(result.transpose(axis, ...))[:STRONGEST]})
    if shown.sizes[axis] < result.sizes[axis]:
        shown = noted(shown, f"the {shown.sizes[axis]} strongest of {result.sizes[axis]:,} {axis}s")
    first = [dim for dim in ("example", axis) if dim in shown.dims]
    return shown.transpose(*first, ...)


def by_strength(result: xr.DataArray) -> np.ndarray:
    """Indices along the first axis, strongest first: by the size of the mean over examples, the largest over
    the other axes.
    """
    size = abs(over_examples(result)).fillna(0)  # what was not measured cannot be among the strongest
    return np.argsort(-size.max([dim for dim in size.dims if dim != result.dims[0]]).values, kind="stable")
