"""Writers and readers of the stream as places in a model: what a node's name means to the engine."""

import re
from dataclasses import dataclass, replace
from functools import cached_property

from workbench.errors import SiteError
from workbench.sites import Position, Shape, Site, parse_node


@dataclass(frozen=True)
class Writer:
    """What adds to the stream: `input`, a head `a9.6`, an MLP `m3`, a neuron `m3:113`."""

    name: str
    shape: Shape

    @cached_property
    def site(self) -> Site:
        """The activation that holds what it writes."""
        part = parse_node(self.name)
        if part["name"] == "input":
            return Site("resid_pre", 0)
        if part["head"] is not None:
            return Site("z", part["layer"], part["head"])
        if part["neuron"] is not None:
            return Site("mlp_post", part["mlp"], neuron=part["neuron"])
        return Site("mlp_out", part["mlp"])

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
        return later or (
            reader.layer == self.site.layer
            and self.site.kind == "z"
            and reader.is_mlp
            and not self.shape.parallel
        )


@dataclass(frozen=True)
class Reader:
    """What reads the stream: q, k or v of a head (k and v of a kv head), an MLP, one neuron, or the logits.

    Attributes:
        port: "q", "k", "v", "mlp", "neuron" or "logits".
        layer: n_layers for the logits.  unit: head, kv head or neuron.  pos: the only position that it reads anew.
    """

    port: str
    layer: int
    unit: int | None = None
    pos: Position | None = None

    @property
    def is_mlp(self) -> bool:
        return self.port in ("mlp", "neuron")

    @cached_property
    def site(self) -> Site:
        """The activation that is computed from what it reads."""
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


_POSITION = re.compile(r"(?:0|[1-9]\d{0,8})|[A-Za-z_]\w*", re.ASCII)


def writer(name: str, shape: Shape) -> Writer:
    """The writer of that name. Raises `SiteError` when it is none, or the model lacks it."""
    part = parse_node(name)
    if part["port"] or part["name"] == "logits":
        raise SiteError(f"{name!r} is not a writer. Writers: input, a9.6, m3, m3:113.")
    found = Writer(name, shape)
    _check(found.site, name, shape)
    return found


def readers(name: str, shape: Shape) -> tuple[Reader, ...]:
    """The readers that a name means, as in `a9.6<q>`, `m3`, `logits`, `a9.6<k>@END`; a bare head is its three.

    Raises:
        SiteError: no such node, a writer that reads nothing, or one that the model lacks.
    """
    body, at, where = name.strip().partition("@")
    if at and not _POSITION.fullmatch(where):
        raise SiteError(f"{name!r}: after @ comes a position, an index or a name: a9.6<q>@END.")
    part, pos = parse_node(body), (int(where) if where.isdigit() else where) if at else None
    if part["name"] == "input":
        raise SiteError(
            f"{name!r} is not a reader. Readers: a9.6<q>, a9.6<k>, a9.6<v>, m3, m3:113, logits; a9.6 means its three."
        )
    if part["name"] == "logits":
        found = [Reader("logits", shape.n_layers, None, pos)]
    elif part["head"] is None:
        found = [Reader("mlp" if part["neuron"] is None else "neuron", part["mlp"], part["neuron"], pos)]
    elif part["port"]:
        found = [Reader(part["port"], part["layer"], part["head"], pos)]
    else:
        _check(Site("q", part["layer"], part["head"]), name, shape)
        shared = part["head"] // shape.group
        found = [Reader(port, part["layer"], part["head"] if port == "q" else shared, pos) for port in "qkv"]
    for reader in found:
        _check(reader.site, name, shape)
    return tuple(found)


def middle(name: str, shape: Shape) -> tuple[tuple[Reader, ...], tuple[Writer, ...]]:
    """A node in the middle of a path: what it reads, and the writers that send on what comes of it.

    With grouped queries `a5.2<k>` is kv head 2, and sends on through every query head that uses it.
    """
    read = readers(name, shape)
    part = parse_node(name.partition("@")[0].strip())
    if part["name"] == "logits":
        raise SiteError("logits end a path: nothing comes after them.")
    if part["head"] is None:
        return read, (writer(part["name"], shape),)
    heads = [part["head"]]
    if part["port"] in ("k", "v"):
        heads = list(range(part["head"] * shape.group, (part["head"] + 1) * shape.group))
    return read, tuple(writer(f"a{part['layer']}.{head}", shape) for head in heads)


def _check(site: Site, name: str, shape: Shape) -> None:
    try:
        site.check(shape)
    except SiteError as error:
        raise SiteError(f"{name!r}: {error}") from error
