"""What writers send along direct edges: the linear part of path patching, without a forward pass.

With everything else frozen a writer's change reaches a reader as it is, through the residual stream; the reader's norm
and map are then computed exactly. With `recompute`, MLPs in between answer to what reaches them. All of this is token by
token, and for many runs at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun
from workbench.engine.fast.decoder import Linear
from workbench.engine.nodes import Reader, Writer
from workbench.sites import Key, Site

Runs = Sequence[Sequence[Writer]]


@dataclass(frozen=True, eq=False)
class Message:
    """What several runs send: in each, some writers with their changes of the stream.

    Attributes:
        writers: of each run.
        changes: key of a writer's activation → the runs that change it, and by how much [run, example, pos, d_model].
    """

    writers: Runs
    changes: Mapping[Key, tuple[list[int], Tensor]]


class DirectEdges:
    """Direct edges of one batch.

    Args:
        bound: the other value of the writers.
        recompute: whether MLPs between writer and reader answer to what reaches them.
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
        tile: int = 2**25,
    ) -> None:
        self.tile = tile
        self.base, self.decoder, self.bound, self.recompute = base, base.decoder, bound, recompute
        self.places = places.to(base.decoder.device)
        self.rows = torch.arange(len(places), device=self.places.device)[:, None]

    def at(self, key: Key) -> Tensor:
        """[example, pos, ...] of the base run, at the places."""
        return self.base.whole(key)[self.rows, self.places]

    def sent(self, runs: Runs) -> Message:
        """What the writers of each run send when they take the other value."""
        grouped: dict[Key, list[tuple[int, Site]]] = {}
        for run, writers in enumerate(runs):
            for each in writers:
                grouped.setdefault(each.site.key, []).append((run, each.site))
        changes = {}
        for key, members in grouped.items():
            written = self._written(key, [site for _, site in members])
            numbers = list(dict.fromkeys(run for run, _ in members))
            if len(numbers) < len(members):
                where = torch.tensor([numbers.index(run) for run, _ in members], device=written.device)
                written = written.new_zeros(len(numbers), *written.shape[1:]).index_add_(0, where, written)
            changes[key] = numbers, written
        return Message(runs, changes)

    def still(self, message: Message) -> Bool[Tensor, "run example"]:
        """Where nothing at all is sent."""
        quiet = torch.ones(
            len(message.writers), len(self.places), dtype=torch.bool, device=self.places.device
        )
        for runs, change in message.changes.values():
            quiet[runs] &= (change == 0).flatten(2).all(2)
        return quiet.cpu()

    def _written(self, key: Key, sites: Sequence[Site]) -> Float[Tensor, "site example pos d_model"]:
        """What the other value of each of these heads or neurons (or of everything) adds to the stream."""
        units = [site.unit for site in sites]
        if key[0] != "z" or not self.bound.value.unitwise:
            return torch.stack([self.decoder.written(*key, self._changed(site), site.unit) for site in sites])
        assert key[1] is not None
        shape, change = self.decoder.shape, self._changed(Site(*key))
        chosen = torch.tensor(units, device=change.device)
        weights = self.decoder.layers[key[1]].o.weight.view(shape.n_heads, shape.d_head, -1)[chosen]
        values = change[:, :, chosen].flatten(0, 1).transpose(0, 1)
        return (values @ weights).view(len(units), *change.shape[:2], -1)

    def _changed(self, site: Site) -> Tensor:
        """[example, pos, ...]: the other value of a site minus its own."""
        change = (self.base.edited(site.key, [(site, self.bound)]) - self.base.whole(site.key))[
            self.rows, self.places
        ]
        return change if site.unit is None else change[:, :, site.unit]

    def arriving(self, message: Message, readers: Sequence[Reader]) -> Iterator[tuple[Reader, Tensor]]:
        """What each reader computes from its changed input, [run, example, pos, ...], reader by reader in order of layers."""
        wanted: dict[tuple[int, bool], list[Reader]] = {}
        for reader in dict.fromkeys(reader.whole for reader in readers):
            wanted.setdefault((reader.layer, reader.is_mlp), []).append(reader)
        shape = self.decoder.shape
        last = max(layer for layer, _ in wanted)
        start = self.at(("resid_pre", 0))
        change = start.new_zeros(len(message.writers), *start.shape)
        self._add(change, message, ("resid_pre", 0))
        for layer in range(last + 1):
            if (layer, False) in wanted:
                yield from self._attention_readers(layer, wanted[layer, False], change)
            if layer == last and (layer, True) not in wanted:
                return
            entry = change.clone() if shape.parallel else change
            self._add(change, message, ("z", layer))
            if shape.attn_only:
                continue
            entry = entry if shape.parallel else change
            if (layer, True) in wanted:
                yield from self._mlp_readers(layer, wanted[layer, True], entry)
            if layer == last:
                return
            answer = self._answer(layer, message, entry) if self.recompute else None
            self._add(change, message, ("mlp_post", layer))
            self._add(change, message, ("mlp_out", layer))
            if answer is not None:
                change[answer[0]] += answer[1]

    def through(self, message: Message, readers: Sequence[Reader], writers: Sequence[Writer]) -> Message:
        """What a node sends on when its inputs are what a message brings; one run a path."""
        arrived = dict(self.arriving(message, readers))
        values = {reader: self.only_at(reader, arrived[reader.whole]) for reader in readers}
        runs = [list(writers) for _ in message.writers]
        key = writers[0].site.key
        if key[0] == "z":
            changes = self._head_changes(values, writers)
        else:
            (value,) = values.values()
            unit = writers[0].site.unit
            before = self.at(key) if unit is None else self.at(key)[:, :, unit]
            changes = self.decoder.written(*key, value - before, unit)
        return Message(runs, {key: (list(range(len(runs))), changes)})

    def only_at(self, reader: Reader, value: Tensor) -> Tensor:
        """What a reader computes where only its own position has changed."""
        if reader.pos is None:
            return value
        before = self._before(reader)
        here = (self.places == self.base.prompts.at(reader.pos).to(self.places.device)[:, None]).view(
            1, *self.places.shape, *[1] * (value.ndim - 3)
        )
        return torch.where(here, value, before)

    def _before(self, reader: Reader) -> Tensor:
        whole = self.at(reader.site.key)
        return whole if reader.unit is None else whole[:, :, reader.unit]

    def _head_changes(self, values: Mapping[Reader, Tensor], writers: Sequence[Writer]) -> Tensor:
        """[run, example, pos, d_model]: what heads write anew with some of their q, k and v."""
        layer, decoder, group = next(iter(values)).layer, self.decoder, self.decoder.shape.group
        given = {(reader.port, reader.unit): value for reader, value in values.items()}
        runs = len(next(iter(values.values())))
        pos = torch.arange(self.places.shape[1], device=self.places.device)
        visible = (pos[None, :] <= pos[:, None])[None]
        total: Tensor | float = 0.0
        for each in writers:
            head = each.site.head
            assert head is not None
            parts = {}
            for port, unit in (("q", head), ("k", head // group), ("v", head // group)):
                value = given.get((port, unit))
                value = (
                    self.at((port, layer))[:, :, unit].expand(runs, -1, -1, -1) if value is None else value
                )
                parts[port] = value.unsqueeze(3)
            q, k = (decoder.heads(parts[port], layer, port, self.places) for port in "qk")
            z = decoder.attend(layer, q, k, parts["v"], None, visible)[:, :, :, 0]
            total = total + decoder.written("z", layer, z - self.at(("z", layer))[:, :, head], head)
        assert isinstance(total, Tensor)
        return total

    def _add(self, change: Tensor, message: Message, key: Key) -> None:
        if key in message.changes:
            runs, written = message.changes[key]
            change[runs] += written

    def _attention_readers(
        self, layer: int, readers: Sequence[Reader], change: Tensor
    ) -> Iterator[tuple[Reader, Tensor]]:
        stream = self.at(("resid_pre", layer)) + change
        if layer == self.decoder.shape.n_layers:
            yield readers[0], stream
            return
        block = self.decoder.layers[layer]
        normed = block.attn_norm(stream)
        for reader in readers:
            full = {"q": block.q, "k": block.k, "v": block.v}[reader.port]
            yield reader, _of_unit(full, reader.unit, self.decoder.shape.d_head)(normed)

    def _mlp_readers(
        self, layer: int, readers: Sequence[Reader], change: Tensor
    ) -> Iterator[tuple[Reader, Tensor]]:
        block = self.decoder.layers[layer]
        assert block.mlp_out is not None
        made: dict[Reader, list[Tensor]] = {reader: [] for reader in readers}
        for part in self._tiles(change):
            post = self._post(layer, part)
            for reader in readers:
                made[reader].append(block.mlp_out(post) if reader.unit is None else post[..., reader.unit])
        for reader, parts in made.items():
            yield reader, torch.cat(parts)

    def _answer(self, layer: int, message: Message, change: Tensor) -> tuple[list[int], Tensor] | None:
        """The runs in which an MLP answers to a changed input, and by how much it writes something else."""
        block = self.decoder.layers[layer]
        assert block.mlp_out is not None
        mine = [[each.site for each in writers if each.site.layer == layer] for writers in message.writers]
        sends = [any(site.kind == "mlp_out" for site in sites) for sites in mine]
        touched = (change != 0).flatten(1).any(1).tolist()
        runs = [run for run in range(len(sends)) if touched[run] and not sends[run]]
        answers = []
        for part in self._tiles(torch.tensor(runs, dtype=torch.long), change):
            post = self._post(layer, change[part])
            for row, run in enumerate(part.tolist()):
                for site in mine[run]:
                    if site.kind == "mlp_post":  # a neuron that is a sender itself does not answer
                        post[row, ..., site.neuron] = self.at(site.key)[..., site.neuron]
            answers.append(block.mlp_out(post) - self.at(("mlp_out", layer)))
        return (runs, torch.cat(answers)) if answers else None

    def _post(self, layer: int, change: Tensor) -> Float[Tensor, "run example pos neuron"]:
        """The neurons of an MLP whose input has changed."""
        block = self.decoder.layers[layer]
        assert block.mlp_norm is not None
        stream = self.at(("resid_pre" if self.decoder.shape.parallel else "resid_mid", layer))
        return block.mlp_post(*block.mlp_pre(block.mlp_norm(stream + change)))

    def _tiles(self, runs: Tensor, change: Tensor | None = None) -> Sequence[Tensor]:
        """Runs, as many at a time as the neurons of an MLP have room for."""
        each = (
            (runs if change is None else change)[0].numel()
            // self.decoder.shape.d_model
            * 3
            * self.decoder.shape.d_mlp
        )
        return (
            runs.split(max(1, self.tile // max(1, each * self.decoder.embed.element_size())))
            if len(runs)
            else ()
        )


def _of_unit(full: Linear, unit: int | None, width: int) -> Linear:
    """The columns of one head."""
    assert unit is not None
    part = slice(unit * width, (unit + 1) * width)
    return Linear(full.weight[:, part], None if full.bias is None else full.bias[part])
