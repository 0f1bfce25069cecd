"""AtP*: first-order edge scores with attention recomputed for edges into queries and keys, and with GradDrop.

A saturated softmax has no gradient: an edge into a query or key is therefore worked out up to the attention
pattern, and only what comes after is linear. GradDrop: the score is the mean of |score| over the plain run and
runs in which one layer's writes pass no gradient on, so that a direct and an indirect effect that cancel are
not lost; it keeps the sign of the plain estimate.

The paper's mean leaves the plain run out. A path is lost in the run of each layer that it passes, so a path
through all other layers would then score 0: in a model of two layers every effect of the first layer through
the second. With the plain run a path through k other layers keeps n_layers - k of n_layers parts.

What still scores 0, though it may matter: an edge whose whole effect passes a softmax that is saturated, or
neurons that are closed, in a later block. There the gradient is 0 in every run.

Read `atp_star_table`, then `_Attention`. Source: Kramár et al. 2403.00745.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.engine.gradients.edge_gradients import EdgeTable
from workbench.engine.gradients.gradient_run import GradientRun
from workbench.engine.gradients.reader_gradients import ReaderMaps, reader_gradients
from workbench.engine.gradients.runs import GradientRuns


def atp_star_table(
    runs: GradientRuns, maps: Sequence[ReaderMaps], keep: Sequence[str], *, room: int
) -> tuple[Tensor, int]:
    """Sums over a batch [example or 1, pos or class or 1, writer, reader], and how many passes it took.

    Args:
        keep: axes that are not summed over: "example", "pos".
        room: how many numbers a block of readers or writers may hold.

    Source: Kramár et al. 2403.00745; there it is a magnitude without the plain run, here it has a sign.
    """
    n_layers = runs.graph.shape.n_layers
    plain = runs.at([1.0])
    # With one layer there is nothing to cancel, and dropping it would leave nothing.
    passes = [plain]
    if n_layers > 1:
        passes += [runs.dropped(layer) for layer in range(n_layers)]
    tables = [EdgeTable(runs.batch, runs.graph, ("example", *keep), start=runs.start) for _ in passes]
    with torch.no_grad():
        for run, table in zip(passes, tables, strict=True):
            for readers, gradient in reader_gradients(run, maps, runs.graph, room=room):
                # Slices never mix ports; `_Attention` scores queries and keys below, not linearly.
                if runs.graph.readers[readers.start].endswith(("<q>", "<k>")):
                    continue
                for writers, change in runs.sources.upto(int(table.before[readers.start])):
                    table.put(writers, readers, change, gradient)
        for layer in range(n_layers):
            _Attention(runs, layer, passes).add(tables, room)
    values = [table.values for table in tables]
    signed = values[0]
    if len(values) > 1:
        # The run that drops a reader's own layer sees nothing of it: the mean is over the others. The logits
        # are in no layer, so for them every run counts.
        n_seen = torch.full((len(runs.graph.readers),), n_layers)
        n_seen[runs.graph.reader_index["logits"]] = n_layers + 1
        magnitude = torch.stack([of_run.abs() for of_run in values]).sum(0) / n_seen
        # Where the plain estimate cancels to exactly 0 there is no sign to keep, and the size must not be lost.
        signed = torch.where(signed < 0, -magnitude, magnitude)
    if "example" not in keep:
        signed = signed.sum(0, keepdim=True)
    return signed, len(passes)


class _Attention:
    """The attention of one layer in the clean run, and what changed queries or keys make of it.

    Args:
        passes: whose gradients are used, one table of scores each.
    """

    def __init__(self, runs: GradientRuns, layer: int, passes: Sequence[GradientRun]) -> None:
        self.runs, self.layer = runs, layer
        assert runs.batch.walk is not None
        self.decoder, self.shape = runs.batch.walk.decoder, runs.graph.shape
        self.block, self.stream = self.decoder.layers[layer], passes[0].streams[layer][0]
        length = self.stream.shape[1]
        self.pos = torch.arange(runs.start, runs.start + length, device=self.stream.device)
        self.hidden = self.pos[None, :] > self.pos[:, None]
        normed = self.block.attn_norm(self.stream)
        self.q, self.k = (self._heads(normed, port) for port in "qk")
        v = self.block.v(normed).view(*normed.shape[:2], self.shape.n_kv_heads, -1)
        v = v.repeat_interleave(self.shape.group, 2)
        # Once for all writers: dm/d of the pattern [example, head, query, key] in each pass; None where z has
        # no gradient.
        self.pattern_gradients: list[Tensor | None] = []
        for run in passes:
            z_gradient, pattern_gradient = run.gradients.get(("z", layer)), None
            if z_gradient is not None:
                pattern_gradient = torch.einsum("bkhe,bqhe->bhqk", v, z_gradient[0])
            self.pattern_gradients.append(pattern_gradient)
        self.pattern = self._pattern(self.q, self.k)

    def _heads(self, normed: Tensor, port: str) -> Tensor:
        """Rotated queries or keys [..., pos, head, d_head], keys repeated for the queries that share them."""
        n_heads = {"q": self.shape.n_heads, "k": self.shape.n_kv_heads}[port]
        heads = getattr(self.block, port)(normed).view(*normed.shape[:-1], n_heads, self.shape.d_head)
        heads = self.decoder.heads(heads, self.layer, port, self.pos)
        if port == "k":
            # [..., pos, kv_head, d_head] -> [..., pos, head, d_head]
            heads = heads.repeat_interleave(self.shape.group, -2)
        return heads

    def _pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """[..., head, query, key]."""
        scores = torch.einsum("...qhe,...khe->...hqk", q, k) * self.block.scale
        # The lowest finite number, as in `Decoder.attend`: a row of -inf would become NaN in the softmax.
        scores = scores.masked_fill(self.hidden, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, -1, dtype=self.decoder.softmax).to(q.dtype)

    def add(self, tables: Sequence[EdgeTable], room: int) -> None:
        """Add the scores of all edges into queries and keys of the layer to the tables of the runs."""
        graph = self.runs.graph
        first = graph.reader_index[f"a{self.layer}.0<q>"]
        queries = slice(first, first + self.shape.n_heads)
        keys = slice(queries.stop, queries.stop + self.shape.n_kv_heads)
        # What one writer takes, so that as many as fit are run together: its stream, that normed and
        # projected, the pattern with its softmax and product.
        n_values = self.stream.numel() * 6 + 4 * self.pattern.numel()
        for writers, change in self.runs.sources.upto(int(tables[0].before[first])):
            start = writers.start
            for block in change.split(max(1, room // n_values)):
                in_block = slice(start, start + len(block))
                normed = self.block.attn_norm(self.stream - block)
                self._add_queries(tables, in_block, queries, self._heads(normed, "q"))
                self._add_keys(tables, in_block, keys, self._heads(normed, "k"))
                start = in_block.stop

    def _add_queries(self, tables: Sequence[EdgeTable], writers: slice, readers: slice, q: Tensor) -> None:
        # The softmax is computed and not linearized: [writer, example, head, query, key].
        change = self.pattern - self._pattern(q, self.k)
        for table, gradient in zip(tables, self.pattern_gradients, strict=True):
            if gradient is None:
                continue
            scores = (change * gradient).sum(-1)
            for position_class, tokens in self._classes(table):
                in_class = scores
                if tokens is not None:
                    in_class = scores * tokens[:, None]
                self._put(table, position_class, writers, readers, in_class.sum(-1))

    def _add_keys(self, tables: Sequence[EdgeTable], writers: slice, readers: slice, k: Tensor) -> None:
        # A changed key changes the softmax of its whole row: each class of positions is its own pattern.
        for position_class, tokens in self._classes(tables[0]):
            moved = k
            if tokens is not None:
                moved = torch.where(tokens[..., None, None] > 0, k, self.k)
            change = self.pattern - self._pattern(self.q, moved)
            for table, gradient in zip(tables, self.pattern_gradients, strict=True):
                if gradient is None:
                    continue
                by_head = (change * gradient).sum((-1, -2))
                # Query heads that share a key each have their part in what its change does.
                by_kv_head = by_head.unflatten(-1, (-1, self.shape.group)).sum(-1)
                self._put(table, position_class, writers, readers, by_kv_head)

    def _classes(self, table: EdgeTable) -> list[tuple[int, Tensor | None]]:
        """Position classes of the table with a mask [example, pos] of their tokens; None: all tokens."""
        n, length = self.stream.shape[:2]
        if "pos" in table.keep:
            return [(int(pos), (self.pos == pos).to(self.stream).expand(n, length)) for pos in self.pos]
        if table.classes is None:
            return [(0, None)]
        classes = table.classes.to(self.stream.device)
        n_classes = len(self.runs.graph.positions or ())
        return [(number, (classes == number).to(self.stream)) for number in range(n_classes)]

    def _put(
        self, table: EdgeTable, position_class: int, writers: slice, readers: slice, scores: Tensor
    ) -> None:
        """Add [writer, example, reader]."""
        table.values[:, position_class, writers, readers] += scores.movedim(1, 0).double().cpu()
