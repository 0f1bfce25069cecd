"""`Writer` and `Reader`: what the name of a node, such as `a9.6<q>`, means to the engine.

`writer`, `readers` and `middle` read names. This module runs nothing and knows no graph.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from workbench.errors import SiteError
from workbench.sites import Node, Position, Shape, Site, split_position


@dataclass(frozen=True)
class Writer:
    """What adds to the stream: `input`, a head `a9.6`, an MLP `m3`, a neuron `m3:113`."""

    name: str
    shape: Shape

    @cached_property
    def site(self) -> Site:
        """The activation that holds what it writes."""
        node = Node.parse(self.name)
        # The first stream is the sum of all embeddings, whatever a model has of them.
        if node.kind == "input":
            return Site("resid_pre", 0)
        # What a head writes is z . W_O, and linear in z: z is smaller, and has an axis of heads.
        if node.is_head:
            return Site("z", node.layer, node.head)
        if node.kind == "neuron":
            return Site("mlp_post", node.layer, neuron=node.neuron)
        return Site("mlp_out", node.layer)

    @property
    def is_mlp(self) -> bool:
        """Whether it is a whole MLP."""
        return self.site.kind == "mlp_out"

    def reaches(self, reader: "Reader") -> bool:
        """Whether it writes before the reader reads."""
        if self.site.kind == "resid_pre" or reader.port == "logits":
            return True
        assert self.site.layer is not None
        later = reader.layer > self.site.layer
        same_layer = reader.layer == self.site.layer
        # Within a block only heads are followed by anything: the MLP, unless both run side by side.
        return later or (same_layer and self.site.kind == "z" and reader.is_mlp and not self.shape.parallel)


@dataclass(frozen=True)
class Reader:
    """What reads the stream: q, k or v of a head (k and v of a kv head), an MLP, one neuron, or the logits.

    Attributes:
        port: "q", "k", "v", "mlp", "neuron" or "logits".
        layer: n_layers for the logits, which come after every block.
        unit: head, kv head or neuron.
        pos: the only position that it reads anew; None: all of them.
    """

    port: str
    layer: int
    unit: int | None = None
    pos: Position | None = None

    @property
    def is_mlp(self) -> bool:
        """Whether it is an MLP or a neuron of one."""
        return self.port in ("mlp", "neuron")

    @cached_property
    def site(self) -> Site:
        """The activation that is computed from what it reads."""
        # The last stream itself: norm and unembedding read it, and the metric reads them.
        if self.port == "logits":
            return Site("resid_post", self.layer - 1, pos=self.pos)
        if self.port == "mlp":
            return Site("mlp_out", self.layer, pos=self.pos)
        if self.port == "neuron":
            return Site("mlp_post", self.layer, neuron=self.unit, pos=self.pos)
        return Site(self.port, self.layer, self.unit, pos=self.pos)

    @property
    def whole(self) -> "Reader":
        """The same reader at every position."""
        return replace(self, pos=None)


def writer(name: str, shape: Shape) -> Writer:
    """The writer of that name. Raises `SiteError` when it is not a writer, or the model lacks it."""
    node = Node.parse(name)
    if node.port or node.kind == "logits":
        raise SiteError(f"{name!r} is not a writer. Writers: input, a9.6, m3, m3:113.")
    node_writer = Writer(name, shape)
    _check(node_writer.site, name, shape)
    return node_writer


def readers(name: str, shape: Shape) -> tuple[Reader, ...]:
    """The readers that a name means, as in `a9.6<q>`, `m3`, `logits`, `a9.6<k>@END`; a bare head means three.

    Raises:
        SiteError: no such node, a writer that reads nothing, or one that the model lacks.
    """
    body, pos = split_position(name)
    node = Node.parse(body)
    if node.kind == "input":
        raise SiteError(
            f"{name!r} is not a reader. Readers: a9.6<q>, a9.6<k>, a9.6<v>, m3, m3:113, logits; "
            "a9.6 means its three."
        )
    if node.layer is None:
        named = [Reader("logits", shape.n_layers, None, pos)]
    elif node.head is None:
        named = [Reader(node.kind, node.layer, node.neuron, pos)]
    elif node.port:
        named = [Reader(node.port, node.layer, node.head, pos)]
    else:
        _check(Site("q", node.layer, node.head), name, shape)
        kv_head = node.head // shape.group  # query heads of a group share their keys and values
        heads = {"q": node.head, "k": kv_head, "v": kv_head}
        named = [Reader(port, node.layer, head, pos) for port, head in heads.items()]
    for reader in named:
        _check(reader.site, name, shape)
    return tuple(named)


def middle(name: str, shape: Shape) -> tuple[tuple[Reader, ...], tuple[Writer, ...]]:
    """A node in the middle of a path: what it reads, and the writers that send on what comes of it.

    With grouped queries `a5.2<k>` is kv head 2, and sends on through every query head that uses it.
    """
    read = readers(name, shape)
    # Without its position: a node reads there, and what it sends on may be wherever attention carries it.
    node = Node.parse(split_position(name)[0])
    if node.kind == "logits":
        raise SiteError("logits end a path: nothing comes after them.")
    if node.head is None:
        return read, (writer(str(node), shape),)
    heads = [node.head]
    if node.port in ("k", "v"):
        heads = list(range(node.head * shape.group, (node.head + 1) * shape.group))
    return read, tuple(writer(f"a{node.layer}.{head}", shape) for head in heads)


def _check(site: Site, name: str, shape: Shape) -> None:
    try:
        site.check(shape)
    except SiteError as error:
        raise SiteError(f"{name!r}: {error}") from error
