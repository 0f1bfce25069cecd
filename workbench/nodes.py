"""Nodes and edges of the graph, and their names: who writes to the residual stream, and who reads it.

Read `Node` and `Edge`. Each has one string form: `a9.6<q>`, `m3:113`; `a9.9->a10.7<q>@END`. They know nothing
of models: `circuit/graph.py` says which a decoder has, `engine/nodes.py` where they are in it.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from workbench.errors import SiteError

Position = int | str
# Without leading zeros every site has one spelling, so that strings can be compared.
NUMBER = r"(?:0|[1-9]\d{0,8})"
POSITION = rf"(?:{NUMBER}|[A-Za-z_]\w*)"


def as_position(text: str) -> Position:
    """The index or the name that a text stands for."""
    return int(text) if text.isdigit() else text


def is_position(pos: object) -> bool:
    """Whether it is a position: an index or a name. `True` is not one, though it is an `int` in Python."""
    return type(pos) in (int, str)


_NODE = re.compile(
    rf"(?P<whole>input|logits)|a(?P<attn>{NUMBER})\.(?P<head>{NUMBER})(?:<(?P<port>[qkv])>)?"
    rf"|m(?P<mlp>{NUMBER})(?::(?P<neuron>{NUMBER}))?",
    re.ASCII,
)
_EDGE = re.compile(rf"(?P<writer>[^@]*?)->(?P<reader>[^@]*)(?:@(?P<pos>{POSITION}))?", re.ASCII)


@dataclass(frozen=True)
class Node:
    """A writer or reader of the stream: `input`, `a9.6`, `a9.6<q>`, `m3`, `m3:113` or `logits`.

    Attributes:
        kind: which of them; a query, key or value of a head is a "head" with a port.
        layer: None for `input` and `logits`.
        head: with the port k or v of a model with grouped queries, the kv head.
        neuron: of the layer's MLP.
        port: which input of a head; None for the head itself.

    >>> Node.parse("a9.6<q>").port
    'q'
    """

    kind: Literal["input", "head", "mlp", "neuron", "logits"]
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    port: Literal["q", "k", "v"] | None = None

    @classmethod
    def parse(cls, text: str) -> "Node":
        """The node of that name. Raises `SiteError` with the grammar for any other text."""
        match = _NODE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SiteError(f"{text!r} is not a node. Nodes: input, a9.6, a9.6<q>, m3, m3:113, logits.")
        whole, attn, head, port, mlp, neuron = cast("tuple[Any, ...]", match.groups())
        if whole is not None:
            return cls(whole)
        if attn is not None:
            return cls("head", int(attn), head=int(head), port=port)
        if neuron is not None:
            return cls("neuron", int(mlp), neuron=int(neuron))
        return cls("mlp", int(mlp))

    @property
    def is_head(self) -> bool:
        """Whether it is a head, or the query, key or value of one."""
        return self.kind == "head"

    @property
    def is_mlp(self) -> bool:
        """Whether it is an MLP or a neuron of one."""
        return self.kind in ("mlp", "neuron")

    @property
    def layer_and_head(self) -> tuple[int, int]:
        """(layer, head) of a head, as attention patterns are looked up.

        Raises `SiteError` for any other node.
        """
        if self.layer is None or self.head is None:
            raise SiteError(f"{str(self)!r} is not a head. Heads: a9.6.")
        return self.layer, self.head

    @property
    def component(self) -> "Node":
        """The head of a query, key or value; every other node as it is."""
        return self if self.port is None else Node("head", self.layer, head=self.head)

    def __str__(self) -> str:
        if self.kind == "head":
            return f"a{self.layer}.{self.head}" + (f"<{self.port}>" if self.port else "")
        if self.kind == "neuron":
            return f"m{self.layer}:{self.neuron}"
        return f"m{self.layer}" if self.kind == "mlp" else self.kind

    def __repr__(self) -> str:
        return f"Node({str(self)!r})"


def split_position(text: str) -> tuple[str, Position | None]:
    """A name and the position after its `@`, None without one: `a9.6<q>@END` is (`a9.6<q>`, `END`)."""
    name, at, pos = text.strip().partition("@")
    if at and not re.fullmatch(POSITION, pos, re.ASCII):
        raise SiteError(f"{text!r}: after @ comes a position, an index or a name: a9.6<q>@END.")
    return name, as_position(pos) if at else None


@dataclass(frozen=True)
class Edge:
    """One residual connection from a writer to a reader, at one position or (None) at every one.

    >>> Edge.parse("a9.9->a10.7<q>@END")
    Edge('a9.9->a10.7<q>@END')
    """

    writer: str
    reader: str
    pos: Position | None = None

    def __post_init__(self) -> None:
        writer, reader = Node.parse(self.writer), Node.parse(self.reader)
        if self.pos is not None and not is_position(self.pos):
            raise SiteError(
                f"{self.pos!r} is not a position of an edge: give an index or a name such as 'END'."
            )
        if writer.port or writer.kind == "logits":
            raise SiteError(f"{self.writer!r} is not a writer. Writers: input, a9.6, m3, m3:113.")
        if reader.kind == "input":
            raise SiteError(
                f"{self.reader!r} is not a reader. Readers: a9.6<q>, a9.6<k>, a9.6<v>, m3, m3:113, logits."
            )
        if reader.is_head and not reader.port:
            raise SiteError(
                f"{self.reader!r} is three readers: "
                f"write {self.reader}<q>, {self.reader}<k> or {self.reader}<v>."
            )

    @classmethod
    def parse(cls, text: str) -> "Edge":
        """The edge of a string form `WRITER->READER[@POSITION]`.

        Raises:
            SiteError: the text is not an edge, or its ends are not a writer and a reader.
        """
        match = _EDGE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise SiteError(
                f"{text!r} is not an edge. Write WRITER->READER, then @POSITION if one is meant: "
                "a9.9->a10.7<q>@END."
            )
        pos = match["pos"]
        return cls(match["writer"], match["reader"], None if pos is None else as_position(pos))

    @property
    def port(self) -> str:
        """The input of a head that it enters: "q", "k" or "v"; "" for MLPs and logits."""
        return Node.parse(self.reader).port or ""

    def __str__(self) -> str:
        return f"{self.writer}->{self.reader}" + ("" if self.pos is None else f"@{self.pos}")

    def __repr__(self) -> str:
        return f"Edge({str(self)!r})"
