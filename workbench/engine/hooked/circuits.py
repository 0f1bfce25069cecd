"""`circuit_logits`: runs of circuits on any model.

Every reader sees the current value of the writers on its circuit edges, and the counterfactual value of the
rest: `in_v += sum over edges (u, v) not in the circuit of (z'_u - z~_u)`, where z~_u is what u writes in this
run and z'_u its counterfactual value.

With corrupt values the empty circuit is the corrupt run and the full circuit the clean run, exactly. Many
circuits run in one batch; edges are a masked product of writers and readers, never a loop. Metrics are not
known here.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.bridge import Norm, final_norm
from workbench.engine.edge_mixing import mixed, token_classes
from workbench.engine.hooked.block import Block, check_parts_add_up, mlp_input
from workbench.engine.hooked.forward import Change, forward
from workbench.engine.memory import rows_per_forward
from workbench.errors import ModelError
from workbench.models.load import model_device
from workbench.models.model import Model
from workbench.sites import KINDS, Shape, Site

CANCELLED = 2**-7
"""Share of a stream below which what is left of it is summed anew: the rounding of the stream would show."""


def circuit_logits(
    model: Model, graph: Graph, keep: Float[Tensor, "circuit *pos_class writer reader"], bound: Bound
) -> Float[Tensor, "circuit example pos vocab"]:
    """The logits of every circuit on the prompts that `bound` was made for.

    Args:
        keep: 1 where the edge is in the circuit, 0 where it is not, or something between; pruned ones are
            expected. Gradients flow to it where it asks for them.
        bound: the counterfactual value z', bound to the prompts.

    Raises:
        ModelError: a graph of neurons, which the fast engine alone runs, or a model whose parts do not add
            up.
    """
    check_hooks_suffice(model, graph)
    walk = _Walk(model, graph, keep, bound)
    logits = forward(
        model, bound.prompts, copies=len(keep), raw_writes=walk.hooks(), gradients=keep.requires_grad
    ).logits
    return logits.view(len(keep), len(bound.prompts), *logits.shape[1:])


def check_hooks_suffice(model: Model, graph: Graph) -> None:
    """Raise `ModelError` for what hooks cannot run: a graph of neurons, a model whose parts do not add up."""
    check_parts_add_up(model)
    if graph.neurons:
        raise ModelError(
            "Circuits of neurons run on the fast engine alone, and this model or value needs the reference: "
            "use whole MLPs, Graph.of(model), and a value that does not depend on what is there."
        )


def circuits_per_forward(model: Model, graph: Graph, length: int, *, budget: int | None = None) -> int:
    """How many rows (a prompt under a circuit) fit into one pass.

    What the writers wrote is kept beside the model's own activations.
    """
    shape = Shape.of(model)
    # Every writer's difference is kept; of one block, the inputs of all heads' q, k and v exist twice (before
    # the norm, and after).
    kept = (len(graph.writers) + 6 * shape.n_heads) * shape.d_model
    return rows_per_forward(model, length, budget=budget, extra=kept)


@dataclass(frozen=True, eq=False)
class _WriterChanges:
    """What some writers of a block change: z' - z~ [circuit, writer, example, pos, d_model].

    Attributes:
        patched: the sum of their z' and what the block adds beside them [circuit, 1, example, pos, d_model].
        post: the norm that their sum passes before it is added, with that sum [circuit, 1, example, pos,
            d_model].
    """

    change: Tensor
    patched: Tensor
    post: tuple[Norm, Tensor] | None = None


class _Walk:
    """The hooks of one circuit run. Writers' differences z' - z~ are collected as the run reaches them.

    Attributes:
        cut: [circuit, (pos_class,) writer, reader], 1 on the edges that carry the counterfactual value.
        kept: the same, 1 on those that carry the current one.
        differences: of the writers so far, in the order of the graph's writers.
        inputs: what a later hook of the same block needs, by reader ("m3") or port and layer ("q3").
    """

    def __init__(self, model: Model, graph: Graph, keep: Tensor, bound: Bound) -> None:
        self.model, self.graph, self.bound, self.n = model, graph, bound, len(keep)
        self.shape, device = graph.shape, model_device(model)
        exists, dtype = torch.from_numpy(graph.exists).to(keep), next(model.parameters()).dtype
        self.cut = (exists * (1 - keep)).to(device, dtype)
        self.kept = (exists * keep).to(device, dtype)
        classes = token_classes(graph, bound.prompts)
        self.classes = None if classes is None else classes.to(device)
        self.differences: list[_WriterChanges] = []
        self.reader = graph.reader_index
        self.inputs: dict[str, Tensor] = {}

    def hooks(self) -> dict[str, Change]:
        """Hook name → what is done there, for every block and the unembedding."""
        hooks: dict[str, Change] = {}
        for layer in range(self.shape.n_layers):
            self._add_block(hooks, layer)
        last = KINDS["resid_post"].hook.format(layer=self.shape.n_layers - 1)
        hooks[last] = self._keep("logits")
        hooks["unembed.hook_in"] = self._write_logits()
        return hooks

    def _add_block(self, hooks: dict[str, Change], layer: int) -> None:
        block = Block.of(self.model, layer)
        hooks[Site("resid_pre", layer).hook] = self._enter(layer, block)
        for port in "qkv":
            hooks[Site(port, layer).hook] = self._write_port(layer, port)
        hooks[Site("z", layer).hook] = self._write_heads(layer, block)
        if block.mlp_norm is None:
            return
        if block.mlp_stream != Site("resid_pre", layer).hook:
            hooks[block.mlp_stream] = self._keep(f"m{layer}")
        hooks[mlp_input(layer)] = self._write_mlp(layer, block)
        hooks[Site("mlp_out", layer).hook] = self._collect(Site("mlp_out", layer))

    def _enter(self, layer: int, block: Block) -> Change:
        """The stream arrives: from it and the differences so far, q, k and v of every head are made."""

        def change(stream: Tensor) -> Tensor:
            """Every reader's input is rebuilt from the stream, normed and projected by hand."""
            if layer == 0:
                # The embeddings are the writer `input`, which comes before every reader.
                self._collected(Site("resid_pre", 0), stream)
            heads = [self.shape.n_heads, self.shape.n_kv_heads, self.shape.n_kv_heads]
            first = self.reader[f"a{layer}.0<q>"]
            # [row, pos, reader, d_model]: the graph's readers of a block are its queries, then its keys, then
            # its values.
            normed = block.attn_norm(self._rebuilt(stream, slice(first, first + sum(heads))))
            for port, normed_of_port in zip("qkv", normed.split(heads, 2), strict=True):
                self.inputs[f"{port}{layer}"] = block.project(normed_of_port, port)
            # A parallel MLP reads this stream too; a sequential one replaces it at its own hook.
            self.inputs[f"m{layer}"] = stream
            return stream  # unchanged: readers are written, the stream itself stays the circuit's own

        return change

    def _write_port(self, layer: int, port: str) -> Change:
        # `pop`: an input is needed once, and all of them together would not fit.
        return lambda value: self.inputs.pop(f"{port}{layer}").view_as(value)

    def _write_heads(self, layer: int, block: Block) -> Change:
        def change(z: Tensor) -> Tensor:
            """The heads' changes are collected; z itself stays the circuit's own."""
            weight = block.heads.w_out.to(z.dtype)
            changed, bias = self._changed(Site("z", layer), z), block.heads.b_out.to(z.dtype)
            written = torch.einsum("bphe,hed->bphd", changed, weight)
            patched = torch.einsum("bphe,hed->bpd", z + changed, weight) + bias
            post = None
            if block.heads.attn_post is not None:
                # That norm is not linear in the heads: their changes must pass it together with all else they
                # add up to.
                whole = torch.einsum("bphe,hed->bpd", z, weight) + bias
                post = block.heads.attn_post, self._by_circuit(whole[:, :, None])
            patched = self._by_circuit(patched[:, :, None])
            self.differences.append(_WriterChanges(self._by_circuit(written), patched, post))
            return z

        return change

    def _write_mlp(self, layer: int, block: Block) -> Change:
        def change(value: Tensor) -> Tensor:
            """The rebuilt input of the MLP, normed, in place of what the MLP would read."""
            index, stream = self.reader[f"m{layer}"], self.inputs.pop(f"m{layer}")
            if block.mlp_stream == mlp_input(layer):
                stream = value  # without a norm in front, what the MLP would read is the stream
            rebuilt = self._rebuilt(stream, slice(index, index + 1))
            assert block.mlp_norm is not None
            return block.mlp_norm(rebuilt)[:, :, 0].view_as(value)

        return change

    def _write_logits(self) -> Change:
        def change(value: Tensor) -> Tensor:
            """The rebuilt last stream, normed, in place of what the unembedding would read."""
            index = self.reader["logits"]
            rebuilt = self._rebuilt(self.inputs.pop("logits"), slice(index, index + 1))
            return final_norm(self.model)(rebuilt)[:, :, 0].view_as(value)

        return change

    def _keep(self, name: str) -> Change:
        def change(stream: Tensor) -> Tensor:
            """Kept for a later hook, and left unchanged."""
            self.inputs[name] = stream
            return stream

        return change

    def _collect(self, site: Site) -> Change:
        def change(value: Tensor) -> Tensor:
            """The change is collected; the activation stays the circuit's own."""
            self._collected(site, value)
            return value

        return change

    def _collected(self, site: Site, value: Tensor) -> None:
        """Append z' - z~ of a writer that writes into the stream as it is."""
        changed = self._changed(site, value)
        change, patched = (self._by_circuit(one[:, :, None]) for one in (changed, value + changed))
        self.differences.append(_WriterChanges(change, patched))

    def _changed(self, site: Site, current: Tensor) -> Tensor:
        """z' - z~ of every circuit.

        A value is bound to the prompts, so each circuit's copy of them is edited by itself.
        """
        copies = current.split(len(self.bound.prompts))
        return torch.cat([self.bound.edited(site, copy) - copy for copy in copies])

    def _by_circuit(self, rows: Tensor) -> Tensor:
        """[circuit, writer, example, pos, d_model] of [row, pos, writer, d_model]."""
        return rows.view(self.n, -1, *rows.shape[1:]).movedim(3, 1)

    def _rebuilt(self, stream: Tensor, readers: slice) -> Tensor:
        """[row, pos, reader, d_model]: the stream with the counterfactual value on every edge that is cut."""
        first, change = 0, torch.zeros((), dtype=stream.dtype, device=stream.device)
        for written in self.differences:
            writers = slice(first, first + written.change.shape[1])
            moved = mixed(written.change, self.cut[..., writers, readers], self.classes)
            if written.post is not None:
                norm, whole = written.post
                moved = norm(self._within(written, writers, readers, moved)) - norm(whole)
            first, change = writers.stop, change + moved
        before = stream[:, :, None]
        rebuilt = before + self._by_row(change)
        cancelled = _cancelled(rebuilt, before)
        if bool(cancelled.any()):
            # A norm would blow up the rounding that is left of a stream whose parts are nearly all cut.
            rebuilt = torch.where(cancelled, self._by_row(self._anew(readers)), rebuilt)
        return rebuilt

    def _anew(self, readers: slice) -> Tensor:
        """[circuit, reader, example, pos, d_model]: the sum of what every writer gives a reader."""
        first, total = 0, torch.zeros((), dtype=self.cut.dtype, device=self.cut.device)
        for written in self.differences:
            writers = slice(first, first + written.change.shape[1])
            given = self._kept_sum(written, writers, readers)
            if written.post is not None:
                moved = mixed(written.change, self.cut[..., writers, readers], self.classes)
                given = written.post[0](self._within(written, writers, readers, moved))
            # Of a parallel block the MLP reads no heads: whole groups reach a reader or do not.
            exists = (self.cut + self.kept)[..., first, readers].flatten(0, -2).amax(0)
            first, total = writers.stop, total + exists[:, None, None, None] * given
        return total

    def _kept_sum(self, written: _WriterChanges, writers: slice, readers: slice) -> Tensor:
        """The sum of writers' outputs, from all of them at z': exact where few edges are kept."""
        return written.patched - mixed(written.change, self.kept[..., writers, readers], self.classes)

    def _within(self, written: _WriterChanges, writers: slice, readers: slice, moved: Tensor) -> Tensor:
        """The sum that a norm behind attention reads, for every reader."""
        assert written.post is not None
        _, whole = written.post
        inside = whole + moved
        cancelled = _cancelled(inside, whole)
        if bool(cancelled.any()):
            inside = torch.where(cancelled, self._kept_sum(written, writers, readers), inside)
        return inside

    def _by_row(self, change: Tensor) -> Tensor:
        """[row, pos, reader, d_model] of [circuit, reader, example, pos, d_model].

        The hooked run has one axis of rows, a prompt under a circuit each.
        """
        return change.movedim(1, 3).flatten(0, 1)


def _cancelled(left: Tensor, before: Tensor) -> Tensor:
    """[..., 1]: whether little is left of a sum after the greatest part of it was taken away."""
    size, of = (one.detach().abs().amax(-1, keepdim=True) for one in (left, before))
    return size < CANCELLED * of
