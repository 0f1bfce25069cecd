"""The writer x reader graph of a decoder: who adds to the residual stream, who reads it, and who comes before whom.

Writers: `input`, every head `a{l}.{h}`, every MLP `m{l}`. Readers: q of every head, k and v of every kv head, every
MLP, `logits`. An edge (u, v) exists when u has been added to the stream before v reads it; a block whose attention and
MLP run in parallel gives its MLP no edge from its own heads. A circuit is a boolean matrix over these edges.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench.errors import SiteError
from workbench.sites import Edge, Shape


@dataclass(frozen=True)
class Graph:
    """The edge graph of a decoder. Matrices over it have shape `[writer, reader]` in the order of the two tuples."""

    shape: Shape

    @classmethod
    def of(cls, model_or_shape: Any) -> "Graph":
        """The graph of a model or of a `Shape`."""
        return cls(Shape.of(model_or_shape))

    @cached_property
    def writers(self) -> tuple[str, ...]:
        shape, names = self.shape, ["input"]
        for layer in range(shape.n_layers):
            names += [f"a{layer}.{head}" for head in range(shape.n_heads)]
            names += [] if shape.attn_only else [f"m{layer}"]
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        shape, names = self.shape, []
        for layer in range(shape.n_layers):
            for port, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
                names += [f"a{layer}.{head}<{port}>" for head in range(heads)]
            names += [] if shape.attn_only else [f"m{layer}"]
        return (*names, "logits")

    @cached_property
    def exists(self) -> np.ndarray:
        """bool [writer, reader]: whether the edge exists."""
        shape = self.shape
        before = np.zeros(len(self.readers), dtype=int)
        block = shape.n_heads + (0 if shape.attn_only else 1)
        for i, reader in enumerate(self.readers):
            if reader == "logits":
                before[i] = len(self.writers)
            else:
                layer = int(reader[1:].split(".")[0])
                own_heads = 0 if reader.startswith("a") or shape.parallel else shape.n_heads
                before[i] = 1 + layer * block + own_heads
        return np.arange(len(self.writers))[:, None] < before[None, :]

    @property
    def n_nodes(self) -> int:
        """Input, heads, MLPs and logits."""
        return len(self.writers) + 1

    @cached_property
    def n_edges(self) -> int:
        return int(self.exists.sum())

    def index(self, edge: Edge | str) -> tuple[int, int]:
        """(writer, reader) indices of an edge; a `SiteError` when the graph has no such edge."""
        edge = Edge.parse(edge) if isinstance(edge, str) else edge
        if edge.pos is not None:
            raise SiteError(f"Edge {str(edge)!r}: this graph has no positions; its edges stand for every position.")
        if edge.writer not in self._writer_index or edge.reader not in self._reader_index:
            missing = edge.writer if edge.writer not in self._writer_index else edge.reader
            raise SiteError(f"Edge {str(edge)!r}: this graph has no {missing!r}. It has {self}.")
        found = self._writer_index[edge.writer], self._reader_index[edge.reader]
        if not self.exists[found]:
            raise SiteError(f"Edge {str(edge)!r}: {edge.writer} does not come before {edge.reader}.")
        return found

    def prune(self, edges: np.ndarray) -> np.ndarray:
        """The edges that lie on a path from `input` to `logits`: dead ends are removed, again and again.

        A head is live when something reads it and something enters its q or its group's k or v.
        `edges` is bool [..., writer, reader].
        """
        edges = edges & self.exists
        while True:
            entered = edges.any(-2) @ self._feeds | self._is_input
            read = edges.any(-1)
            alive = entered & read
            kept = edges & alive[..., :, None] & (alive @ self._feeds.T | self._is_logits)[..., None, :]
            if (kept == edges).all():
                return kept
            edges = kept

    @cached_property
    def _feeds(self) -> np.ndarray:
        """bool [reader, writer]: the reader is an input of the component that writes."""
        shape, feeds = self.shape, np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for w, writer in enumerate(self.writers[1:], start=1):
            if writer.startswith("m"):
                feeds[self._reader_index[writer], w] = True
                continue
            layer, head = (int(part) for part in writer[1:].split("."))
            for port, name in (("q", head), ("k", head // shape.group), ("v", head // shape.group)):
                feeds[self._reader_index[f"a{layer}.{name}<{port}>"], w] = True
        return feeds

    @cached_property
    def _is_input(self) -> np.ndarray:
        return np.arange(len(self.writers)) == 0

    @cached_property
    def _is_logits(self) -> np.ndarray:
        return np.arange(len(self.readers)) == len(self.readers) - 1

    @cached_property
    def _writer_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.writers)}

    @cached_property
    def _reader_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.readers)}

    def __str__(self) -> str:
        shape = self.shape
        heads = f"{shape.n_heads} heads" + (f" ({shape.n_kv_heads} kv)" if shape.n_kv_heads != shape.n_heads else "")
        return f"{shape.n_layers} layers of {heads}, {self.n_nodes} nodes, {self.n_edges} edges"
