"""The writer x reader graph of a decoder: who adds to the residual stream, who reads it, in which order.

Writers: `input`, every head `a{l}.{h}`, every MLP `m{l}`. Readers: q of every head, k and v of every kv head,
every MLP, `logits`. An edge (u, v) exists when u has been added to the stream before v reads it; a block
whose attention and MLP run in parallel gives its MLP no edge from its own heads. A circuit is a boolean
matrix over these edges.

A finer graph splits MLPs into neurons (`m{l}:{n}` is a writer and a reader), or edges by position: one class
of tokens for each index or name, and `rest` for the tokens of none. Its matrices are then [pos, writer,
reader].
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from workbench.arguments import shown
from workbench.errors import SiteError
from workbench.models.model import Model
from workbench.sites import Edge, Node, Position, Shape
from workbench.text import wrapped

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
REST = "rest"
"""The class of tokens at none of a graph's positions."""


def _several(given: Any) -> tuple[Any, ...]:
    """One or several of something, whole numbers of numpy as plain ones."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    # numpy's integers would not be found among Python's in JSON and in error messages.
    return tuple(int(number) if isinstance(number, np.integer) else number for number in given)


def _check_position(position: Any) -> None:
    """Raise `SiteError` for what is neither an index nor a name."""
    if not (_is_whole(position) or (isinstance(position, str) and _NAME.fullmatch(position))):
        raise SiteError(
            f"{shown(position)} is not a position of a graph: give indices from 0 up, or names such as 'END'."
        )


def _is_whole(number: Any) -> bool:
    return type(number) is int and number >= 0


@dataclass(frozen=True)
class Graph:
    """The edge graph of a decoder. Matrices over it are [writer, reader], in the order of the two tuples.

    Attributes:
        shape: of the decoder.
        positions: the classes of tokens that edges are told apart by, `rest` last; None: an edge means every
            position, and matrices have no position axis. A token at several of them belongs to the first.
        neurons: the layers whose MLP is split into neurons.
        answers_attend: whether answers of several tokens follow the prompt and are left as they are by every
            circuit. Their tokens attend to the prompt, so that each key and value of the prompt leads to the
            output, and no edge into one is a dead end. It decides what `prune` leaves, not which edges there
            are: graphs that differ in it are equal.
    """

    shape: Shape
    positions: tuple[Position, ...] | None = None
    neurons: tuple[int, ...] = ()
    answers_attend: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.shape, Shape):
            raise SiteError(f"A graph is of a Shape, not {shown(self.shape)}: use Graph.of(model).")
        for name, listed in (("positions", self.positions), ("neurons", self.neurons)):
            if not isinstance(listed, tuple) and not (name == "positions" and listed is None):
                raise SiteError(f"{name} of a graph are a tuple, not {shown(listed)}: use Graph.of(...).")
        if not isinstance(self.answers_attend, bool):
            raise SiteError(f"answers_attend of a graph is True or False, not {shown(self.answers_attend)}.")
        positions = self.positions or ()
        for position in positions:
            _check_position(position)
        if positions == (REST,) or (positions == () and self.positions is not None):
            raise SiteError(
                f"A graph with positions needs one beside {REST!r}, which is every other token; "
                "positions=None tells none apart."
            )
        if positions and (positions[-1] != REST or len(set(positions)) < len(positions)):
            raise SiteError(
                f"The positions {self.positions} of a graph must differ and end with {REST!r}: use "
                "Graph.of(...)."
            )
        wrong = [layer for layer in self.neurons if not (_is_whole(layer) and layer < self.shape.n_layers)]
        wrong += [layer for layer in self.neurons if layer in self.shape.experts]
        if self.neurons and (
            self.shape.attn_only or wrong or tuple(sorted(set(self.neurons))) != self.neurons
        ):
            layers = "no layer" if self.shape.attn_only else f"layers 0 to {self.shape.n_layers - 1}"
            if self.shape.experts:
                layers += f", without neurons in layers {list(self.shape.experts)} (mixtures of experts)"
            raise SiteError(f"neurons={self.neurons}: this model has MLPs in {layers}.")

    @classmethod
    def of(
        cls,
        model_or_shape: Model | Shape,
        *,
        positions: Position | Iterable[Position] | None = None,
        neurons: bool | int | Iterable[int] = False,
        answers_attend: bool = False,
    ) -> "Graph":
        """The graph of a model or of a `Shape`.

        Args:
            positions: indices or names whose edges are told apart; all other tokens make the class `rest`.
            neurons: the layers whose MLP is split into neurons; True means all of them.
            answers_attend: as in the attributes. `score_edges` sets it where it holds.

        Raises:
            SiteError: positions or neurons that no such model can have.

        >>> shape = Shape(2, 4, 4, 32, 8, 128, 100, 64)
        >>> Graph.of(shape, positions=["S2", "END"]).exists.shape
        (3, 11, 27)
        """
        shape = Shape.of(model_or_shape)
        if isinstance(neurons, bool):
            layers = tuple(range(shape.n_layers)) if neurons else ()
        else:
            layers = _several(neurons)
            # Anything but whole numbers is left as it is, for the graph to refuse.
            if all(map(_is_whole, layers)):
                layers = tuple(sorted(set(layers)))
        if positions is None:
            return cls(shape, None, layers, answers_attend)
        # Each once, in the order given.
        named: list[Any] = []
        for position in _several(positions):
            _check_position(position)
            if position != REST and position not in named:
                named.append(position)
        return cls(shape, (*named, REST), layers, answers_attend)

    def joined(self, *others: "Graph") -> "Graph":
        """This graph and equal ones as one: an edge is a dead end of it only if it is one in each of them.

        Raises:
            SiteError: a graph with other edges.
        """
        graphs = (self, *others)
        for other in others:
            if other != self:
                raise SiteError(f"Graphs of different edges cannot be joined: {self}, and {other}.")
        return replace(self, answers_attend=any(graph.answers_attend for graph in graphs))

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Graph":
        """The graph that `to_dict` described. Raises `SiteError`, `TypeError` or `KeyError` for all else."""
        sizes = dict(facts)
        positions, neurons = sizes.pop("positions", None), sizes.pop("neurons", ())
        answers_attend = sizes.pop("answers_attend", False)
        # A graph is hashed, so it has tuples where JSON has lists.
        if positions is not None:
            positions = tuple(positions)
        return cls(Shape(**sizes), positions, tuple(neurons), answers_attend)

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the graph, for JSON."""
        facts = asdict(self.shape)
        # What a mixture of experts lacks decides no edge between whole MLPs.
        del facts["experts"]
        if not self.shape.joint_heads:
            del facts["joint_heads"]  # files of all other models stay as they were
        if self.positions is not None:
            facts["positions"] = list(self.positions)
        if self.neurons:
            facts["neurons"] = list(self.neurons)
        if self.answers_attend:
            facts["answers_attend"] = True
        return facts

    @cached_property
    def whole(self) -> "Graph":
        """The same graph without positions."""
        if self.positions is None:
            return self
        return replace(self, positions=None)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of the rows, in the order in which they are added to the residual stream."""
        shape, names = self.shape, ["input"]
        for layer in range(shape.n_layers):
            names += [f"a{layer}.{head}" for head in range(shape.n_heads)] + self.mlp_nodes(layer)
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the columns, in the order in which they read the residual stream."""
        shape, names = self.shape, []
        for layer in range(shape.n_layers):
            for port, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
                names += [f"a{layer}.{head}<{port}>" for head in range(heads)]
            names += self.mlp_nodes(layer)
        return (*names, "logits")

    def mlp_nodes(self, layer: int) -> list[str]:
        """The nodes of a layer's MLP: itself, its neurons, or none."""
        if self.shape.attn_only:
            return []
        if layer in self.neurons:
            return [f"m{layer}:{n}" for n in range(self.shape.d_mlp)]
        return [f"m{layer}"]

    @cached_property
    def exists(self) -> np.ndarray:
        """bool [writer, reader] or [pos, writer, reader]: whether the edge exists."""
        # The moments of a block in order: attention reads, heads are added, the MLP reads, the MLP is added.
        # An edge exists where its writer is added before its reader reads.
        added = np.array([self._moment(name, reads=False) for name in self.writers])
        read = np.array([self._moment(name, reads=True) for name in self.readers])
        before = added[:, None] < read[None, :]
        if self.positions is None:
            return before
        return np.repeat(before[None], len(self.positions), axis=0)

    def _moment(self, name: str, *, reads: bool) -> int:
        """When a writer is added, or a reader reads: four moments a layer."""
        node = Node.parse(name)
        if node.layer is None:
            return 4 * self.shape.n_layers if reads else -1
        if node.is_head:
            return 4 * node.layer + int(not reads)
        if not reads:
            return 4 * node.layer + 3
        # A parallel MLP reads when the attention of its block does, before its heads are added.
        return 4 * node.layer + (0 if self.shape.parallel else 2)

    @property
    def n_nodes(self) -> int:
        """Input, heads, MLPs (or neurons) and logits."""
        return len(self.writers) + 1

    @cached_property
    def n_edges(self) -> int:
        """How many edges exist; an edge at two classes of positions counts twice."""
        return int(self.exists.sum())

    def index(self, edge: Edge | str) -> tuple[Any, ...]:
        """The index of an edge into a matrix over the graph.

        In a graph with positions, an edge without one means every position.

        Raises:
            SiteError: the graph has no such edge.
        """
        if isinstance(edge, str):
            edge = Edge.parse(edge)
        if not isinstance(edge, Edge):
            raise SiteError(
                f"{shown(edge)} is not an edge. Write 'a9.9->a10.7<q>', or Edge('a9.9', 'a10.7<q>')."
            )
        if edge.pos is not None and self.positions is None:
            raise SiteError(
                f"Edge {str(edge)!r}: this graph has no positions; its edges stand for every position."
            )
        if edge.writer not in self.writer_index or edge.reader not in self.reader_index:
            missing = edge.writer if edge.writer not in self.writer_index else edge.reader
            raise SiteError(f"Edge {str(edge)!r}: this graph has no {missing!r}. It has {self}.")
        cell = self.writer_index[edge.writer], self.reader_index[edge.reader]
        if not self.whole.exists[cell]:
            raise SiteError(f"Edge {str(edge)!r}: {edge.writer} does not come before {edge.reader}.")
        if self.positions is None:
            return cell
        if edge.pos is None:
            return (slice(None), *cell)
        if edge.pos not in self.positions:
            raise SiteError(
                f"Edge {str(edge)!r}: this graph's positions are {', '.join(map(str, self.positions))}."
            )
        return (self.positions.index(edge.pos), *cell)

    def edges(self, chosen: np.ndarray | None = None) -> Iterator[Edge]:
        """The edges of a boolean matrix (None: all that exist) in graph order."""
        if chosen is None:
            chosen = self.exists
        for *pos, writer, reader in np.argwhere(chosen).tolist():
            position = self.positions[pos[0]] if self.positions else None
            yield Edge(self.writers[writer], self.readers[reader], position)

    def prune(self, edges: np.ndarray) -> np.ndarray:
        """The edges on a path from `input` to an output: dead ends are removed until none is left.

        An output is `logits` and, where answers attend to the prompt, any key or value (`is_output`).
        A head is live when something reads it and something enters its q or its group's k or v, or, where
        queries and keys are normed over all heads, any head's q or k. With positions, it is live at the
        position of its query; keys and values enter at any position that the query may see. `edges` is bool
        [..., writer, reader] or [..., pos, writer, reader].
        """
        edges = edges & self.exists
        split = self._by_position(edges)
        # Removing an edge can make another a dead end, so this goes on until nothing changes.
        while True:
            into = split.any(-2)
            # Queries and MLPs are entered at their own position, keys and values at any the query sees.
            own, shared = into @ self._decides, into @ self._decides_other_positions
            entered = own | self._sees @ shared | self._is_input
            # A component matters if something enters it and something reads it.
            alive = entered & split.any(-1)
            needed = (
                alive @ self._decides.T
                | self._sees.T @ (alive @ self._decides_other_positions.T)
                | self.is_output
            )
            kept = split & alive[..., :, None] & needed[..., None, :]
            if (kept == split).all():
                break
            split = kept
        if self.positions is None:
            return split[..., 0, :, :]
        return split

    def _by_position(self, edges: np.ndarray) -> np.ndarray:
        """[..., pos, writer, reader], with one position where the graph has none."""
        if self.positions is None:
            return edges[..., None, :, :]
        return edges

    def between(self, writers: np.ndarray) -> np.ndarray:
        """The edges between some components, `input` and `logits` included.

        Edges into keys and values of other heads are left out, also where answers read these.

        bool [..., (pos,) writer, reader], from bool [..., writer].
        """
        inside = writers | self._is_input
        read = inside @ (self._decides | self._decides_other_positions).T | self._is_logits
        edges = inside[..., :, None] & read[..., None, :]
        if self.positions is not None:
            edges = edges[..., None, :, :]  # the same nodes at each position: [..., pos, writer, reader]
        return edges & self.exists

    @cached_property
    def _sees(self) -> np.ndarray:
        """bool [query pos, key pos]: whether a query of the first class may see a token of the second."""
        positions = self.positions or (REST,)
        sees = np.ones((len(positions), len(positions)), dtype=bool)
        if not self.shape.causal:
            return sees
        # Only of two indices is the order known; a name can lie anywhere.
        for i, query in enumerate(positions):
            for j, key in enumerate(positions):
                if isinstance(query, int) and isinstance(key, int):
                    sees[i, j] = key <= query
        return sees

    @cached_property
    def feeds(self) -> np.ndarray:
        """bool [reader, writer]: the reader is an input of the component that writes."""
        return self._feeds | self._feeds_other_positions

    @cached_property
    def _feeds(self) -> np.ndarray:
        """What feeds a component from its own position: queries and MLPs."""
        feeds = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for w, writer in enumerate(self.writers[1:], start=1):
            reader = f"{writer}<q>" if Node.parse(writer).is_head else writer
            feeds[self.reader_index[reader], w] = True
        return feeds

    @cached_property
    def _feeds_other_positions(self) -> np.ndarray:
        """What feeds a head from every position it sees: keys and values."""
        feeds = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for w, writer in enumerate(self.writers):
            node = Node.parse(writer)
            if node.head is not None:
                kv_head = node.head // self.shape.group
                for port in "kv":
                    feeds[self.reader_index[f"a{node.layer}.{kv_head}<{port}>"], w] = True
        return feeds

    @cached_property
    def _decides(self) -> np.ndarray:
        """bool [reader, writer]: whether a writer depends on the reader at its own position."""
        return self._feeds | self._normed_together(self._feeds, "<q>")

    @cached_property
    def _decides_other_positions(self) -> np.ndarray:
        """bool [reader, writer]: whether a head depends on the reader at every position that it sees."""
        return self._feeds_other_positions | self._normed_together(self._feeds_other_positions, "<k>")

    def _normed_together(self, feeds: np.ndarray, port: str) -> np.ndarray:
        """bool [reader, writer]: each q or k (`port`) with all heads that share its norm."""
        if not self.shape.joint_heads:
            return np.zeros_like(feeds)
        nodes = [Node.parse(name) for name in self.writers]
        layers = np.array([node.layer if node.is_head else -1 for node in nodes])
        together = (layers[:, None] == layers) & (layers >= 0)
        of_port = np.array([name.endswith(port) for name in self.readers])
        return (feeds & of_port[:, None]) @ together

    @cached_property
    def _is_input(self) -> np.ndarray:
        return np.arange(len(self.writers)) == 0

    @cached_property
    def _is_logits(self) -> np.ndarray:
        return np.arange(len(self.readers)) == len(self.readers) - 1

    @cached_property
    def is_output(self) -> np.ndarray:
        """bool [reader]: where a path may end, at `logits`, and where answers attend at any key or value."""
        if not self.answers_attend:
            return self._is_logits
        return self._is_logits | np.array([name.endswith(("<k>", "<v>")) for name in self.readers])

    @cached_property
    def writer_index(self) -> dict[str, int]:
        """Name of a writer -> its row."""
        return dict(zip(self.writers, count(), strict=False))

    @cached_property
    def reader_index(self) -> dict[str, int]:
        """Name of a reader -> its column."""
        return dict(zip(self.readers, count(), strict=False))

    def __repr__(self) -> str:
        return wrapped(f"<Graph: {self}>")

    def __str__(self) -> str:
        shape = self.shape
        heads = f"{shape.n_heads} heads"
        if shape.n_kv_heads != shape.n_heads:
            heads += f" ({shape.n_kv_heads} kv)"
        text = f"{shape.n_layers} layers of {heads}, {self.n_nodes} nodes, {self.n_edges} edges"
        if self.positions is not None:
            text += f" at {', '.join(map(str, self.positions))}"
        return text
