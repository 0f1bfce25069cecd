"""AtP*: first-order edge scores with attention recomputed for edges into queries and keys, and gradients with layers dropped.

A saturated softmax has no slope: an edge into a query or key is therefore worked out up to the attention pattern, and only
what comes after is linear. GradDrop: the score is the mean of |score| over runs in which one layer's writes pass no
gradient on, so that a direct and an indirect effect that cancel are not lost; it keeps the sign of the plain estimate.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.engine.gradients.edge_gradients import EdgeTable
from workbench.engine.gradients.reader_gradients import GradientRun, ReaderMaps, reader_gradients
from workbench.engine.gradients.runs import GradientRuns


def atp_star_table(
    runs: GradientRuns, maps: Sequence[ReaderMaps], keep: Sequence[str], *, room: int
) -> tuple[Tensor, int]:
    """Sums over a batch [example or 1, pos or class or 1, writer, reader], and how many passes it took.

    Source: Kramár et al. 2403.00745; there it is a magnitude, here it has a sign.
    """
    n_layers = runs.graph.shape.n_layers
    plain, *dropped = (runs.at([1.0]), *(runs.dropped(layer) for layer in range(n_layers) if n_layers > 1))
    tables = [
        EdgeTable(runs.batch, runs.graph, ("example", *keep), start=runs.start) for _ in (plain, *dropped)
    ]
    attention = {f"<{port}>" for port in "qk"}
    with torch.no_grad():
        for run, table in zip((plain, *dropped), tables, strict=True):
            for readers, slope in reader_gradients(run, maps, runs.graph, room=room):
                if runs.graph.readers[readers.start][-3:] in attention:
                    continue
                for writers, change in runs.sources.upto(int(table.before[readers.start])):
                    table.put(writers, readers, change, slope)
        for layer in range(n_layers):
            _Attention(runs, layer, [plain, *dropped]).add(tables, room)
    signed, *magnitudes = (table.values for table in tables)
    if magnitudes:
        # The run that drops a reader's own layer sees nothing of it: the mean is over the others. The logits have no layer.
        seen = torch.tensor(
            [n_layers if reader == "logits" else n_layers - 1 for reader in runs.graph.readers]
        )
        signed = signed.sign() * torch.stack([each.abs() for each in magnitudes]).sum(0) / seen
    return signed if "example" in keep else signed.sum(0, keepdim=True), 1 + len(magnitudes)


class _Attention:
    """The attention of one layer in the clean run, and what changed queries or keys make of it."""

    def __init__(self, runs: GradientRuns, layer: int, each: Sequence[GradientRun]) -> None:
        self.runs, self.layer, self.each = runs, layer, each
        assert runs.batch.walk is not None
        self.decoder, self.shape = runs.batch.walk.decoder, runs.graph.shape
        self.block, self.stream = self.decoder.layers[layer], each[0].streams[layer][0]
        length = self.stream.shape[1]
        self.pos = torch.arange(runs.start, runs.start + length, device=self.stream.device)
        self.hidden = self.pos[None, :] > self.pos[:, None]
        normed = self.block.attn_norm(self.stream)
        self.q, self.k = (self._heads(normed, port) for port in "qk")
        v = (
            self.block.v(normed)
            .view(*normed.shape[:2], self.shape.n_kv_heads, -1)
            .repeat_interleave(self.shape.group, 2)
        )
        # How much the metric changes with each entry of the pattern, in every run.
        self.worth = [torch.einsum("bkhe,bqhe->bhqk", v, run.slopes["z", layer][0]) if ("z", layer) in run.slopes else None for run in each]  # fmt: skip
        self.pattern = self._pattern(self.q, self.k)

    def _heads(self, normed: Tensor, port: str) -> Tensor:
        """Rotated queries or keys [..., pos, head, d_head], keys repeated for the queries that share them."""
        linear, heads = (
            getattr(self.block, port),
            self.shape.n_heads if port == "q" else self.shape.n_kv_heads,
        )
        made = self.decoder.heads(
            linear(normed).view(*normed.shape[:-1], heads, self.shape.d_head), self.layer, port, self.pos
        )
        return made if port == "q" else made.repeat_interleave(self.shape.group, -2)

    def _pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """[..., head, query, key]."""
        scores = torch.einsum("...qhe,...khe->...hqk", q, k) * self.block.scale
        scores = scores.masked_fill(self.hidden, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1, dtype=self.decoder.softmax).to(q.dtype)

    def add(self, tables: Sequence[EdgeTable], room: int) -> None:
        """Add the scores of all edges into queries and keys of the layer to the tables of the runs."""
        graph = self.runs.graph
        first = graph.reader_index[f"a{self.layer}.0<q>"]
        queries = slice(first, first + self.shape.n_heads)
        keys = slice(queries.stop, queries.stop + self.shape.n_kv_heads)
        each = self.stream.numel() * 6 + 4 * self.pattern.numel()
        for writers, change in self.runs.sources.upto(int(tables[0].before[first])):
            at = writers.start
            for part in change.split(max(1, room // each)):
                mine = slice(at, at + len(part))
                normed = self.block.attn_norm(self.stream - part)
                self._add_queries(tables, mine, queries, self._heads(normed, "q"))
                self._add_keys(tables, mine, keys, self._heads(normed, "k"))
                at = mine.stop

    def _add_queries(self, tables: Sequence[EdgeTable], writers: slice, readers: slice, q: Tensor) -> None:
        change = self.pattern - self._pattern(q, self.k)  # [writer, example, head, query, key]
        for table, worth in zip(tables, self.worth, strict=True):
            if worth is not None:
                found = (change * worth).sum(-1)  # [writer, example, head, query]
                for place, tokens in self._places(table):
                    here = found if tokens is None else found * tokens[:, None]
                    self._put(table, place, writers, readers, here.sum(-1))

    def _add_keys(self, tables: Sequence[EdgeTable], writers: slice, readers: slice, k: Tensor) -> None:
        for place, tokens in self._places(tables[0]):
            moved = k if tokens is None else torch.where(tokens[..., None, None] > 0, k, self.k)
            change = self.pattern - self._pattern(self.q, moved)
            for table, worth in zip(tables, self.worth, strict=True):
                if worth is not None:
                    heads = (change * worth).sum((-1, -2))
                    self._put(
                        table, place, writers, readers, heads.unflatten(-1, (-1, self.shape.group)).sum(-1)
                    )

    def _places(self, table: EdgeTable) -> list[tuple[int, Tensor | None]]:
        """Places of the table with a mask [example, pos] of their tokens; None: all tokens."""
        n, length = self.stream.shape[:2]
        if "pos" in table.keep:
            return [(int(p), (self.pos == p).to(self.stream).expand(n, length)) for p in self.pos]
        if table.classes is None:
            return [(0, None)]
        classes = table.classes.to(self.stream.device)
        return [
            (number, (classes == number).to(self.stream))
            for number in range(len(self.runs.graph.positions or ()))
        ]

    def _put(self, table: EdgeTable, place: int, writers: slice, readers: slice, found: Tensor) -> None:
        """Add [writer, example, reader]."""
        table.values[:, place, writers, readers] += found.movedim(1, 0).double().cpu()
