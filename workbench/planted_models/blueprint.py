"""A transformer drawn before it is built: named subspaces, and heads and neurons that read and write them.

Because every read and write is declared, the edges that carry something are known: writer u feeds reader v
when u writes a subspace that v reads. `Blueprint.build` then hides the drawing: heads in a random order, the
stream in a random basis, decoys that write where nothing true reads, noise on all weights. Nothing is
trained. Read `Blueprint`; its pieces are in `drawing.py`, `weights.py` turns it into weights, and what the
circuits are for is in `recipes.py`.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models.load import native_model
from workbench.models.model import Model
from workbench.planted_models.drawing import (
    Drawing,
    Embedding,
    Head,
    Move,
    Neuron,
    ScoreTerm,
    one_hot,
    rectangular,
)
from workbench.planted_models.weights import DrawnWeights
from workbench.sites import Node


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


class Blueprint(Drawing):
    """A drawing in progress.

    Subspaces are allocated by `space`; the stream always has one-hot positions in `position`.
    """

    def __init__(self, *, length: int, gain: float) -> None:
        super().__init__(length=length, gain=gain)
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
        return ScoreTerm(None, k, gain * self.gain, torch.ones(1, 1), self._any(k, only))

    def gate(
        self, q: str, k: str, gain: float = 1.0, *, q_only: int | None = None, k_only: int | None = None
    ) -> ScoreTerm:
        """Attend to where `k` holds anything, as much as `q` holds anything.

        Args:
            q_only, k_only: one coordinate of the subspace that counts alone.
        """
        return replace(self.on(k, gain, only=k_only), q=q, left=self._any(q, q_only))

    def _any(self, space: str, only: int | None) -> Float[Tensor, "1 width"]:
        """What reads whether a subspace holds anything, or (`only`) that one-hot."""
        if only is None:
            # The sum of the coordinates is 1 for every one-hot, so that all of them count alike.
            return torch.ones(1, self.widths[space])
        return one_hot(only, self.widths[space])[None]

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
        # A text as seed, since `hash` of one differs from process to process.
        rng = random.Random(f"planted {name} {seed}")
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        base = 1 + max(drawn.layer for drawn in (*self.heads, *self.neurons))
        layers = sorted(rng.sample(range(base + setting.extra), base))
        # The circuit's layers keep their order, since later heads read what earlier ones write; the
        # others lie anywhere among them.
        heads = [replace(head, layer=layers[head.layer]) for head in self.heads]
        neurons = [replace(neuron, layer=layers[neuron.layer]) for neuron in self.neurons]
        # `steady` and `slack` make a norm's divisor nearly constant; only decoys write the other two.
        self.space(loud=8, aside=8, steady=1, slack=1)
        heads += self._decoys(heads, setting, base + setting.extra, rng)
        neurons += self._decoy_neurons(setting, base + setting.extra, rng)
        drawn = DrawnWeights(self, setting, base + setting.extra, heads, neurons, rng, generator)
        model = native_model(f"planted-{name}", weights=drawn.weights(), **drawn.config())
        true = {head.name: drawn.places[head.name] for head in self.heads}
        wired = self._wired(heads, neurons, drawn.places, setting.group)
        return BuiltModel(model, true, wired, setting.group)

    def _decoys(self, heads: list[Head], setting: Embedding, n_layers: int, rng: random.Random) -> list[Head]:
        """In turn: loud heads that nothing reads, chains beside the readout, doubles of true heads."""
        # With norms a louder decoy would drown what the true heads write.
        loud = 8.0
        if setting.norm:
            loud = 2.0
        embedded = self._embedded_spaces()
        decoys: list[Head] = []
        for i in range(setting.decoys):
            crowd = Counter(head.layer for head in (*heads, *decoys))
            # Where the fewest heads are, so that every layer has about as many.
            layer = min(range(n_layers), key=lambda layer: (crowd[layer], rng.random()))
            true_heads, space = [head for head in heads if head.layer == layer], rng.choice(embedded)
            # A weak score: a decoy attends to several positions, and mostly one to three steps back.
            scores = (self.same("position", "position", 0.4, shift=-rng.randint(1, 3)),)
            moves = (self.move(space, "loud", loud),)
            is_fed = any(_writes(head, "aside") for head in decoys if head.layer < layer)
            # The first of a chain writes aside; those in later layers read it.
            if i % 3 == 1 and is_fed:
                scores = (self.on("aside", 0.3),)
                moves = (self.move("aside", "loud", 2.0),)
            elif i % 3 == 1:
                moves = (self.move(space, "aside", loud / 2),)
            elif i % 3 == 2 and true_heads:
                like = rng.choice(true_heads)
                scores, moves = like.scores, tuple(self.move(move.v, "loud", loud / 2) for move in like.moves)
            decoys.append(Head(f"decoy {i}", layer, scores, moves, decoy=True))
        return decoys

    def _embedded_spaces(self) -> list[str]:
        """The subspaces that words have a part in, sorted so that draws do not depend on their order."""
        return sorted(set(chain.from_iterable(self.words.values())))

    def _decoy_neurons(self, setting: Embedding, n_layers: int, rng: random.Random) -> list[Neuron]:
        embedded = self._embedded_spaces()
        decoys = []
        for layer in range(n_layers):
            for _ in range(setting.neurons):
                space = rng.choice(embedded)
                signs = torch.tensor([float(rng.choice((-1, 1))) for _ in range(self.widths[space])])
                writes = {"loud": one_hot(rng.randrange(8), 8) * rng.choice((-2, 2))}
                decoys.append(Neuron(layer, {space: signs}, 0.2, writes, decoy=True))
        return decoys

    def _wired(
        self, heads: Sequence[Head], neurons: Sequence[Neuron], places: Mapping[str, str], group: int
    ) -> frozenset[str]:
        """Every edge whose writer writes a subspace that its reader reads, decoys aside."""
        # An edge needs its writer before its reader: (name, moment, subspaces), where attention of a layer is
        # at the moment 2 * layer and its MLP at 2 * layer + 1.
        writers = [("input", -1, {*self._embedded_spaces(), "position"})]
        readers: list[tuple[str, float, set[str]]] = [("logits", math.inf, {self.readout[0]})]
        for head in heads:
            if head.decoy:
                continue
            writers.append((places[head.name], 2 * head.layer, {move.out for move in head.moves}))
            for port, spaces in head.spaces_read().items():
                readers.append((reader_of(places[head.name], port, group), 2 * head.layer, spaces))
        for neuron in neurons:
            if neuron.decoy:
                continue
            writers.append((f"m{neuron.layer}", 2 * neuron.layer + 1, set(neuron.writes)))
            readers.append((f"m{neuron.layer}", 2 * neuron.layer + 1, set(neuron.reads)))
        edges: set[str] = set()
        for writer, written_at, written in writers:
            for reader, read_at, read in readers:
                if written_at < read_at and written & read:
                    edges.add(f"{writer}->{reader}")
        return frozenset(edges)


def reader_of(name: str, port: str, group: int) -> str:
    """The reader of a head's port: k and v belong to kv heads. A node without a port is its own reader."""
    if not port:
        return name
    layer, head = Node.parse(name).layer_and_head
    if port != "q":
        head //= group
    return f"a{layer}.{head}<{port}>"


def _writes(head: Head, space: str) -> bool:
    return any(move.out == space for move in head.moves)
