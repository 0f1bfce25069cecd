"""What writers send along direct edges: the linear part of path patching, without a forward pass.

Read `DirectEdges.sent` and `arriving`. With everything else frozen a writer's change reaches a reader
unchanged, through the residual stream; the reader's norm and map are then computed exactly. With `recompute`,
MLPs in between respond to what reaches them. All of this is token by token, for many runs at once; only
`through` needs attention. Batches, budgets and metrics are not known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Linear
from workbench.engine.fast.staircase import TILE
from workbench.engine.nodes import Reader, Writer
from workbench.sites import Key, Site

SenderSets = Sequence[Sequence[Writer]]
"""The writers that send in each run."""


@dataclass(frozen=True, eq=False)
class Message:
    """What several runs send: in each, some writers with their changes of the stream.

    Attributes:
        writers: of each run.
        changes: key of a writer's activation → the runs that change it, and by how much [run, example, pos,
            d_model].
    """

    writers: SenderSets
    changes: Mapping[Key, tuple[list[int], Tensor]]


class DirectEdges:
    """Direct edges of one batch.

    Args:
        bound: the patched value of the writers.
        recompute: whether MLPs between writer and reader respond to what reaches them.
        places: [example, pos]: the only positions that are looked at.
        tile: bytes that an MLP's neurons may take at a time.
    """

    def __init__(
        self,
        base: BaseRun,
        bound: Bound,
        *,
        recompute: bool,
        places: Int[Tensor, "example pos"],
        tile: int = TILE,
    ) -> None:
        self.tile = tile
        self.base, self.decoder, self.bound, self.recompute = base, base.decoder, bound, recompute
        self.places = places.to(base.decoder.device)
        self.rows = torch.arange(len(places), device=self.places.device)[:, None]

    def at(self, key: Key) -> Tensor:
        """[example, pos, ...] of the base run, at the places."""
        return self.base.whole(key)[self.rows, self.places]

    def sent(self, senders: SenderSets) -> Message:
        """What the writers of each run send when they take the patched value."""
        by_key: dict[Key, list[tuple[int, Site]]] = {}
        for run, writers in enumerate(senders):
            for writer in writers:
                by_key.setdefault(writer.site.key, []).append((run, writer.site))
        changes = {}
        for key, members in by_key.items():
            written = self._written(key, [site for _, site in members])
            runs = list(dict.fromkeys(run for run, _ in members))
            if len(runs) < len(members):
                # Several heads of one layer in the same run: their changes add up.
                index = torch.tensor([runs.index(run) for run, _ in members], device=written.device)
                written = written.new_zeros(len(runs), *written.shape[1:]).index_add_(0, index, written)
            changes[key] = runs, written
        return Message(senders, changes)

    def unchanged(self, message: Message) -> Bool[Tensor, "run example"]:
        """Where nothing at all is sent."""
        nothing = torch.ones(
            len(message.writers), len(self.places), dtype=torch.bool, device=self.places.device
        )
        for runs, change in message.changes.values():
            # Exactly 0, without a tolerance: a small effect must not be taken for none.
            nothing[runs] &= (change == 0).flatten(2).all(2)
        return nothing.cpu()

    def _written(self, key: Key, sites: Sequence[Site]) -> Float[Tensor, "site example pos d_model"]:
        """What the patched value of each of these heads or neurons (or of everything) adds to the stream."""
        if key[0] != "z" or not self.bound.value.unitwise:
            return torch.stack([self.decoder.written(*key, self._changed(site), site.unit) for site in sites])
        # The value writes to each head as to that head alone, so one edit of the layer serves all heads.
        change = self._changed(Site(*key))
        heads = torch.tensor([site.unit for site in sites], device=change.device)
        return self.decoder.written(*key, change[:, :, heads].movedim(2, 0), heads)

    def _changed(self, site: Site) -> Tensor:
        """[example, pos, ...]: the patched value of a site minus its own."""
        whole = self.base.edited(site.key, [(site, self.bound)]) - self.base.whole(site.key)
        return _unit_of(whole[self.rows, self.places], site.unit)

    def arriving(self, message: Message, readers: Sequence[Reader]) -> Iterator[tuple[Reader, Tensor]]:
        """What each reader computes from its changed input, [run, example, pos, ...], layer by layer."""
        by_block: dict[tuple[int, bool], list[Reader]] = {}
        for reader in dict.fromkeys(reader.whole for reader in readers):
            by_block.setdefault((reader.layer, reader.is_mlp), []).append(reader)
        shape = self.decoder.shape
        last = max(layer for layer, _ in by_block)
        embedded = self.at(("resid_pre", 0))
        # Every layer's senders add to it in turn, so [run, example, pos, d_model] holds what has reached the
        # stream so far.
        change = embedded.new_zeros(len(message.writers), *embedded.shape)
        self._add(change, message, ("resid_pre", 0))
        for layer in range(last + 1):
            if (layer, False) in by_block:
                yield from self._attention_readers(layer, by_block[layer, False], change)
            if layer == last and (layer, True) not in by_block:
                return
            # A parallel block's MLP reads what attention reads: heads of the same layer do not reach it.
            mlp_change = change
            if shape.parallel:
                mlp_change = change.clone()
            self._add(change, message, ("z", layer))
            if shape.attn_only:
                continue
            if (layer, True) in by_block:
                yield from self._mlp_readers(layer, by_block[layer, True], mlp_change)
            if layer == last:
                return
            response = None
            if self.recompute:
                response = self._response(layer, message, mlp_change)
            self._add(change, message, ("mlp_post", layer))
            self._add(change, message, ("mlp_out", layer))
            if response is not None:
                runs, written = response
                change[runs] += written

    def through(self, message: Message, readers: Sequence[Reader], writers: Sequence[Writer]) -> Message:
        """What a node sends on when its inputs are what a message brings; each run is one path."""
        arrived = dict(self.arriving(message, readers))
        inputs = {reader: self.only_at(reader, arrived[reader.whole]) for reader in readers}
        senders = [list(writers) for _ in message.writers]
        key = writers[0].site.key
        if key[0] == "z":
            changes = self._head_changes(inputs, writers)
        else:
            (value,) = inputs.values()
            unit = writers[0].site.unit
            before = _unit_of(self.at(key), unit)
            changes = self.decoder.written(*key, value - before, unit)
        return Message(senders, {key: (list(range(len(senders))), changes)})

    def only_at(self, reader: Reader, value: Tensor) -> Tensor:
        """What a reader computes where only its own position has changed."""
        if reader.pos is None:
            return value
        before = _unit_of(self.at(reader.site.key), reader.unit)
        own = self.base.prompts.at(reader.pos).to(self.places.device)[:, None]
        at_position = (self.places == own).view(1, *self.places.shape, *[1] * (value.ndim - 3))
        return torch.where(at_position, value, before)

    def _head_changes(self, inputs: Mapping[Reader, Tensor], writers: Sequence[Writer]) -> Tensor:
        """[run, example, pos, d_model]: what heads write anew with some of their q, k and v."""
        layer, decoder, group = next(iter(inputs)).layer, self.decoder, self.decoder.shape.group
        patched = {(reader.port, reader.unit): value for reader, value in inputs.items()}
        n_runs = len(next(iter(inputs.values())))
        pos = torch.arange(self.places.shape[1], device=self.places.device)
        visible = (pos[None, :] <= pos[:, None])[None]
        total: Tensor | float = 0.0
        for writer in writers:
            head = writer.site.head
            assert head is not None
            ports = {}
            for port, unit in (("q", head), ("k", head // group), ("v", head // group)):
                value = patched.get((port, unit))
                if value is None:  # a port that the path does not use keeps the base run's value
                    value = self.at((port, layer))[:, :, unit].expand(n_runs, -1, -1, -1)
                ports[port] = value.unsqueeze(3)  # `attend` needs an axis of heads, here of one
            q, k = (decoder.heads(ports[port], layer, port, self.places) for port in "qk")
            z = decoder.attend(layer, q, k, ports["v"], None, visible)[:, :, :, 0]
            total = total + decoder.written("z", layer, z - self.at(("z", layer))[:, :, head], head)
        assert isinstance(total, Tensor)
        return total

    def _add(self, change: Tensor, message: Message, key: Key) -> None:
        """Add what the writers of one activation send, in place."""
        if key in message.changes:
            runs, written = message.changes[key]
            change[runs] += written

    def _attention_readers(
        self, layer: int, readers: Sequence[Reader], change: Tensor
    ) -> Iterator[tuple[Reader, Tensor]]:
        stream = self.at(("resid_pre", layer)) + change
        if layer == self.decoder.shape.n_layers:
            # The logits: what they compute is left to the readout, so the stream itself arrives.
            yield readers[0], stream
            return
        block = self.decoder.layers[layer]
        normed = block.attn_norm(stream)
        for reader in readers:
            linear = {"q": block.q, "k": block.k, "v": block.v}[reader.port]
            yield reader, _of_head(linear, reader.unit, self.decoder.shape.d_head)(normed)

    def _mlp_readers(
        self, layer: int, readers: Sequence[Reader], change: Tensor
    ) -> Iterator[tuple[Reader, Tensor]]:
        block = self.decoder.layers[layer]
        assert block.mlp_out is not None
        tiles: dict[Reader, list[Tensor]] = {reader: [] for reader in readers}
        for tile in change.split(self._runs_per_tile(change)):
            post = self._post(layer, tile)
            for reader in readers:
                tiles[reader].append(_neuron_or_output(block.mlp_out, post, reader.unit))
        for reader, computed in tiles.items():
            yield reader, torch.cat(computed)

    def _response(self, layer: int, message: Message, change: Tensor) -> tuple[list[int], Tensor] | None:
        """The runs in which an MLP responds to a changed input, and by how much it writes something else."""
        block = self.decoder.layers[layer]
        assert block.mlp_out is not None
        senders: list[list[Site]] = []
        for writers in message.writers:
            senders.append([writer.site for writer in writers if writer.site.layer == layer])
        touched = (change != 0).flatten(1).any(1).tolist()
        runs = []
        for run, sites in enumerate(senders):
            # An MLP that is a sender keeps its patched value, and so does not respond.
            if touched[run] and not any(site.kind == "mlp_out" for site in sites):
                runs.append(run)
        if not runs:
            return None
        responses = []
        for tile in torch.tensor(runs, dtype=torch.long).split(self._runs_per_tile(change)):
            post = self._post(layer, change[tile])
            for row, run in enumerate(tile.tolist()):
                for site in senders[run]:
                    if site.kind == "mlp_post":  # a neuron that is a sender itself does not respond
                        post[row, ..., site.neuron] = self.at(site.key)[..., site.neuron]
            responses.append(block.mlp_out(post) - self.at(("mlp_out", layer)))
        return runs, torch.cat(responses)

    def _post(self, layer: int, change: Tensor) -> Float[Tensor, "run example pos neuron"]:
        """The neurons of an MLP whose input has changed."""
        block = self.decoder.layers[layer]
        assert block.mlp_norm is not None
        kind = "resid_mid"
        if self.decoder.shape.parallel:
            kind = "resid_pre"
        stream = self.at((kind, layer))
        return block.mlp_post(*block.mlp_pre(block.mlp_norm(stream + change)))

    def _runs_per_tile(self, change: Tensor) -> int:
        """How many runs an MLP has room for; three tables of neurons are there at once."""
        n_tokens = change[0].numel() // self.decoder.shape.d_model
        bytes_each = n_tokens * 3 * self.decoder.shape.d_mlp * self.decoder.embed.element_size()
        return max(1, self.tile // max(1, bytes_each))


def _neuron_or_output(mlp_out: Linear, post: Tensor, neuron: int | None) -> Tensor:
    """One neuron of an MLP [..., neuron], or what the whole MLP writes."""
    if neuron is None:
        return mlp_out(post)
    return post[..., neuron]


def _unit_of(activation: Tensor, unit: int | None) -> Tensor:
    """One head or neuron of an activation [example, pos, unit, ...], or all of it."""
    if unit is None:
        return activation
    return activation[:, :, unit]


def _of_head(linear: Linear, unit: int | None, width: int) -> Linear:
    """The columns of one head."""
    assert unit is not None
    return linear.columns(slice(unit * width, (unit + 1) * width))
