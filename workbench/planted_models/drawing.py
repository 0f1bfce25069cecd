"""What a planted model is drawn with: score terms and moves of heads, neurons, and how the drawing is hidden.

Read `Head`, then `Drawing`, which holds the heads and neurons of a model by named subspaces. Nothing here
knows how they become weights (`weights.py`) or what they are for (`recipes.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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

    def spaces_read(self) -> dict[str, set[str]]:
        """Port → the subspaces that it reads."""
        # A score without a query is the same from everywhere, so that the query reads nothing.
        return {
            "q": {score.q for score in self.scores if score.q},
            "k": {score.k for score in self.scores},
            "v": {move.v for move in self.moves},
        }


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


class Drawing:
    """A model on paper: subspaces, words, heads and neurons.

    Attributes:
        length: positions of a prompt, BOS included.
        gain: attention score of a match over no match.
        widths: subspace → width; the stream is their direct sum.
        words: word → its vectors, by subspace.
        heads, neurons: of the true circuit.
        constant: what is in the stream everywhere, by subspace.
        readout: the subspace that is read out, and the words of its coordinates.
    """

    def __init__(self, *, length: int, gain: float) -> None:
        self.length, self.gain = length, gain
        self.widths: dict[str, int] = {}
        self.words: dict[str, dict[str, Tensor]] = {}
        self.heads: list[Head] = []
        self.neurons: list[Neuron] = []
        self.constant: dict[str, Tensor] = {}
        self.readout: tuple[str, tuple[str, ...]] = ("", ())


def one_hot(index: int, width: int) -> Float[Tensor, "width"]:
    """A vector of zeros with a one."""
    return torch.eye(width)[index]


def rectangular(matrix: Tensor, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """The matrix cut, or filled up with zeros, to that shape."""
    padded = torch.zeros(rows, columns)
    height, width = min(rows, matrix.shape[0]), min(columns, matrix.shape[1])
    padded[:height, :width] = matrix[:height, :width]
    return padded
