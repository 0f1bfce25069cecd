"""A circuit as SVG text: `to_svg` is a pure function of a `CircuitView`, always the same bytes.

Two views of the same edges: *component* (y = layer, x = head, MLPs in a column of their own) and *position* (x = token,
y = layer, attention hops dotted). Width is |score|; blue solid edges support the behaviour, red dashed ones oppose it.
Information flows upwards. With grouped-query attention a kv head has a box of its own beside the query heads that share
it, so that an edge into it is drawn, and counted, once.
"""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import get_args

import numpy as np

from workbench.errors import UnknownName
from workbench.render.circuit.view import (
    CircuitView,
    Hop,
    Line,
    ViewEdge,
    ViewKind,
    alive,
    cut,
    hops_of,
    lines_of,
    number,
)
from workbench.sites import Node
from workbench.text import visible, xml

__all__ = ["CircuitView", "Drawing", "draw", "to_svg"]

_STYLE = (
    "text{fill:#1f2937}.t{font-size:15px;font-weight:600}.s{font-size:11px;fill:#64748b}.a{font-size:11px}"
    ".l{font-size:10.5px;text-anchor:middle}.w{fill:#fff;font-weight:600}.q{font-size:7.5px;fill:#475569;text-anchor:middle}"
    ".n rect{fill:#fff;stroke:#64748b}.n .m{fill:#fdf6e3;stroke:#a8956b}.n .k{fill:#eef2f7;stroke:#94a3b8}"
    ".n .d{fill:#334155;stroke:#334155}.e,.h{fill:none;stroke-linecap:round}.p{stroke:#2369b0}"
    ".m{stroke:#c2410c}.z{stroke:#64748b}path.m{stroke-dasharray:7 5;stroke-linecap:butt}.e{stroke-opacity:.78}"
    ".cb{stroke:#334155}.ca{stroke:#7c3aed;stroke-dasharray:9 4;stroke-linecap:butt}.cs{stroke:#a15c07;stroke-dasharray:2 4}"
    ".h{stroke:#6b4fa0;stroke-dasharray:.1 5}.b{fill:#f6f8fa}.g{stroke:#e5e9ef}.n .o{fill:none;stroke:#a3b3c7}"
)
_FONT = "Helvetica, Arial, sans-serif"
_SIDES = {"a": "ca", "b": "cs", "both": "cb"}
_EMPTY_RUN, _LONG_PROMPT, _LABEL, _SIDE = 3, 40, 14, 160.0
_THICKEST, _DENSE = 6.0, 300


@dataclass(frozen=True)
class Box:
    """A box: its centre, size, text and the x of each port at its lower edge; an outline `reach`es over what shares it."""

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
class Drawing:
    """SVG text, and what is in it, in document order: `path.e` are the lines, `path.h` the hops, `g.n` the nodes."""

    svg: str
    width: float
    lines: tuple[Line, ...]
    hops: tuple[Hop, ...]
    nodes: tuple[Box, ...]


@dataclass(frozen=True)
class _Rows:
    """Where each layer lies: heads at `attn[layer]`, its MLP at `mlp[layer]`; the page grows downwards."""

    attn: dict[int, float]
    mlp: dict[int, float]
    bottom: float
    height: float


def to_svg(view: CircuitView, *, kind: ViewKind = "component") -> str:
    """One view as SVG text: the `view.top` strongest edges, dead ends dropped. Same view, same bytes.

    >>> from workbench.circuit.circuit import Circuit
    >>> from workbench.sites import Shape
    >>> to_svg(CircuitView.of(Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16))))[:4]
    '<svg'

    Raises:
        UnknownName: another kind of view.
    """
    if kind not in get_args(ViewKind):
        raise UnknownName("kind", kind, get_args(ViewKind))
    lines = lines_of(view, kind)
    n = cut(lines, view.top) if view.scored else len(lines)
    kept = alive(lines[:n])
    what = "edges" if kind == "component" else "pairs of edge and position"
    known = view.count(kind)
    note = (
        f"drawn: {len(kept)} on complete paths among the {n} strongest of {known} {what}"
        if len(kept) < known
        else ""
    )
    return draw(view, kind, kept, note=note).svg


def draw(view: CircuitView, kind: ViewKind, lines: Sequence[Line], *, note: str = "") -> Drawing:
    """These lines of a view, laid out and drawn; where there are none, a message in their place."""
    hops: list[Hop] = hops_of(view, lines) if kind == "position" else []
    if not lines:
        return Drawing(_message(view, kind), 460.0, (), (), ())
    nodes, under, width, height = (_components if kind == "component" else _positions)(view, lines)
    at = {node.key: i for i, node in enumerate(nodes)}
    strongest = max((abs(line.weight) for line in lines if np.isfinite(line.weight)), default=0.0)
    heading, top = _heading(view, [*view.provenance, note], max(width, 430.0))
    # thousands of lines are told apart, and painted in time, only where they are thin
    thickest = max(_THICKEST / 2, _THICKEST * min(1.0, (_DENSE / len(lines)) ** 0.5))
    legend = _legend(view, kind, strongest, thickest, bool(hops), max(width, 430.0), height + 16)
    body = [
        under,
        *_paths(view, lines, nodes, at, strongest, thickest),
        *(_hop(hop, nodes, at) for hop in hops),
        *map(_box, nodes),
    ]
    total = height + 16 + legend[1]
    text = _svg(
        max(width, 430.0),
        top + total,
        view.title,
        heading + f'<g transform="translate(0 {top})">' + "".join(body) + legend[0] + "</g>",
    )
    return Drawing(text, max(width, 430.0), tuple(lines), tuple(hops), tuple(nodes))


def _svg(width: float, height: float, title: str, body: str) -> str:
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{xml(title)}" font-family="{_FONT}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )


def _message(view: CircuitView, kind: ViewKind) -> str:
    if not view.edges:
        text = "This circuit has no edges."
    elif kind == "position" and not view.has_positions:
        text = "Scores by position are not known: pass position_scores= for one prompt."
    else:
        text = "No edge lies on a complete path from input to logits."
    heading, top = _heading(view, view.provenance, 460.0)
    return _svg(
        460.0, top + 60, view.title, heading + f'<text class="a" x="16" y="{top + 26}">{xml(text)}</text>'
    )


def _heading(view: CircuitView, pieces: Sequence[str], width: float) -> tuple[str, float]:
    """Title and provenance, wrapped to the width, and the height they take."""
    rows = _wrap([view.title], width - 32, 16.0) if view.title else []
    text, y = "", 10.0
    for row in rows:
        y += 18
        text += f'<text class="t" x="16" y="{_n(y)}">{xml(row)}</text>'
    for row in _wrap([piece for piece in pieces if piece], width - 32, 11.0):
        y += 15
        text += f'<text class="s" x="16" y="{_n(y)}">{xml(row)}</text>'
    return text, y + 10


def _wrap(pieces: Sequence[str], room: float, size: float) -> list[str]:
    """Pieces in rows of so many pixels, cut with an ellipsis where one word is longer."""
    rows: list[str] = []
    for i, piece in enumerate(pieces):
        words = visible(piece).split(" ")
        for j, word in enumerate(words):
            glue = " · " if j == 0 and i else " "
            whole = visible(piece) if j == 0 and _width(piece, size) < room / 2 else word
            if not rows or _width(rows[-1] + glue + whole, size) > room:
                rows.append(word)
            else:
                rows[-1] += glue + word
    return [_cut(row, room, size) for row in rows]


def _width(text: str, size: float) -> float:
    """About how many pixels a text takes in the font of the pictures, rather more than fewer."""
    return size * sum(map(_em, text))


def _em(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if character in "WM@m%…" or unicodedata.east_asian_width(character) in "WF":
        return 1.0 if character.isascii() else 1.25
    return 0.36 if character in " iljtfI.,:;'|!()[]·" else 0.74 if character.isupper() else 0.63


def _cut(text: str, room: float, size: float) -> str:
    """The text, cut with an ellipsis where it takes more than so many pixels."""
    if _width(text, size) <= room:
        return text
    return text[: bisect_right(list(accumulate(map(_em, text))), room / size - _em("…"))] + "…"


def _legend(
    view: CircuitView, kind: ViewKind, strongest: float, thickest: float, hops: bool, width: float, y: float
) -> tuple[str, float]:
    items: list[tuple[str, str, float]] = []
    if view.sides:
        first, second = (_cut(visible(name), _SIDE, 11.0) for name in view.sides)
        items += [("cb", "in both", 3.0), ("ca", f"only in {first}", 3.0), ("cs", f"only in {second}", 3.0)]
    elif strongest:
        items.append(("p", "supports", 4.0))
        items.append(("m", "opposes", 4.0))
        items.append(("p", f"|score| = {strongest:.3g}", thickest))
        items.append(("p", f"{strongest / 4:.3g}", thickest / 4))
    else:
        items.append(("z", "edge (no scores)", 1.5))
    if hops:
        items.append(("h", "attention, from key to query position", 3.0))
    if view.shape.n_kv_heads != view.shape.n_heads:
        shared = "kv: one key-value head, shared by the query heads beside it"
        items.append(("", shared if kind == "component" else "kv: shared key-value head", 0.0))
    x, row, text = 16.0, 0, ""
    for style, label, thick in items:
        size = (36 if style else 0) + _width(label, 11.0) + 18
        if x > 16 and x + size > width - 8:
            x, row = 16.0, row + 1
        line = y + 17 * row
        if style:
            look = "h y" if style == "h" else f"e {style} y"
            text += f'<path class="{look}" d="M{_n(x)} {_n(line)}h28" stroke-width="{_n(thick)}"/>'
        text += f'<text class="s" x="{_n(x + (36 if style else 0))}" y="{_n(line + 4)}">{xml(label)}</text>'
        x += size
    return text, 17.0 * row + 16


def _layers(lines: Sequence[Line]) -> tuple[dict[int, set[str]], set[int]]:
    """Names of live heads and kv heads by layer, and the layers with a live MLP."""
    heads: dict[int, set[str]] = {}
    mlps: set[int] = set()
    for key in sorted({k.split("@")[0] for line in lines for k in (line.start, line.end)}):
        node = _node(key)
        if node.layer is not None and node.is_mlp:
            mlps.add(node.layer)
        elif node.layer is not None:
            heads.setdefault(node.layer, set()).add(key)
    return heads, mlps


def _node(key: str) -> Node:
    """The node of a line's end, as in `a3.7@4`; a kv head `kv3.1` that several heads share is its key `a3.1<k>`."""
    name = key.split("@")[0]
    return Node.parse(f"a{name.removeprefix('kv')}<k>" if name.startswith("kv") else name)


def _rows(heads: dict[int, set[str]], mlps: set[int], pitch: float, step: float, parallel: bool) -> _Rows:
    """Layers from the bottom up; empty ones are left out."""
    attn, mlp, y = {}, {}, 0.0
    for layer in sorted(set(heads) | mlps):
        y -= pitch
        attn[layer] = y
        y -= step if layer in mlps and layer in heads and not parallel else 0
        mlp[layer] = y
    top = y - pitch * 0.95
    return _Rows(
        {k: v - top + 16 for k, v in attn.items()},
        {k: v - top + 16 for k, v in mlp.items()},
        16 - top,
        34 - top,
    )


def _bands(rows: _Rows, left: float, right: float, half: float) -> str:
    """A pale band and a label for each layer, and dots where empty layers were left out."""
    text, before = "", -1
    for layer, y in rows.attn.items():
        top = rows.mlp[layer] - half
        text += f'<rect class="b" x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" height="{_n(y + half - top)}" rx="5"/>'
        text += f'<text class="s" x="8" y="{_n((top + y + half) / 2 + 4)}">L{layer}</text>'
        if layer > before + 1:  # circles, because a font may lack the sign
            text += "".join(
                f'<circle class="s" cx="14" cy="{_n(y + half + 8 + 3.5 * i)}" r="1"/>' for i in range(3)
            )
        before = layer
    return text


def _components(view: CircuitView, lines: Sequence[Line]) -> tuple[list[Box], str, float, float]:
    heads, mlps = _layers(lines)
    group = view.shape.n_heads // view.shape.n_kv_heads
    columns = sorted({_column(name, group) for names in heads.values() for name in names})
    compact = len(columns) > 9 or len(heads) > 9
    w, gap, pitch, h = (41.0, 9.0, 62.0, 23.0) if compact else (46.0, 18.0, 78.0, 26.0)
    rows = _rows(heads, mlps, pitch, pitch * 0.62, view.shape.parallel)
    left, x, places = 34.0, 34.0 + gap, {}
    shared = max(
        [30.0, *(5.6 * len(name) + 4 for names in heads.values() for name in names if name.startswith("kv"))]
    )
    for column in columns:
        wide = w if column[1] else shared
        places[column] = x + wide / 2
        x += wide + (gap if column[1] else 4)
    mlp_x = x + (w / 2 + (gap if columns else 0))
    right = (mlp_x + w / 2 if mlps else x - gap) + gap
    ports = _ports(lines)
    ends = {"input": (right + left) / 2, "logits": (right + left) / 2}
    nodes, under = [], _bands(rows, left, right, h / 2 + 6)
    for name, y in (("input", rows.bottom), ("logits", 16.0)):
        nodes.append(Box(name, name, "d", ends[name], y, right - left, 18.0))
    for layer, names in heads.items():
        for name in sorted(names):
            kind = "k" if name.startswith("kv") else "a"
            column = _column(name, group)
            wide = shared if kind == "k" else w
            nodes.append(
                _head_box(
                    name, name, kind, places[column], rows.attn[layer], wide, h, ports.get(name, ""), group
                )
            )
    nodes += [Box(f"m{layer}", f"m{layer}", "m", mlp_x, rows.mlp[layer], w, h - 4) for layer in sorted(mlps)]
    return _shares(nodes, group), under, right + 64, rows.height


def _shares(nodes: Sequence[Box], group: int) -> list[Box]:
    """The same nodes; each kv head knows how far the query heads that share it reach."""
    reach: dict[tuple[float, int], float] = {}
    for node in nodes:
        if node.style in ("a", "k"):
            place = node.y, _column(node.key, group)[0]
            reach[place] = max(reach.get(place, 0.0), node.x + node.w / 2)
    return [replace(n, reach=reach[n.y, _column(n.key, group)[0]]) if n.style == "k" else n for n in nodes]


def _column(name: str, group: int) -> tuple[int, int, int]:
    """(kv group, 0 for its kv head or 1, head): sorted from left to right."""
    node = _node(name)
    assert node.head is not None
    return (node.head, 0, 0) if node.port else (node.head // group, 1, node.head)


def _head_box(
    key: str, label: str, kind: str, x: float, y: float, w: float, h: float, live: str, group: int
) -> Box:
    """A head or kv head, with a port for each of q, k and v that something enters."""
    spread = (
        {"q": 0.0}
        if kind == "a" and group > 1
        else {"k": -w / 4, "v": w / 4}
        if kind == "k"
        else {"q": -w / 3.4, "k": 0.0, "v": w / 3.4}
    )
    return Box(
        key, label, kind, x, y, w, h, tuple((port, x + dx) for port, dx in spread.items() if port in live)
    )


def _ports(lines: Sequence[Line]) -> dict[str, str]:
    ports: dict[str, str] = {}
    for line in lines:
        if line.port and line.port not in ports.get(line.end, ""):
            ports[line.end] = ports.get(line.end, "") + line.port
    return ports


def _positions(view: CircuitView, lines: Sequence[Line]) -> tuple[list[Box], str, float, float]:
    heads, mlps = _layers(lines)
    group, w, h = view.shape.n_heads // view.shape.n_kv_heads, 40.0, 23.0
    rows = _rows(heads, mlps, 66.0, 40.0, view.shape.parallel)
    cells: dict[tuple[int, int], list[str]] = {}
    keys = sorted({k for line in lines for k in (line.start, line.end)})
    for key in keys:
        node = _node(key)
        if node.layer is not None and node.is_head:
            cells.setdefault((node.layer, _pos(key)), []).append(key)
    used = {_pos(key) for key in keys}
    centres, right = _token_columns(view, cells, used, w + 5)
    ports, nodes = _ports(lines), []
    label_text, label_height, left = _token_labels(view, centres, rows.bottom)
    centres, right = {p: x + left for p, x in centres.items()}, right + left
    under = _bands(rows, 34.0, right, h / 2 + 6)
    for centre in centres.values():
        under += f'<path class="g" d="M{_n(centre)} 16V{_n(rows.bottom)}"/>'
    for key in keys:
        p, name, node = _pos(key), key.split("@")[0], _node(key)
        x, y = centres[p], 0.0
        if node.kind == "input":
            nodes.append(Box(key, "", "d", x, rows.bottom, 16.0, 8.0))
        elif node.layer is None:
            nodes.append(Box(key, "logits", "d", x, 16.0, 40.0, 18.0))
        elif node.is_mlp:
            nodes.append(Box(key, name, "m", x, rows.mlp[node.layer], w - 4, h - 4))
        else:
            row = sorted(cells[node.layer, p], key=lambda k: _column(k, group))
            x, y = x + (row.index(key) - (len(row) - 1) / 2) * (w + 5), rows.attn[node.layer]
            style = "k" if node.port else "a"
            nodes.append(_head_box(key, name, style, x, y, w, h, ports.get(key, ""), group))
    return nodes, under + label_text, right + 64, rows.bottom + label_height


def _pos(key: str) -> int:
    return int(key.split("@")[1])


def _token_columns(
    view: CircuitView, cells: dict, used: set[int], pitch: float
) -> tuple[dict[int, float], float]:
    """The x of each token. Tokens without a node are narrow; in long prompts runs of them are left out."""
    n, x, centres = max(len(view.tokens), max(used) + 1), 40.0, {}
    run: list[int] = []
    for p in range(n + 1):
        if p < n and p not in used:
            run.append(p)
            continue
        hide = n > _LONG_PROMPT and len(run) >= _EMPTY_RUN
        for empty in run if not hide else []:
            centres[empty] = x + 12
            x += 24
        x += 24 if hide else 0
        run = []
        if p < n:
            most = max((len(row) for (_, pos), row in cells.items() if pos == p), default=1)
            wide = max(1, most) * pitch + 10
            centres[p] = x + wide / 2
            x += wide
    return centres, x


def _token_labels(view: CircuitView, centres: dict[int, float], y: float) -> tuple[str, float, float]:
    """Token and index under each column: level where all of them fit, slanted otherwise.

    Also the height they take, and how far to the right the columns have to move so that none begins left of the picture.
    """
    shown = {p: visible(view.tokens[p]) if p < len(view.tokens) else str(p) for p in centres}
    places = sorted(centres.values())
    room = min((b - a for a, b in pairwise(places)), default=60.0)
    shorts = {p: label if len(label) <= _LABEL else label[: _LABEL - 1] + "…" for p, label in shown.items()}
    widths = {p: _width(short, 11.0) for p, short in shorts.items()}
    slanted = max(widths.values()) + 3 > room
    left = max(0.0, *(4 + 0.77 * widths[p] - x for p, x in centres.items())) if slanted else 0.0
    text = ""
    for p, centre in centres.items():
        x = centre + left
        title = f"<title>{xml(shown[p])} at position {p}</title>"
        text += f'<text class="q" x="{_n(x)}" y="{_n(y + 17)}">{p}</text>'
        if slanted:
            place = f'transform="translate({_n(x + 4)} {_n(y + 26)}) rotate(-40)" text-anchor="end"'
        else:
            place = f'x="{_n(x)}" y="{_n(y + 31)}" text-anchor="middle"'
        text += f'<text class="a" {place}>{xml(shorts[p])}{title}</text>'
    return text, (34 + 0.65 * max(widths.values()) if slanted else 38.0), left


def _paths(
    view: CircuitView,
    lines: Sequence[Line],
    nodes: list[Box],
    at: dict[str, int],
    strongest: float,
    thickest: float,
) -> list[str]:
    boxes = np.array(
        [(n.x - n.w / 2 - 2, n.x + n.w / 2 + 2, n.y - n.h / 2 - 1, n.y + n.h / 2 + 1) for n in nodes]
    )
    paths = []
    for line in lines:
        a, b = at[line.start], at[line.end]
        start, end = nodes[a], nodes[b]
        x = dict(end.ports).get(line.port, end.x)
        path = _curve(start, end, x, np.delete(boxes, [a, b], axis=0), line.pos is not None)
        known = np.isfinite(line.weight) and strongest > 0
        edge = view.edges[line.edge]
        style = _SIDES[edge.side] if edge.side else "z" if not known else "p" if line.weight >= 0 else "m"
        width = max(0.5, thickest * abs(line.weight) / strongest) if known else 1.5
        where = "" if line.pos is None else f" at {line.pos}"
        title = f"{edge.writer} → {edge.reader}{where}: {number(line.weight)}" + _side(view, edge)
        paths.append(
            f'<path class="e {style}" d="{path}" stroke-width="{_n(width)}"><title>{xml(title)}</title></path>'
        )
    return paths


def _side(view: CircuitView, edge: ViewEdge) -> str:
    if not edge.side:
        return ""
    return ", in both" if edge.side == "both" else f", only in {view.sides[0 if edge.side == 'a' else 1]}"


def _curve(start: Box, end: Box, x2: float, boxes: np.ndarray, aligned: bool) -> str:
    """From the top of one box to a port of another: the least bent of some curves that hides behind the fewest boxes."""
    x1, y1, y2 = start.x, start.y - start.h / 2, end.y + end.h / 2
    reach = max(16.0, 0.42 * (y1 - y2))
    t = np.linspace(0.04, 0.96, 24)[:, None]
    best, fewest = "", 1e9
    for bow in (0.0, 36.0, -36.0, 70.0, -70.0):
        ax, bx = x1, x2
        if start.style == "d" and not aligned:
            ax = x1 + np.clip(x2 + bow / 2 - x1, -start.w / 2 + 8, start.w / 2 - 8)
        if end.style == "d" and not aligned:
            bx = x2 + np.clip(x1 + bow / 2 - x2, -end.w / 2 + 8, end.w / 2 - 8)
        points = np.array([(ax, y1), (ax + bow, y1 - reach), (bx + bow, y2 + reach), (bx, y2)])
        curve = (
            (1 - t) ** 3 * points[0]
            + 3 * (1 - t) ** 2 * t * points[1]
            + 3 * (1 - t) * t**2 * points[2]
            + t**3 * points[3]
        )
        px, py = curve[:, :1], curve[:, 1:]
        inside = (px > boxes[:, 0]) & (px < boxes[:, 1]) & (py > boxes[:, 2]) & (py < boxes[:, 3])
        cost = float(inside.sum()) + abs(bow) / 100 + float((px < 30).sum())
        if cost < fewest:
            fewest = cost
            (a, b), (c, d), (e, f), (g, h) = points
            best = f"M{_n(a)} {_n(b)}C{_n(c)} {_n(d)} {_n(e)} {_n(f)} {_n(g)} {_n(h)}"
    return best


def _hop(hop: Hop, nodes: list[Box], at: dict[str, int]) -> str:
    a, b = nodes[at[hop.start]], nodes[at[hop.end]]
    if abs(b.x - a.x) < a.w + 12:
        (x1, y1), (x2, y2) = (a.x, a.y - a.h / 2), (b.x, b.y - b.h / 2)
        c1, c2, peak = x1, x2, y1 - 12
    else:
        forward = 1 if b.x >= a.x else -1
        (x1, y1), (x2, y2) = (a.x + forward * a.w / 2, a.y - 4), (b.x - forward * b.w / 2, b.y - 4)
        c1, c2, peak = x1 + forward * 14, x2 - forward * 14, a.y - min(34.0, 8 + abs(b.x - a.x) / 14)
    path = f"M{_n(x1)} {_n(y1)}C{_n(c1)} {_n(peak)} {_n(c2)} {_n(peak)} {_n(x2)} {_n(y2)}"
    title = f"{hop.head} attends from {_pos(hop.end)} to {_pos(hop.start)}: {hop.weight:.2f}"
    return f'<path class="h" d="{path}" stroke-width="{_n(1.2 + 3 * hop.weight)}"><title>{xml(title)}</title></path>'


def _box(node: Box) -> str:
    place = f'x="{_n(node.x - node.w / 2)}" y="{_n(node.y - node.h / 2)}" width="{_n(node.w)}" height="{_n(node.h)}" rx="5"'
    up = 4.2 if node.ports else 0
    text = '<g class="n">'
    if node.reach:
        left, top = node.x - node.w / 2 - 3, node.y - node.h / 2 - 3
        size = f'width="{_n(node.reach - left + 3)}" height="{_n(node.h + 6)}"'
        text += f'<rect class="o" x="{_n(left)}" y="{_n(top)}" {size} rx="7"/>'
    text += f'<rect class="{node.style}" {place}/>'
    style = "l w" if node.style == "d" else "l"
    text += (
        f'<text class="{style}" x="{_n(node.x)}" y="{_n(node.y + 3.8 - up)}">{xml(node.label)}</text>'
        if node.label
        else ""
    )
    text += "".join(
        f'<text class="q" x="{_n(x)}" y="{_n(node.y + node.h / 2 - 2.5)}">{port}</text>'
        for port, x in node.ports
    )
    return text + "</g>"


def _n(value: float | int) -> str:
    return f"{round(float(value), 1):g}"
