"""`circuit_by_rows`: a run of a circuit that the model makes all by itself, to check the circuit runs with.

Every reader has a row of the batch, and the stream of that row is what the reader sees: at each writer, the
rows whose edge is cut take the counterfactual value. Norms, projections, biases and sums are the model's own,
and no weight is read here. Readers that lack the same edges share a row, so that few rows are enough.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.hooked.forward import Change, Write, forward
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.sites import Key


def circuit_by_rows(
    model: Model,
    graph: Graph,
    prompt: Prompts,
    *,
    cut: Bool[Tensor, "row writer"],
    row_of: Int[Tensor, "reader"],
    patched: Mapping[Key, Tensor],
) -> Float[Tensor, "pos vocab"]:
    """The logits of a circuit in which reader v lacks the edge from u where `cut[row_of[v], u]`.

    Args:
        prompt: a single one.
        cut: which writers each row cuts. Writers after a reader do not matter to it.
        row_of: the row of every reader.
        patched: (kind, layer) of "resid_pre" 0 and of every "z" and "mlp_out" → [1, pos, ...], the
            counterfactual value.
    """
    rows = _RowWrites(graph, cut, row_of, patched)
    tokens = prompt.tokens.repeat(len(cut), 1)
    return forward(model, tokens, writes=rows.writes()).logits[rows.row("logits")]


class _RowWrites:
    """What is written at each activation, in all rows at once."""

    def __init__(self, graph: Graph, cut: Tensor, row_of: Tensor, patched: Mapping[Key, Tensor]) -> None:
        self.graph, self.cut, self.row_of, self.patched = graph, cut, row_of, patched

    def row(self, reader: str) -> int:
        """The row of a reader."""
        return int(self.row_of[self.graph.reader_index[reader]])

    def writes(self) -> list[Write]:
        """The edits of every writer and reader, in the order of the model."""
        shape = self.graph.shape
        writes = [Write("resid_pre", 0, self._patch(("resid_pre", 0), ["input"]))]
        for layer in range(shape.n_layers):
            for port, n_heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
                readers = [f"a{layer}.{head}<{port}>" for head in range(n_heads)]
                writes.append(Write(port, layer, self._gather(readers)))
            heads = [f"a{layer}.{head}" for head in range(shape.n_heads)]
            writes.append(Write("z", layer, self._patch(("z", layer), heads)))
            if not shape.attn_only:
                writes.append(Write("mlp_out", layer, self._patch_mlp(layer)))
        return writes

    def _gather(self, readers: Sequence[str]) -> Change:
        """Each head's query (key, value) from the row of that reader, for every row."""
        rows = [self.row(reader) for reader in readers]

        def change(value: Tensor) -> Tensor:
            """[row, pos, head, d_head]."""
            heads = [value[row, :, head] for head, row in enumerate(rows)]
            return torch.stack(heads, 1)[None].expand_as(value)

        return change

    def _patch(self, key: Key, writers: Sequence[str]) -> Change:
        """The counterfactual value in the rows that cut the writer."""
        columns = [self.graph.writer_index[writer] for writer in writers]

        def change(value: Tensor) -> Tensor:
            """[row, pos, d_model], or [row, pos, head, d_head] with a writer for each head."""
            cut = self.cut[:, None, columns, None].to(value.device)  # [row, 1, writer, 1]
            # A stream [row, pos, d_model] has one writer and no axis for it.
            mask = cut if value.ndim == 4 else cut[:, :, 0]
            return torch.where(mask, self.patched[key].to(value), value)

        return change

    def _patch_mlp(self, layer: int) -> Change:
        """What the MLP writes in the row that it reads, or the counterfactual value, for every row."""
        patch, row = self._patch(("mlp_out", layer), [f"m{layer}"]), self.row(f"m{layer}")
        return lambda value: patch(value[row : row + 1].expand_as(value))
