"""The fast run of circuits: every reader sees the other value of all writers, and the current one on the circuit's edges.

in_v = in'_v + sum over edges (u, v) of the circuit of (z_u - z'_u), where in'_v is what v reads when every writer has its
other value. So only writers with an edge are run, from the first layer that lacks an edge and the first token whose other
value differs. Weights of edges may lie between 0 and 1 and carry gradients: the same walk trains masks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.edge_mixing import mixed, token_classes
from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Decoder, Linear
from workbench.engine.fast.staircase import run_base
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class PatchedValues:
    """The other value z' of every writer of a batch.

    Attributes:
        values: key of a writer's activation → [example, pos, ...], z' of it.
        seen: (reader, layer) with reader "attn", "mlp" or "logits" → [example, pos, d_model], what it reads when every
            writer has its other value.
    """

    values: dict[Key, Tensor]
    seen: dict[tuple[str, int], Tensor]

    @classmethod
    def of(cls, base: BaseRun, bound: Bound, graph: Graph) -> "PatchedValues":
        """From the base run, whose activations the value may need for their shape only."""
        decoder, shape, values, seen = base.decoder, graph.shape, {}, {}

        def other(kind: str, layer: int) -> Tensor:
            values[kind, layer] = bound.edited(Site(kind, layer), base.whole((kind, layer)))
            return values[kind, layer]

        stream = other("resid_pre", 0)
        for layer, block in enumerate(decoder.layers):
            seen["attn", layer] = stream
            after = stream + block.o(other("z", layer).flatten(-2))
            seen["mlp", layer] = stream if shape.parallel else after
            if not shape.attn_only and layer in graph.neurons:
                assert block.mlp_out is not None
                after = after + block.mlp_out(other("mlp_post", layer))
            elif not shape.attn_only:
                after = after + other("mlp_out", layer)
            stream = after
        seen["logits", shape.n_layers] = stream
        return cls(values, seen)


def written_by(graph: Graph, layer: int) -> list[str]:
    """The kinds of activation that a block's writers have."""
    return ["z", *([] if graph.shape.attn_only else ["mlp_post" if layer in graph.neurons else "mlp_out"])]


class CircuitWalk:
    """Runs of circuits on one batch of prompts; its base run and other values are worked out once.

    Args:
        bound: the other value, `absolute`.
        places: [example] the position whose logits are read, [example, step] several, or None for all.
    """

    @torch.no_grad()
    def __init__(
        self, decoder: Decoder, graph: Graph, bound: Bound, *, places: Int[Tensor, "example *step"] | None
    ) -> None:
        self.decoder, self.graph, self.shape, device = decoder, graph, graph.shape, decoder.device
        keys = [(kind, layer) for layer in range(graph.shape.n_layers) for kind in written_by(graph, layer)]
        self.base = run_base(decoder, bound.prompts, keys)
        self.others = PatchedValues.of(self.base, bound, graph)
        longest = bound.prompts.tokens.shape[1]
        first = bound.first_change(Site("resid_pre", 0))
        self.start = min(int(first.min()), longest - 1, *([] if places is None else [int(places.min())]))
        self.pos = torch.arange(self.start, longest, device=device)
        self.read = None if places is None or places.ndim > 1 else places.to(device)
        classes = token_classes(graph, bound.prompts)
        # Behind the prompt an answer's tokens have no other value: every edge is there, which makes a class of its own.
        behind = torch.arange(longest) >= bound.reach[:, None]
        self.continued = bool((behind & (torch.arange(longest) < bound.prompts.lengths[:, None])).any())
        if self.continued:
            own = len(graph.positions or (None,))
            classes = (torch.zeros_like(bound.prompts.tokens) if classes is None else classes).masked_fill(
                behind, own
            )
        self.classes = None if classes is None else classes[:, self.start :].to(device)
        self.exists = torch.from_numpy(graph.whole.exists)

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps."""
        tables = (*self.others.values.values(), *self.others.seen.values())
        return self.base.nbytes + sum(table.numel() * table.element_size() for table in tables)

    def streams(
        self, keep: Float[Tensor, "circuit *pos_class writer reader"]
    ) -> Float[Tensor, "circuit example pos d_model"]:
        """The stream after the last block of every circuit, at the position that is read or from the first changed one on.

        Args:
            keep: 1 where the edge is in the circuit, 0 where it is not, or something between.
        """
        return _Passage(self, keep).run()


@dataclass(eq=False)
class _Written:
    """Changes z - z' of writers, [circuit, writer, example, pos, d_model] in pieces, or one for all circuits; and their sum."""

    names: list[int] = field(default_factory=list)
    pieces: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None

    def add(self, names: Sequence[int], change: Tensor) -> None:
        self.names += names
        self.pieces.append(change)
        summed = change.sum(1)
        self.total = summed if self.total is None else self.total + summed

    def some(self, picked: np.ndarray) -> Tensor:
        """The changes of some of the writers."""
        sizes = np.cumsum([0, *(piece.shape[1] for piece in self.pieces)])
        each = (
            (piece, picked[first:last])
            for piece, first, last in zip(self.pieces, sizes, sizes[1:], strict=False)
        )
        return torch.cat(
            [piece if mine.all() else piece[:, np.flatnonzero(mine)] for piece, mine in each if mine.any()], 1
        )


class _Passage:
    """One walk through the layers. Writers' changes z - z' are collected as the walk comes to them."""

    def __init__(self, walk: CircuitWalk, keep: Tensor) -> None:
        self.walk, self.decoder, self.graph, self.shape = walk, walk.decoder, walk.graph, walk.shape
        if walk.continued:
            whole = walk.exists.to(keep).expand(len(keep), 1, *walk.exists.shape)
            keep = torch.cat((keep if keep.ndim == 4 else keep[:, None], whole), 1)
        self.keep = keep.to(walk.decoder.device, walk.decoder.dtype)
        self.n, self.soft = len(keep), keep.requires_grad
        self.tokens, self.classes, self.queries = slice(walk.start, None), walk.classes, walk.pos
        # What no circuit changes is kept once; the rest for each of them.
        self.shared, self.own = _Written(), _Written()
        there = keep.detach().cpu() != 0
        changed = keep.detach().cpu() != walk.exists
        self.used = (
            np.ones((self.n, len(self.graph.writers)), dtype=bool) if self.soft else _any(there).numpy()
        )
        self.kept, self.cut = (
            each.flatten(0, -3).any(0).numpy() for each in (there, keep.detach().cpu() != 1)
        )
        self.changed = changed.flatten(0, -2).any(0).numpy()
        self.first = False  # whether anything so far can differ from the base run

    def run(self) -> Tensor:
        self._collect(["input"], self._change("resid_pre", 0, self._base("resid_pre", 0))[:, :, :, None])
        last = self.shape.n_layers - 1
        for layer in range(last + 1):
            self._attention(layer, last=layer == last)
            if not self.shape.attn_only:
                (self._neurons if layer in self.graph.neurons else self._mlp)(layer)
        return self._seen(["logits"], ("logits", last + 1))[:, 0]

    # A block.

    def _attention(self, layer: int, *, last: bool) -> None:
        shape, block = self.shape, self.decoder.layers[layer]
        heads = [h for h in range(shape.n_heads) if self._is_used(f"a{layer}.{h}")]
        groups = sorted({head // shape.group for head in heads})
        query_heads = [g * shape.group + i for g in groups for i in range(shape.group)]
        ports = {"q": query_heads, "k": groups, "v": groups}
        names = {port: [f"a{layer}.{unit}<{port}>" for unit in units] for port, units in ports.items()}
        fresh = self._differs([name for mine in names.values() for name in mine])
        made = {}
        for port in "kv" if heads and fresh else "":
            made[port] = self._projected(names[port], layer, getattr(block, port), ports[port])
        keys = self.queries
        if last and self.walk.read is not None:
            self._only_read()
        if not heads:
            return
        if fresh:
            q = self._projected(names["q"], layer, block.q, query_heads)
            q, k = (
                self.decoder.heads(q, layer, "q", self.queries),
                self.decoder.heads(made["k"], layer, "k", keys),
            )
            visible = keys <= self.queries[..., None]
            visible = visible if visible.ndim == 3 else visible[None]
            z = self.decoder.attend(layer, q, k, made["v"], self._before(layer, groups), visible)
            z = z[:, :, :, [query_heads.index(head) for head in heads]]
        else:
            z = self._base("z", layer)[..., heads, :]
        weight = block.o.weight.view(shape.n_heads, shape.d_head, -1)[heads]
        change = self._change("z", layer, z, heads)  # [circuit or 1, example, pos, head, d_head]
        sent = change.movedim(-2, 0).flatten(1, -2) @ weight
        self._collect(
            [f"a{layer}.{h}" for h in heads], sent.view(len(heads), *change.shape[:3], -1).movedim(0, 3)
        )

    def _mlp(self, layer: int) -> None:
        name, block = f"m{layer}", self.decoder.layers[layer]
        if not self._is_used(name):
            return
        if not self._differs([name]):
            self._collect([name], self._change("mlp_out", layer, self._base("mlp_out", layer))[:, :, :, None])
            return
        assert block.mlp_norm is not None
        assert block.mlp_out is not None
        chosen = np.flatnonzero(self.used[:, self.graph.writer_index[name]])
        entry = block.mlp_norm(self._seen([name], ("mlp", layer), chosen)[:, 0])
        out = block.mlp_out(block.mlp_post(*block.mlp_pre(entry)))
        change = self._change("mlp_out", layer, out)
        if len(chosen) < self.n:
            change = change.new_zeros(self.n, *change.shape[1:]).index_copy_(
                0, torch.from_numpy(chosen).to(out.device), change
            )
        self._collect([name], change[:, :, :, None])

    def _neurons(self, layer: int) -> None:
        block = self.decoder.layers[layer]
        neurons = [n for n in range(self.shape.d_mlp) if self._is_used(f"m{layer}:{n}")]
        names = [f"m{layer}:{n}" for n in neurons]
        if not names:
            return
        assert block.mlp_norm is not None
        assert block.mlp_in is not None
        assert block.mlp_out is not None
        if self._differs(names):
            entry = block.mlp_norm(
                self._seen(names, ("mlp", layer))
            )  # [circuit, neuron, example, pos, d_model]
            maps = [each for each in (block.mlp_gate, block.mlp_in) if each is not None]
            pre = [_one_each(each, entry, neurons) for each in maps]
            post = block.mlp_post(pre[0], pre[1] if len(pre) == 2 else None).movedim(1, -1)
        else:
            post = self._base("mlp_post", layer)[..., neurons]
        change = self._change("mlp_post", layer, post, neurons)
        self._collect(names, change[..., None] * block.mlp_out.weight[neurons])

    # What readers see.

    def _seen(
        self, readers: Sequence[str], where: tuple[str, int], circuits: np.ndarray | None = None
    ) -> Float[Tensor, "circuit reader example pos d_model"]:
        """The inputs of readers before their norm."""
        chosen = slice(None) if circuits is None or len(circuits) == self.n else torch.from_numpy(circuits)
        before = self._at(self.walk.others.seen[where])
        n = self.n if isinstance(chosen, slice) else len(chosen)
        at = [self.graph.reader_index[reader] for reader in readers]
        seen = before.expand(n, len(readers), *before.shape)
        for written in (self.shared, self.own):
            for part in self._sums(written, at, chosen if written is self.own else slice(None), chosen):
                seen = seen + part
        return seen

    def _sums(
        self, written: _Written, at: list[int], rows: slice | Tensor, circuits: slice | Tensor
    ) -> Iterator[Float[Tensor, "circuit_or_one reader_or_one example pos d_model"]]:
        """What writers bring to readers: the sum of all but what is cut, or the sum of what is kept, whichever is less work."""
        names = written.names
        if not names:
            return
        kept, cut = (np.asarray(each[names][:, at].any(1)) for each in (self.kept, self.cut))
        picked, weight = (np.ones(len(names), dtype=bool) if self.soft else kept), self.keep
        if not self.soft and cut.sum() <= kept.sum():
            assert written.total is not None
            yield written.total[rows][:, None]
            picked, weight = cut, self.keep - 1
        if picked.any():
            chosen = [name for name, mine in zip(names, picked, strict=True) if mine]
            yield mixed(written.some(picked)[rows], weight[..., chosen, :][..., at][circuits], self.classes)

    def _projected(
        self, readers: Sequence[str], layer: int, linear: Linear, units: Sequence[int]
    ) -> Float[Tensor, "circuit example pos unit d_head"]:
        """q, k or v of some heads, each from an input of its own."""
        normed = self.decoder.layers[layer].attn_norm(self._seen(readers, ("attn", layer)))
        width = self.shape.d_head
        weight = linear.weight.view(len(linear.weight), -1, width)[:, units].transpose(0, 1)
        made = normed.transpose(0, 1).flatten(1, -2) @ weight
        if linear.bias is not None:
            made = made + linear.bias.view(-1, width)[units][:, None]
        return made.view(len(units), *(normed.shape[i] for i in (0, 2, 3)), width).movedim(0, 3)

    def _before(self, layer: int, groups: Sequence[int]) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the tokens before the first that can differ."""
        if not self.walk.start:
            return None
        k, v = (self.walk.base.kept[name, layer][:, : self.walk.start, groups] for name in ("k rotated", "v"))
        return k, v

    # What writers write.

    def _collect(
        self, names: Sequence[str], change: Float[Tensor, "circuit_or_one example pos writer d_model"]
    ) -> None:
        """Remember z - z' of writers, [circuit or 1, writer, example, pos, d_model]."""
        change = change.movedim(3, 1)
        written = self.shared if len(change) < self.n or (self.n == 1 and not self.first) else self.own
        written.add([self.graph.writer_index[name] for name in names], change)

    def _change(self, kind: str, layer: int, value: Tensor, units: Sequence[int] | None = None) -> Tensor:
        """[circuit or 1, example, pos, ...]: z - z' of an activation, or of some of its heads or neurons."""
        other = self._at(self.walk.others.values[kind, layer])
        if units is not None:
            other = other[..., units, :] if kind == "z" else other[..., units]
        return (value if value.ndim > other.ndim else value[None]) - other

    def _base(self, kind: str, layer: int) -> Tensor:
        return self._at(self.walk.base.whole((kind, layer)))

    def _at(self, whole: Tensor) -> Tensor:
        """The tokens of a table [example, pos, ...] that the walk is concerned with."""
        return (
            whole[:, self.tokens]
            if isinstance(self.tokens, slice)
            else whole[torch.arange(len(whole)), self.tokens][:, None]
        )

    def _only_read(self) -> None:
        """From here on only the position that is read matters."""
        read = self.walk.read
        assert read is not None
        rows, places = torch.arange(len(read)), read - self.walk.start
        for written in (self.shared, self.own):
            written.pieces = [piece[:, :, rows, places][:, :, :, None] for piece in written.pieces]
            written.total = None if written.total is None else written.total[:, rows, places][:, :, None]
        self.classes = None if self.classes is None else self.classes[rows, places][:, None]
        self.tokens, self.queries = read, read[:, None]

    # What has to be run.

    def _is_used(self, writer: str) -> bool:
        return bool(self.used[:, self.graph.writer_index[writer]].any())

    def _differs(self, readers: Sequence[str]) -> bool:
        """Whether these readers can see anything else than in the base run."""
        at = [self.graph.reader_index[reader] for reader in readers]
        self.first = self.first or self.soft or bool(self.changed[at].any())
        return self.first


def _any(there: Tensor) -> Tensor:
    """[circuit, row] of a mask [circuit, (pos,) row, column]: whether any place in the row is set."""
    found = there.any(-1)
    return found.any(1) if found.ndim == 3 else found


def _one_each(
    linear: Linear, entry: Float[Tensor, "circuit neuron example pos d_model"], neurons: Sequence[int]
) -> Tensor:
    """[circuit, neuron, example, pos]: each neuron's number from an input of its own."""
    made = torch.einsum("cnbpd,dn->cnbp", entry, linear.weight[:, neurons])
    return made if linear.bias is None else made + linear.bias[neurons][:, None, None]
