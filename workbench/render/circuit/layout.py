"""Where the boxes of a circuit lie: `component_layout` (x = head, y = layer), and what both views share.

Begin with `Box` and `Layout`. Information flows upwards, while the y of SVG grows downwards: the first layer
has the largest y. Layers without a live component are left out. How edges run between boxes is drawn in
`curves`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from workbench.render.circuit.lines import Line
from workbench.render.circuit.view import CircuitView
from workbench.render.writing import decimal
from workbench.sites import Node

_TOP = 16.0
"""The y of the box `logits`."""
_LEFT = 34.0
"""Room for the names of layers."""


@dataclass(frozen=True)
class Box:
    """A box.

    Attributes:
        key: its name, with `@pos` in the position view.
        label: what is written in it.
        style: a (head), k (kv head), m (MLP) or d (input and logits).
        x, y: its centre.
        w, h: its size.
        ports: (q, k or v, x) of each port at its lower edge.
        reach: of a kv head, the x up to which an outline encloses the query heads that share it; else 0.
    """

    key: str
    label: str
    style: str
    x: float
    y: float
    w: float
    h: float
    ports: tuple[tuple[str, float], ...] = ()
    reach: float = 0.0


@dataclass(frozen=True)
class Layout:
    """The boxes of a view, SVG of what lies behind them (bands, labels), and the size of it all.

    Attributes:
        rows, half: of the component view, where its layers lie, and how far a band reaches from a row.
        routes: the points that each line runs through, from its writer up to its reader; None where a line is
            a single curve.
    """

    boxes: list[Box]
    background: str
    width: float
    height: float
    rows: "Rows | None" = None
    half: float = 0.0
    routes: list[list[tuple[float, float]]] | None = None


@dataclass(frozen=True)
class Live:
    """The components with a line: names of heads and kv heads by layer, and the layers with an MLP."""

    heads: dict[int, set[str]]
    mlps: set[int]

    @classmethod
    def of(cls, lines: Iterable[Line]) -> "Live":
        """The components at either end of the lines."""
        heads: dict[int, set[str]] = {}
        mlps: set[int] = set()
        names = set()
        for line in lines:
            names |= {line.start.split("@")[0], line.end.split("@")[0]}
        for name in sorted(names):
            node = node_of(name)
            if node.layer is None:
                continue
            if node.is_mlp:
                mlps.add(node.layer)
            else:
                heads.setdefault(node.layer, set()).add(name)
        return cls(heads, mlps)


@dataclass(frozen=True)
class Rows:
    """Where each layer lies: heads at `attn[layer]`, its MLP at `mlp[layer]`, the input at `bottom`."""

    attn: dict[int, float]
    mlp: dict[int, float]
    bottom: float
    height: float


@dataclass(frozen=True)
class _Sizes:
    """Of boxes and gaps, in pixels; `pitch` is from one layer to the next."""

    width: float
    height: float
    gap: float
    pitch: float


_ROOMY = _Sizes(46.0, 26.0, 18.0, 78.0)
_COMPACT = _Sizes(41.0, 23.0, 9.0, 62.0)


def component_layout(view: CircuitView, lines: Sequence[Line]) -> Layout:
    """Boxes of the component view: a row for each layer, a column for each head, MLPs in one of their own."""
    live = Live.of(lines)
    group = query_heads_per_kv(view)
    columns: set[tuple[int, int, int]] = set()
    for names in live.heads.values():
        for name in names:
            columns.add(column_of(name, group))
    # with smaller boxes a circuit of many heads or layers still fits on a screen
    sizes = _COMPACT if len(columns) > 9 or len(live.heads) > 9 else _ROOMY
    rows = stacked_rows(live, pitch=sizes.pitch, mlp_step=sizes.pitch * 0.62, parallel=view.shape.parallel)
    kv_width = _kv_width(live)
    centres: dict[tuple[int, int, int], float] = {}
    x = _LEFT + sizes.gap
    for column in sorted(columns):
        # a kv head stands close to the query heads that share it
        width, gap = kv_width, 4.0
        is_query_head = column[1] == 1
        if is_query_head:
            width, gap = sizes.width, sizes.gap
        centres[column] = x + width / 2
        x += width + gap
    margin = sizes.width / 2
    if columns:  # MLPs stand apart from the heads, twice as far as heads from each other
        margin += sizes.gap
    mlp_x = x + margin
    right = x - sizes.gap
    if live.mlps:
        right = mlp_x + sizes.width / 2
    right += sizes.gap
    middle, whole = (right + _LEFT) / 2, right - _LEFT
    boxes = [
        Box("input", "input", "d", middle, rows.bottom, whole, 18.0),
        Box("logits", "logits", "d", middle, _TOP, whole, 18.0),
    ]
    ports = live_ports(lines)
    for layer, names in live.heads.items():
        for name in sorted(names):
            width = kv_width if name.startswith("kv") else sizes.width
            centre = centres[column_of(name, group)], rows.attn[layer]
            boxes.append(head_box(name, centre, (width, sizes.height), ports.get(name, ""), group))
    for layer in sorted(live.mlps):
        name = f"m{layer}"
        boxes.append(Box(name, name, "m", mlp_x, rows.mlp[layer], sizes.width, sizes.height - 4))
    background = bands(rows, _LEFT, right, sizes.height / 2 + 6)
    # edges may bow out to the right of the last column
    half = sizes.height / 2 + 6
    return Layout(_with_reach(boxes, group), background, right + 64, rows.height, rows, half)


def _kv_width(live: Live) -> float:
    """The width of kv heads: enough for the longest of their names."""
    width = 30.0
    for names in live.heads.values():
        for name in names:
            if name.startswith("kv"):
                width = max(width, 5.6 * len(name) + 4)
    return width


def _with_reach(boxes: Sequence[Box], group: int) -> list[Box]:
    """The same boxes; each kv head knows how far the query heads that share it reach."""
    reach: dict[tuple[float, int], float] = {}
    for box in boxes:
        if box.style in ("a", "k"):
            shared = box.y, column_of(box.key, group)[0]
            reach[shared] = max(reach.get(shared, 0.0), box.x + box.w / 2)
    reached = []
    for box in boxes:
        if box.style == "k":
            box = replace(box, reach=reach[box.y, column_of(box.key, group)[0]])
        reached.append(box)
    return reached


def query_heads_per_kv(view: CircuitView) -> int:
    """How many query heads share a kv head; 1 without grouped-query attention."""
    return view.shape.n_heads // view.shape.n_kv_heads


def node_of(key: str) -> Node:
    """The node of a box, as in `a3.7@4`; a kv head `kv3.1` that several heads share is its key `a3.1<k>`."""
    name = key.split("@")[0]
    if name.startswith("kv"):
        return Node.parse(f"a{name.removeprefix('kv')}<k>")
    return Node.parse(name)


def column_of(key: str, group: int) -> tuple[int, int, int]:
    """(kv group, 0 for its kv head or 1, head) of a box: sorted from left to right."""
    node = node_of(key)
    assert node.head is not None
    # of a key node `head` is the number of its kv head, which is the number of the group
    if node.port:
        return (node.head, 0, 0)
    return (node.head // group, 1, node.head)


def stacked_rows(live: Live, *, pitch: float, mlp_step: float, parallel: bool) -> Rows:
    """Layers from the bottom up; empty ones are left out.

    Args:
        pitch: from one layer to the next.
        mlp_step: from the heads of a layer to its MLP, where both have a line.
        parallel: attention and MLP read the same input, so they lie side by side.
    """
    attn, mlp, y = {}, {}, 0.0
    for layer in sorted(set(live.heads) | live.mlps):
        y -= pitch
        attn[layer] = y
        if layer in live.mlps and layer in live.heads and not parallel:
            y -= mlp_step
        mlp[layer] = y
    # y was counted from the input upwards; now so that `logits` lies at the top
    top = y - pitch * 0.95
    return Rows(
        attn={layer: y - top + _TOP for layer, y in attn.items()},
        mlp={layer: y - top + _TOP for layer, y in mlp.items()},
        bottom=_TOP - top,
        height=_TOP + 18 - top,
    )


def bands(rows: Rows, left: float, right: float, half: float) -> str:
    """A pale band and a label for each layer, and dots where empty layers were left out."""
    text, below = "", -1
    for layer, y in rows.attn.items():
        top = rows.mlp[layer] - half
        size = f'width="{decimal(right - left)}" height="{decimal(y + half - top)}"'
        text += f'<rect class="b" x="{decimal(left)}" y="{decimal(top)}" {size} rx="5"/>'
        text += f'<text class="s" x="8" y="{decimal((top + y + half) / 2 + 4)}">L{layer}</text>'
        if layer > below + 1:
            for dot in range(3):  # circles, because a font may lack the vertical ellipsis
                text += f'<circle class="s" cx="14" cy="{decimal(y + half + 8 + 3.5 * dot)}" r="1"/>'
        below = layer
    return text


def live_ports(lines: Iterable[Line]) -> dict[str, str]:
    """For each head with an incoming line the ports that it enters, as in "qv"."""
    ports: dict[str, str] = {}
    for line in lines:
        if line.port and line.port not in ports.get(line.end, ""):
            ports[line.end] = ports.get(line.end, "") + line.port
    return ports


def head_box(key: str, centre: tuple[float, float], size: tuple[float, float], live: str, group: int) -> Box:
    """A head or kv head, with a port for each of q, k and v that something enters."""
    x, width = centre[0], size[0]
    style = "k" if key.startswith("kv") else "a"
    # q, k and v stand in the order in which papers name them; of grouped heads k and v enter the shared box
    if style == "k":
        offsets = {"k": -width / 4, "v": width / 4}
    elif group > 1:
        offsets = {"q": 0.0}
    else:
        offsets = {"q": -width / 3.4, "k": 0.0, "v": width / 3.4}
    ports = tuple((port, x + offset) for port, offset in offsets.items() if port in live)
    return Box(key, key.split("@")[0], style, *centre, *size, ports)
