"""A transformer drawn before it is built: named subspaces, and heads and neurons that read and write them.

Because every read and write is declared, the edges that carry something are known: writer u feeds reader v
when u writes a subspace that v reads. `Blueprint.build` then hides the drawing: heads in a random order, the
stream in a random basis, decoys that write where nothing true reads, noise on all weights. Nothing is
trained. Read `Blueprint`, then `_Drawn`, which turns it into weights; what the circuits are for is in
`recipes.py`.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.load import native_model
from workbench.models.model import Model
from workbench.sites import Node

# Logits per unit of what the readout reads.
READOUT = 4.0
# With norms: a constant that dominates the stream's length, so that the scale hardly depends on the rest.
STEADY = 45.0


@dataclass(frozen=True)
class ScoreTerm:
    """A part of a head's attention score: gain * (left x_q) . (right x_k); with q None, gain * right x_k."""

    q: str | None
    k: str
    gain: float
    left: Float[Tensor, "rank q_width"]
    right: Float[Tensor, "rank k_width"]


@dataclass(frozen=True)
class Move:
    """What a head copies: `scale` times the subspace `v` of where it attends, through `map`, into `out`."""

    v: str
    out: str
    map: Float[Tensor, "out_width v_width"]
    scale: float = 1.0


@dataclass(frozen=True)
class Head:
    """A head of the drawing. Decoys are not part of the truth."""

    name: str
    layer: int
    scores: tuple[ScoreTerm, ...]
    moves: tuple[Move, ...]
    decoy: bool = False


@dataclass(frozen=True)
class Neuron:
    """relu(reads . x + bias) times `writes`."""

    layer: int
    reads: Mapping[str, Tensor]
    bias: float
    writes: Mapping[str, Tensor]
    decoy: bool = False


@dataclass(frozen=True)
class Embedding:
    """How a drawing is hidden in a model.

    Attributes:
        norm: None, "LN" or "RMS".
        group: query heads that share a kv head.
        noise: standard deviation of the noise on all weights.
        decoys: heads that do nothing for the answer.
        neurons: decoy neurons in each layer.
        extra: layers beyond those that the circuit needs; the circuit's layers lie at random among them.
        gain: attention score of a match over no match: 40 saturates the softmax, 10 leaves it a gradient.
    """

    norm: str | None = None
    group: int = 1
    noise: float = 0.0
    decoys: int = 3
    neurons: int = 0
    extra: int = 0
    gain: float = 40.0


@dataclass(frozen=True)
class BuiltModel:
    """A model and what is true of it.

    Attributes:
        heads: role → name, as in "previous" → "a0.3".
        wired: the edges that carry something used.
        group: query heads that share a kv head.
    """

    model: Model
    heads: Mapping[str, str]
    wired: frozenset[str]
    group: int

    def edge(self, roles: str) -> str:
        """The edge between heads that are named by their roles, as in `previous->induction<k>`."""
        writer, _, reader = roles.partition("->")
        role, _, port = reader.partition("<")
        reader = reader_of(self.heads.get(role, role), port.removesuffix(">"), self.group)
        return f"{self.heads.get(writer, writer)}->{reader}"


class Blueprint:
    """A drawing in progress.

    Subspaces are allocated by `space`; the stream always has one-hot positions in `position`.
    """

    def __init__(self, *, length: int, gain: float) -> None:
        self.length, self.gain = length, gain
        self.widths: dict[str, int] = {}
        self.words: dict[str, dict[str, Tensor]] = {}
        self.heads: list[Head] = []
        self.neurons: list[Neuron] = []
        self.constant: dict[str, Tensor] = {}
        self.readout: tuple[str, tuple[str, ...]] = ("", ())
        self.space(position=length)
        self.word("BOS")

    def space(self, **widths: int) -> None:
        """Orthogonal subspaces of these widths."""
        self.widths |= widths

    def word(self, text: str, **vectors: Tensor) -> None:
        """A word of the vocabulary, embedded as these vectors in the subspaces of these names."""
        self.words[text] = vectors

    def alphabet(self, prefix: str, count: int, *spaces: str) -> tuple[str, ...]:
        """Words `prefix0`, `prefix1`, …, each a one-hot vector in all of the subspaces named."""
        names = tuple(f"{prefix}{i}" for i in range(count))
        for i, name in enumerate(names):
            self.word(name, **{space: one_hot(i, self.widths[space]) for space in spaces})
        return names

    def same(self, q: str, k: str, gain: float = 1.0, *, shift: int = 0) -> ScoreTerm:
        """Attend to where `k` holds what `q` holds here, or (`shift`) the one-hot so many steps further."""
        left = torch.diag_embed(torch.ones(self.widths[q] - abs(shift)), offset=-shift)
        rows = self.widths[k]
        return ScoreTerm(q, k, gain * self.gain, rectangular(left, rows, self.widths[q]), torch.eye(rows))

    def on(self, k: str, gain: float = 1.0, *, only: int | None = None) -> ScoreTerm:
        """Attend, from everywhere, to where `k` holds anything, or (`only`) that one-hot."""
        width = self.widths[k]
        right = torch.ones(1, width) if only is None else one_hot(only, width)[None]
        return ScoreTerm(None, k, gain * self.gain, torch.ones(1, 1), right)

    def gate(
        self, q: str, k: str, gain: float = 1.0, *, q_only: int | None = None, k_only: int | None = None
    ) -> ScoreTerm:
        """Attend to where `k` holds anything, as much as `q` holds anything.

        Args:
            q_only, k_only: one coordinate of the subspace that counts alone.
        """
        left = torch.ones(1, self.widths[q]) if q_only is None else one_hot(q_only, self.widths[q])[None]
        return replace(self.on(k, gain, only=k_only), q=q, left=left)

    def move(self, v: str, out: str, scale: float = 1.0, *, shift: int = 0) -> Move:
        """Copy `v` into `out`, its one-hot moved by `shift` steps."""
        matrix = torch.diag_embed(torch.ones(self.widths[v] - abs(shift)), offset=-shift)
        return Move(v, out, rectangular(matrix, self.widths[out], self.widths[v]), scale)

    def head(self, name: str, layer: int, scores: Sequence[ScoreTerm], moves: Sequence[Move]) -> None:
        """A head of the true circuit."""
        self.heads.append(Head(name, layer, tuple(scores), tuple(moves)))

    def neuron(
        self, layer: int, reads: Mapping[str, Tensor], bias: float, writes: Mapping[str, Tensor]
    ) -> None:
        """A neuron of the true circuit."""
        self.neurons.append(Neuron(layer, reads, bias, writes))

    def read_out(self, space: str, words: Sequence[str]) -> None:
        """The logit of the i-th word is the i-th coordinate of the subspace."""
        self.readout = space, tuple(words)

    def always(self, space: str, vector: Tensor) -> None:
        """A constant in the stream from the first attention layer's bias on: no edge carries it."""
        self.constant[space] = vector

    def build(self, name: str, setting: Embedding, *, seed: int) -> BuiltModel:
        """The model in which this drawing is hidden."""
        rng = random.Random(f"planted {name} {seed}")
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        base = 1 + max(drawn.layer for drawn in (*self.heads, *self.neurons))
        layers = sorted(rng.sample(range(base + setting.extra), base))
        # The circuit's layers keep their order and lie anywhere among the others.
        heads = [replace(head, layer=layers[head.layer]) for head in self.heads]
        neurons = [replace(neuron, layer=layers[neuron.layer]) for neuron in self.neurons]
        self.space(loud=8, aside=8, steady=1, slack=1)
        heads += self._decoys(heads, setting, base + setting.extra, rng)
        neurons += self._decoy_neurons(setting, base + setting.extra, rng)
        drawn = _Drawn(self, setting, base + setting.extra, heads, neurons, rng, generator)
        model = native_model(f"planted-{name}", weights=drawn.weights(), **drawn.config())
        true = {head.name: drawn.places[head.name] for head in self.heads}
        return BuiltModel(
            model, true, self._wired(heads, neurons, drawn.places, setting.group), setting.group
        )

    def _decoys(self, heads: list[Head], setting: Embedding, n_layers: int, rng: random.Random) -> list[Head]:
        """In turn: loud heads that nothing reads, chains beside the readout, doubles of true heads."""
        # With norms a louder decoy would drown what the true heads write.
        loud = 2.0 if setting.norm else 8.0
        embedded = self._embedded_spaces()
        decoys: list[Head] = []
        for i in range(setting.decoys):
            crowd = [sum(head.layer == layer for head in (*heads, *decoys)) for layer in range(n_layers)]
            # Where the fewest heads are, so that every layer has about as many.
            layer = min(range(n_layers), key=lambda layer: (crowd[layer], rng.random()))
            true_heads, space = [head for head in heads if head.layer == layer], rng.choice(embedded)
            # A weak score: a decoy attends to several positions, and mostly one to three steps back.
            scores = (self.same("position", "position", 0.4, shift=-rng.randint(1, 3)),)
            moves = (self.move(space, "loud", loud),)
            fed = any(move.out == "aside" for head in decoys if head.layer < layer for move in head.moves)
            if i % 3 == 1:
                scores = (self.on("aside", 0.3),) if fed else scores
                moves = (self.move("aside", "loud", 2.0) if fed else self.move(space, "aside", loud / 2),)
            elif i % 3 == 2 and true_heads:
                like = rng.choice(true_heads)
                scores, moves = like.scores, tuple(self.move(move.v, "loud", loud / 2) for move in like.moves)
            decoys.append(Head(f"decoy {i}", layer, scores, moves, decoy=True))
        return decoys

    def _embedded_spaces(self) -> list[str]:
        """The subspaces that words have a part in, sorted so that draws do not depend on their order."""
        return sorted({space for vectors in self.words.values() for space in vectors})

    def _decoy_neurons(self, setting: Embedding, n_layers: int, rng: random.Random) -> list[Neuron]:
        embedded = self._embedded_spaces()
        decoys = []
        for layer in range(n_layers):
            for _ in range(setting.neurons):
                space = rng.choice(embedded)
                reads = {space: torch.tensor([float(rng.choice((-1, 1))) for _ in range(self.widths[space])])}
                writes = {"loud": one_hot(rng.randrange(8), 8) * rng.choice((-2, 2))}
                decoys.append(Neuron(layer, reads, 0.2, writes, decoy=True))
        return decoys

    def _wired(
        self, heads: Sequence[Head], neurons: Sequence[Neuron], places: Mapping[str, str], group: int
    ) -> frozenset[str]:
        """Every edge whose writer writes a subspace that its reader reads, decoys aside."""
        # (name, moment, subspaces): attention of a layer at 2 * layer, its MLP at 2 * layer + 1.
        writers = [("input", -1, {*self._embedded_spaces(), "position"})]
        readers: list[tuple[str, float, set[str]]] = [("logits", math.inf, {self.readout[0]})]
        for head in (head for head in heads if not head.decoy):
            writers.append((places[head.name], 2 * head.layer, {move.out for move in head.moves}))
            read = {
                "q": {score.q for score in head.scores if score.q},
                "k": {score.k for score in head.scores},
            }
            read["v"] = {move.v for move in head.moves}
            readers += [
                (reader_of(places[head.name], port, group), 2 * head.layer, read[port]) for port in "qkv"
            ]
        for neuron in (neuron for neuron in neurons if not neuron.decoy):
            writers.append((f"m{neuron.layer}", 2 * neuron.layer + 1, set(neuron.writes)))
            readers.append((f"m{neuron.layer}", 2 * neuron.layer + 1, set(neuron.reads)))
        edges: set[str] = set()
        for writer, written_at, written in writers:
            for reader, read_at, read in readers:
                if written_at < read_at and written & read:
                    edges.add(f"{writer}->{reader}")
        return frozenset(edges)


class _Drawn:
    """The weights of a drawing once everything is placed."""

    def __init__(
        self,
        drawing: Blueprint,
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
        self.slices = {
            s: slice(end - drawing.widths[s], end) for s, end in zip(drawing.widths, ends, strict=True)
        }
        self.used = int(ends[-1])
        self.d_model = self.used + 1
        start = torch.randn(self.d_model, self.d_model, generator=generator, dtype=torch.float64)
        # Layer norms subtract the mean: the basis is orthogonal to it, so that nothing is lost.
        start[:, 0] = 1.0
        self.basis = torch.linalg.qr(start)[0].T[1:].float()
        needed = [sum(len(score.right) for score in head.scores) for head in heads]
        needed += [sum(move.map.shape[1] for move in head.moves) for head in heads]
        # At least what any decoy may need, so that it is the same for every seed.
        self.d_head = max(16, *needed)
        self.d_mlp = max([sum(neuron.layer == layer for neuron in neurons) for layer in range(n_layers)])
        kv = max(sum(head.layer == layer and not head.decoy for head in heads) for layer in range(n_layers))
        most = max(sum(head.layer == layer for head in heads) for layer in range(n_layers))
        self.n_kv_heads = max(kv, math.ceil(most / setting.group))
        self.n_heads = self.n_kv_heads * setting.group
        self.places = self._place(rng)

    def _place(self, rng: random.Random) -> dict[str, str]:
        """Where each head goes: true heads to kv heads of their own, decoys wherever there is room."""
        places = {}
        for layer in range(self.n_layers):
            heads = [head for head in self.heads if head.layer == layer]
            true = [head for head in heads if not head.decoy]
            # True heads never share a kv head: what one needs of k and v would disturb the other.
            groups = rng.sample(range(self.n_kv_heads), len(true))
            slots = {
                head.name: group * self.setting.group + rng.randrange(self.setting.group)
                for head, group in zip(true, groups, strict=True)
            }
            free = [slot for slot in range(self.n_heads) if slot not in slots.values()]
            decoys = [head.name for head in heads if head.decoy]
            # There may be more room than decoys: the heads left over have no weights but noise.
            slots |= dict(zip(decoys, rng.sample(free, len(free)), strict=False))
            places |= {name: f"a{layer}.{slot}" for name, slot in slots.items()}
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
            weights |= {
                f"layers.{layer}.attn.{name}": weight for name, weight in self._attention(layer).items()
            }
            if self.d_mlp:
                weights |= {f"layers.{layer}.mlp.{name}": weight for name, weight in self._mlp(layer).items()}
        noise = self.setting.noise
        return {
            name: w + noise * torch.randn(w.shape, generator=self.generator) for name, w in weights.items()
        }

    def _embedding(self) -> dict[str, Tensor]:
        drawing = self.drawing
        rows = torch.stack([self._vector(vectors) for vectors in drawing.words.values()])
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
        for head in sorted((head for head in self.heads if head.layer == layer), key=lambda head: head.decoy):
            _, slot = Node.parse(self.places[head.name]).layer_and_head
            kv = slot // self.setting.group
            at, kv_at = slot * self.d_head, kv * self.d_head
            for score in head.scores:
                # q and k share the gain, and attention divides by sqrt(d_head).
                strength = math.sqrt(abs(score.gain) * math.sqrt(self.d_head))
                rank, sign = len(score.right), math.copysign(1.0, score.gain)
                if score.q is None:
                    q_bias[at : at + rank] = sign * strength
                else:
                    q[at : at + rank, self.slices[score.q]] = sign * strength * score.left
                # Decoys come last: where they share a kv head, its k and v are those of the true head.
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
        constant = self._vector(self.drawing.constant if layer == 0 else {})
        constant[self.slices["steady"]] = STEADY if self.setting.norm and layer == 0 else 0.0
        first = layer == 0
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
        # The first layer reads the embedding alone; behind it the steady constant dominates the length.
        length = self.input_length if first else math.sqrt(STEADY**2 + self.input_length**2)
        return matrix @ self.basis * length / math.sqrt(self.d_model)


def reader_of(name: str, port: str, group: int) -> str:
    """The reader of a head's port: k and v belong to kv heads. A node without a port is its own reader."""
    if not port:
        return name
    layer, head = Node.parse(name).layer_and_head
    return f"a{layer}.{head if port == 'q' else head // group}<{port}>"


def one_hot(index: int, width: int) -> Float[Tensor, "width"]:
    """A vector of zeros with a one."""
    return torch.eye(width)[index]


def rectangular(matrix: Tensor, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """The matrix cut, or filled up with zeros, to that shape."""
    padded = torch.zeros(rows, columns)
    height, width = min(rows, matrix.shape[0]), min(columns, matrix.shape[1])
    padded[:height, :width] = matrix[:height, :width]
    return padded
