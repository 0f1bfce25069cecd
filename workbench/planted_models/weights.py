"""The weights of a drawing: where its heads go, and what every matrix of the model is.

Read `DrawnWeights`. It knows no recipe: all it is given is heads and neurons by subspace, decoys among them.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.planted_models.drawing import Drawing, Embedding, Head, Neuron
from workbench.sites import Node

READOUT = 4.0
"""Logits per unit of what the readout reads."""
# With norms: a constant that dominates the stream's length, so that the scale hardly depends on the rest.
STEADY = 45.0


class DrawnWeights:
    """The weights of a drawing once everything is placed."""

    def __init__(
        self,
        drawing: Drawing,
        setting: Embedding,
        n_layers: int,
        heads: Sequence[Head],
        neurons: Sequence[Neuron],
        rng: random.Random,
        generator: torch.Generator,
    ) -> None:
        self.drawing, self.setting, self.n_layers = drawing, setting, n_layers
        self.heads, self.neurons, self.generator = heads, neurons, generator
        ends = torch.tensor(list(drawing.widths.values())).cumsum(0).tolist()
        self.slices = dict(zip(drawing.widths, map(slice, [0, *ends], ends), strict=True))
        self.used = int(ends[-1])
        # One more than is used: the direction of the mean, which layer norms remove.
        self.d_model = self.used + 1
        start = torch.randn(self.d_model, self.d_model, generator=generator, dtype=torch.float64)
        # Layer norms subtract the mean: the basis is orthogonal to it, so that nothing is lost.
        start[:, 0] = 1.0
        self.basis = torch.linalg.qr(start)[0].T[1:].float()
        # At least what any decoy may need, so that it is the same for every seed.
        self.d_head = 16
        for head in heads:
            n_scores = sum(len(score.right) for score in head.scores)
            n_moves = sum(move.map.shape[1] for move in head.moves)
            self.d_head = max(self.d_head, n_scores, n_moves)
        self.d_mlp = _most_in_a_layer(neurons)
        # A true head has a kv head of its own; decoys share one with it or with each other.
        n_true = _most_in_a_layer([head for head in heads if not head.decoy])
        self.n_kv_heads = max(n_true, math.ceil(_most_in_a_layer(heads) / setting.group))
        self.n_heads = self.n_kv_heads * setting.group
        self.places = self._place(rng)

    def _place(self, rng: random.Random) -> dict[str, str]:
        """Where each head goes: true heads to kv heads of their own, decoys wherever there is room."""
        places = {}
        for layer in range(self.n_layers):
            true = [head.name for head in self.heads if head.layer == layer and not head.decoy]
            decoys = [head.name for head in self.heads if head.layer == layer and head.decoy]
            # True heads never share a kv head: what one needs of k and v would disturb the other.
            groups = rng.sample(range(self.n_kv_heads), len(true))
            slots = {}
            for name, group in zip(true, groups, strict=True):
                slots[name] = group * self.setting.group + rng.randrange(self.setting.group)
            free = sorted(set(range(self.n_heads)) - set(slots.values()))
            # There may be more room than decoys: the heads left over have no weights but noise.
            slots |= dict(zip(decoys, rng.sample(free, len(free)), strict=False))
            for name, slot in slots.items():
                places[name] = f"a{layer}.{slot}"
        return places

    def config(self) -> dict[str, Any]:
        """The settings of `native_model` for these weights."""
        setting = self.setting
        return {
            "n_layers": self.n_layers, "n_heads": self.n_heads,
            "d_model": self.d_model, "d_head": self.d_head,
            "d_mlp": max(self.d_mlp, 1), "n_ctx": self.drawing.length, "d_vocab": len(self.drawing.words),
            "act_fn": "relu",
            "normalization_type": setting.norm, "attn_only": self.d_mlp == 0,
            "n_key_value_heads": self.n_kv_heads if setting.group > 1 else None,
        }  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        """Every parameter but the norms' own, by name."""
        weights = self._embedding()
        for layer in range(self.n_layers):
            for name, weight in self._attention(layer).items():
                weights[f"layers.{layer}.attn.{name}"] = weight
            if self.d_mlp:
                for name, weight in self._mlp(layer).items():
                    weights[f"layers.{layer}.mlp.{name}"] = weight
        # On zeros too: without it the sparse weights would show where the circuit is.
        for name, weight in weights.items():
            noise = torch.randn(weight.shape, generator=self.generator)
            weights[name] = weight + self.setting.noise * noise
        return weights

    def _embedding(self) -> dict[str, Tensor]:
        drawing = self.drawing
        rows = torch.stack(list(map(self._vector, drawing.words.values())))
        if self.setting.norm:  # equal lengths: the first norm divides by the same number everywhere
            squares = rows.square().sum(-1)
            rows[:, self.slices["slack"]] = (squares.max() - squares).sqrt()[:, None]
        positions = torch.zeros(drawing.length, self.used)
        positions[:, self.slices["position"]] = torch.eye(drawing.length)
        space, words = drawing.readout
        readout = torch.zeros(len(drawing.words), self.used)
        ids = list(drawing.words)
        for i, word in enumerate(words):
            readout[ids.index(word), self.slices[space].start + i] = READOUT
        self.input_length = float((rows[0].square().sum() + 1).sqrt())
        return {
            "tok_embed.weight": rows @ self.basis,
            "pos.weight": positions @ self.basis,
            "head.weight": self._reading(readout, first=False),
        }

    def _attention(self, layer: int) -> dict[str, Tensor]:
        size, kv_size = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        q, k, v, o = (torch.zeros(rows, self.used) for rows in (size, kv_size, kv_size, size))
        q_bias, filled = torch.zeros(size), set()
        in_layer = [head for head in self.heads if head.layer == layer]
        # Decoys come last: where they share a kv head, its k and v are those of the true head.
        for head in sorted(in_layer, key=lambda head: head.decoy):
            _, slot = Node.parse(self.places[head.name]).layer_and_head
            kv = slot // self.setting.group
            at, kv_at = slot * self.d_head, kv * self.d_head
            for score in head.scores:
                # q and k share the gain, and attention divides by sqrt(d_head).
                strength = math.sqrt(abs(score.gain) * math.sqrt(self.d_head))
                rank, sign = len(score.right), math.copysign(1.0, score.gain)
                # A bias is the same from every position: attention does not depend on the query.
                if score.q is None:
                    q_bias[at : at + rank] = sign * strength
                else:
                    q[at : at + rank, self.slices[score.q]] = sign * strength * score.left
                if kv not in filled:
                    k[kv_at : kv_at + rank, self.slices[score.k]] = strength * score.right
                at, kv_at = at + rank, kv_at + rank
            at, kv_at = slot * self.d_head, kv * self.d_head
            for move in head.moves:
                width = move.map.shape[1]
                if kv not in filled:
                    v[kv_at : kv_at + width, self.slices[move.v]] = torch.eye(width)
                o[at : at + width, self.slices[move.out]] = move.scale * move.map.T
                at, kv_at = at + width, kv_at + width
            filled.add(kv)
        first = layer == 0
        constant = torch.zeros(self.used)
        if first:
            constant = self._vector(self.drawing.constant)
        if first and self.setting.norm:
            constant[self.slices["steady"]] = STEADY
        return {
            "q.weight": self._reading(q, first), "q.bias": q_bias,
            "k.weight": self._reading(k, first), "k.bias": torch.zeros(kv_size),
            "v.weight": self._reading(v, first), "v.bias": torch.zeros(kv_size),
            "o.weight": (o @ self.basis).T, "o.bias": constant @ self.basis,
        }  # fmt: skip

    def _mlp(self, layer: int) -> dict[str, Tensor]:
        neurons = [neuron for neuron in self.neurons if neuron.layer == layer]
        reads, writes = torch.zeros(self.d_mlp, self.used), torch.zeros(self.d_mlp, self.used)
        bias = torch.zeros(self.d_mlp)
        for i, neuron in enumerate(neurons):
            reads[i], writes[i] = self._vector(neuron.reads), self._vector(neuron.writes)
            bias[i] = neuron.bias
        # Which neuron is a true one must not show in its number.
        order = torch.randperm(self.d_mlp, generator=self.generator)
        return {
            "fc_in.weight": self._reading(reads[order], first=False), "fc_in.bias": bias[order],
            "fc_out.weight": (writes[order] @ self.basis).T, "fc_out.bias": torch.zeros(self.d_model),
        }  # fmt: skip

    def _vector(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """[used] of vectors in some subspaces."""
        total = torch.zeros(self.used)
        for space, vector in vectors.items():
            total[self.slices[space]] += vector
        return total

    def _reading(self, matrix: Tensor, first: bool) -> Tensor:
        """Weights that read the hidden stream, and undo what a norm will divide by."""
        if not self.setting.norm:
            return matrix @ self.basis
        # The first layer reads the embedding alone; after it the steady constant dominates the length.
        length = self.input_length
        if not first:
            length = math.sqrt(STEADY**2 + self.input_length**2)
        return matrix @ self.basis * length / math.sqrt(self.d_model)


def _most_in_a_layer(drawn: Sequence[Head] | Sequence[Neuron]) -> int:
    """How many heads or neurons the fullest layer has."""
    return max(Counter(item.layer for item in drawn).values(), default=0)
