"""The fast run of circuits: readers see patched values, and the current ones on the circuit's edges.

in_v = in'_v + sum over edges (u, v) of the circuit of (z_u - z'_u), where in'_v is what v reads when every
writer has its patched value z'. So only writers with an edge are run, from the first layer that lacks an edge
and the first token whose patched value differs. Weights of edges may lie between 0 and 1 and carry gradients:
the same walk trains masks.

Read `CircuitWalk.streams`, then `_Passage`: a passage is one walk through the layers, and collects z - z' of
writers as it comes to them. Metrics and memory budgets are the caller's (`engine.circuits`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.edge_mixing import token_classes
from workbench.engine.fast.contributions import Contributions, EdgeWeights
from workbench.engine.fast.decoder import Decoder, Linear
from workbench.engine.fast.patched_values import PatchedValues, writer_kinds
from workbench.engine.fast.staircase import run_base
from workbench.sites import Site


class CircuitWalk:
    """Runs of circuits on one batch of prompts; its base run and patched values are worked out once.

    Args:
        bound: the patched value, `absolute`: it does not depend on what is there.
        places: [example] the position whose logits are read, [example, step] several, or None for all.
    """

    @torch.no_grad()
    def __init__(
        self, decoder: Decoder, graph: Graph, bound: Bound, *, places: Int[Tensor, "example *step"] | None
    ) -> None:
        self.decoder, self.graph, self.shape, device = decoder, graph, graph.shape, decoder.device
        keys = []
        for layer in range(graph.shape.n_layers):
            keys += [(kind, layer) for kind in writer_kinds(graph, layer)]
        self.base = run_base(decoder, bound.prompts, keys)
        self.patched = PatchedValues.of(self.base, bound, graph)
        longest = bound.prompts.tokens.shape[1]
        first = bound.first_change(Site("resid_pre", 0))
        # Before this token every circuit is the base run, whatever its edges: there z = z'.
        self.start = min(int(first.min()), longest - 1)
        if places is not None:
            self.start = min(self.start, int(places.min()))
        self.pos = torch.arange(self.start, longest, device=device)
        self.read = None
        if places is not None and places.ndim == 1:
            self.read = places.to(device)
        classes = token_classes(graph, bound.prompts)
        # Behind the prompt an answer's tokens have no patched value: every edge is there, which makes a class
        # of its own.
        behind = torch.arange(longest) >= bound.reach[:, None]
        self.has_answer_tokens = bool(
            (behind & (torch.arange(longest) < bound.prompts.lengths[:, None])).any()
        )
        if self.has_answer_tokens:
            own_class = len(graph.positions or (None,))
            if classes is None:
                classes = torch.zeros_like(bound.prompts.tokens)
            classes = classes.masked_fill(behind, own_class)
        self.classes = classes
        if classes is not None:
            self.classes = classes[:, self.start :].to(device)
        self.exists = torch.from_numpy(graph.whole.exists)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps."""
        tables = (*self.patched.values.values(), *self.patched.seen.values())
        return self.base.nbytes + sum(table.numel() * table.element_size() for table in tables)

    def streams(
        self, keep: Float[Tensor, "circuit *pos_class writer reader"]
    ) -> Float[Tensor, "circuit example pos d_model"]:
        """Every circuit's stream after the last block, where it is read or from the first changed token on.

        Args:
            keep: 1 where the edge is in the circuit, 0 where it is not, or something between.
        """
        return _Passage(self, keep).run()


class _Passage:
    """One walk through the layers, of several circuits at once."""

    def __init__(self, walk: CircuitWalk, keep: Tensor) -> None:
        self.walk, self.decoder, self.graph, self.shape = walk, walk.decoder, walk.graph, walk.shape
        weights = EdgeWeights(
            keep, walk.exists, has_answer_tokens=walk.has_answer_tokens, like=walk.decoder.embed
        )
        self.weights, self.n, self.soft = weights, weights.n, weights.soft
        self.tokens, self.classes, self.queries = slice(walk.start, None), walk.classes, walk.pos
        # What no circuit changes is kept once, so that memory and products grow only with the rest.
        self.shared, self.own = Contributions(), Contributions()
        # Until an edge is changed every circuit is the base run, and one row holds for all (`_collect`).
        self.differs = False

    def run(self) -> Tensor:
        """The stream after the last block."""
        # The embeddings are a writer like any other, and come before every reader.
        embedded = self._change("resid_pre", 0, self._base("resid_pre", 0))
        self._collect(["input"], embedded[:, :, :, None])
        last = self.shape.n_layers - 1
        for layer in range(last + 1):
            self._attention(layer, last=layer == last)
            if self.shape.attn_only:
                continue
            if layer in self.graph.neurons:
                self._neurons(layer)
            else:
                self._mlp(layer)
        # The logits are the only reader of the last stream, so the axis of readers is dropped.
        return self._seen(["logits"], ("logits", last + 1))[:, 0]

    def _attention(self, layer: int, *, last: bool) -> None:
        shape, block = self.shape, self.decoder.layers[layer]
        heads = [head for head in range(shape.n_heads) if self._is_used(f"a{layer}.{head}")]
        # A kv head's keys serve all query heads of its group, so whole groups are run.
        groups = sorted({head // shape.group for head in heads})
        query_heads = [group * shape.group + i for group in groups for i in range(shape.group)]
        units = {"q": query_heads, "k": groups, "v": groups}
        readers = {port: [f"a{layer}.{unit}<{port}>" for unit in units[port]] for port in "qkv"}
        runs_anew = self._can_differ([*readers["q"], *readers["k"], *readers["v"]]) and bool(heads)
        projected = {}
        if runs_anew:
            for port in "kv":
                projected[port] = self._projected(readers[port], layer, getattr(block, port), units[port])
        keys = self.queries
        if last and self.walk.read is not None:
            # Keys and values of all tokens are there: from here on only the position that is read matters.
            self._only_read()
        if not heads:
            return
        if runs_anew:
            q = self._projected(readers["q"], layer, block.q, query_heads)
            q = self.decoder.heads(q, layer, "q", self.queries)
            k = self.decoder.heads(projected["k"], layer, "k", keys)
            visible = keys <= self.queries[..., None]
            if visible.ndim == 2:
                visible = visible[None]
            z = self.decoder.attend(layer, q, k, projected["v"], self._before(layer, groups), visible)
            # Whole groups were run; heads without an edge of their own are dropped, since nothing reads them.
            z = z[:, :, :, [query_heads.index(head) for head in heads]]
        else:
            z = self._base("z", layer)[..., heads, :]
        weight = block.o.weight.view(shape.n_heads, shape.d_head, -1)[heads]
        change = self._change("z", layer, z, heads)
        # Heads first, so that one batched product takes each of them through its own part of the output
        # weight: [head, circuit * example * pos, d_model].
        sent = change.movedim(-2, 0).flatten(1, -2) @ weight
        sent = sent.view(len(heads), *change.shape[:3], -1).movedim(0, 3)
        self._collect([f"a{layer}.{head}" for head in heads], sent)

    def _mlp(self, layer: int) -> None:
        name, block = f"m{layer}", self.decoder.layers[layer]
        if not self._is_used(name):
            return
        if not self._can_differ([name]):
            # It reads what it reads in the base run, so what it writes is known.
            self._collect([name], self._change("mlp_out", layer, self._base("mlp_out", layer))[:, :, :, None])
            return
        assert block.mlp_norm is not None
        assert block.mlp_out is not None
        chosen = np.flatnonzero(self.weights.used[:, self.graph.writer_index[name]])
        entry = block.mlp_norm(self._seen([name], ("mlp", layer), chosen)[:, 0])
        out = block.mlp_out(block.mlp_post(*block.mlp_pre(entry)))
        change = self._change("mlp_out", layer, out)
        if len(chosen) < self.n:
            # Circuits without the MLP keep its patched value: their z - z' is 0.
            rows = torch.from_numpy(chosen).to(out.device)
            change = change.new_zeros(self.n, *change.shape[1:]).index_copy_(0, rows, change)
        self._collect([name], change[:, :, :, None])

    def _neurons(self, layer: int) -> None:
        block = self.decoder.layers[layer]
        neurons = [neuron for neuron in range(self.shape.d_mlp) if self._is_used(f"m{layer}:{neuron}")]
        names = [f"m{layer}:{neuron}" for neuron in neurons]
        if not names:
            return
        assert block.mlp_norm is not None
        assert block.mlp_in is not None
        assert block.mlp_out is not None
        if self._can_differ(names):
            # Edges differ between neurons, so each has an input: [circuit, neuron, example, pos, d_model].
            seen = self._seen(names, ("mlp", layer))
            entry = block.mlp_norm(seen)
            if block.mlp_gate is None:
                pre, linear = _one_each(block.mlp_in, entry, neurons), None
            else:
                pre, linear = (_one_each(half, entry, neurons) for half in (block.mlp_gate, block.mlp_in))
            post = block.mlp_post(pre, linear).movedim(1, -1)
        else:
            post = self._base("mlp_post", layer)[..., neurons]
        change = self._change("mlp_post", layer, post, neurons)
        self._collect(names, change[..., None] * block.mlp_out.weight[neurons])

    def _seen(
        self, readers: Sequence[str], place: tuple[str, int], circuits: np.ndarray | None = None
    ) -> Float[Tensor, "circuit reader example pos d_model"]:
        """The inputs of readers before their norm.

        Args:
            place: key of `PatchedValues.seen`.
            circuits: indices of those that are run; None: all.
        """
        chosen, n_chosen = slice(None), self.n
        if circuits is not None and len(circuits) < self.n:
            chosen, n_chosen = torch.from_numpy(circuits), len(circuits)
        patched = self._at(self.walk.patched.seen[place])
        columns = [self.graph.reader_index[reader] for reader in readers]
        seen = patched.expand(n_chosen, len(readers), *patched.shape)
        # Shared contributions have one row for all circuits, so no row of theirs is chosen.
        for contributions, rows in ((self.shared, slice(None)), (self.own, chosen)):
            for term in contributions.reaching(columns, self.weights, rows, chosen, self.classes):
                seen = seen + term
        return seen

    def _projected(
        self, readers: Sequence[str], layer: int, linear: Linear, units: Sequence[int]
    ) -> Float[Tensor, "circuit example pos unit d_head"]:
        """q, k or v of some heads, each from an input of its own."""
        normed = self.decoder.layers[layer].attn_norm(self._seen(readers, ("attn", layer)))
        width = self.shape.d_head
        # Edges differ between heads, so each has its own input [circuit * example * pos, d_model] and takes
        # its own columns: a batch of products, one for each head.
        weight = linear.weight.view(len(linear.weight), -1, width)[:, units].transpose(0, 1)
        heads = normed.transpose(0, 1).flatten(1, -2) @ weight
        if linear.bias is not None:
            heads = heads + linear.bias.view(-1, width)[units][:, None]
        circuits, _, n, length, _ = normed.shape
        return heads.view(len(units), circuits, n, length, width).movedim(0, 3)

    def _before(self, layer: int, groups: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the tokens before the first that can differ."""
        if not self.walk.start:
            return None
        k, v = (self.walk.base.kept[name, layer][:, : self.walk.start, groups] for name in ("k rotated", "v"))
        return k, v

    def _collect(
        self, names: Sequence[str], change: Float[Tensor, "circuit_or_one example pos writer d_model"]
    ) -> None:
        """Remember z - z' of writers, [circuit or 1, writer, example, pos, d_model]."""
        change = change.movedim(3, 1)
        # One row means that it holds for all circuits; with a single circuit, only while nothing can differ.
        holds_for_all = len(change) < self.n or (self.n == 1 and not self.differs)
        changes = self.own
        if holds_for_all:
            changes = self.shared
        changes.add([self.graph.writer_index[name] for name in names], change)

    def _change(self, kind: str, layer: int, value: Tensor, units: Sequence[int] | None = None) -> Tensor:
        """[circuit or 1, example, pos, ...]: z - z' of an activation, or of some of its heads or neurons."""
        patched = self._at(self.walk.patched.values[kind, layer])
        if units is not None and kind == "z":
            patched = patched[..., units, :]  # z has an axis d_head after its heads
        elif units is not None:
            patched = patched[..., units]
        if value.ndim == patched.ndim:
            value = value[None]
        return value - patched

    def _base(self, kind: str, layer: int) -> Tensor:
        return self._at(self.walk.base.whole((kind, layer)))

    def _at(self, whole: Tensor) -> Tensor:
        """The tokens of a table [example, pos, ...] that the walk is concerned with."""
        if isinstance(self.tokens, slice):
            return whole[:, self.tokens]
        return whole[torch.arange(len(whole)), self.tokens][:, None]

    def _only_read(self) -> None:
        """From here on only the position that is read matters."""
        read = self.walk.read
        assert read is not None
        rows, places = torch.arange(len(read)), read - self.walk.start
        for changes in (self.shared, self.own):
            changes.only_at(rows, places)
        if self.classes is not None:
            self.classes = self.classes[rows, places][:, None]
        self.tokens, self.queries = read, read[:, None]

    def _is_used(self, writer: str) -> bool:
        return bool(self.weights.used[:, self.graph.writer_index[writer]].any())

    def _can_differ(self, readers: Sequence[str]) -> bool:
        """Whether these readers can see anything else than in the base run.

        Once some can, all later ones are taken to: what they write may reach every later reader.
        """
        columns = [self.graph.reader_index[reader] for reader in readers]
        self.differs = self.differs or self.soft or bool(self.weights.changed[columns].any())
        return self.differs


def _one_each(
    linear: Linear, entry: Float[Tensor, "circuit neuron example pos d_model"], neurons: Sequence[int]
) -> Tensor:
    """[circuit, neuron, example, pos]: each neuron's number from an input of its own."""
    numbers = torch.einsum("cnbpd,dn->cnbp", entry, linear.weight[:, neurons])
    if linear.bias is not None:
        numbers = numbers + linear.bias[neurons][:, None, None]
    return numbers
