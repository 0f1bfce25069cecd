"""A circuit as SVG text: `to_svg` is a pure function of a `CircuitView`, always the same bytes.

Two views of the same edges: *component* (y = layer, x = head, MLPs in a column of their own) and *position*
(x = token, y = layer, attention hops dotted). Width is |score|; blue solid edges support the behaviour, red
dashed ones oppose it. Information flows upwards. With grouped-query attention a kv head has a box of its own
beside the query heads that share it, so that an edge into it is drawn, and counted, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from workbench.errors import UnknownName
from workbench.render.circuit.curves import Strokes, edge_paths, hop_path
from workbench.render.circuit.layered import layered
from workbench.render.circuit.layout import Box, component_layout, query_heads_per_kv
from workbench.render.circuit.legend import legend
from workbench.render.circuit.lines import Hop, Line, alive, hops_of, lines_of, n_strongest
from workbench.render.circuit.position_layout import position_layout
from workbench.render.circuit.view import CircuitView, ViewKind
from workbench.render.writing import BLUE, FONT, ORANGE, decimal, wrap
from workbench.text import xml

__all__ = ["CircuitView", "Drawing", "draw", "to_svg"]

# Single letters, because a page repeats them for thousands of elements: t title, s small, a label, l text of
# a box, w white, q port; boxes m MLP, k kv head, d input and logits, o outline; edges e: p supports, m
# opposes (on a path; on a box `m` is the MLP), z no score, cb ca cs of two circuits; h hop, b band, g line
# under a token. `frame.css` spells blue and red too, for the page around the picture. A new colour changes
# every committed picture: make them again with docs/picture.py and with each `circuits/*/study.py`.
_STYLE = (
    "text{fill:#1f2937}.t{font-size:15px;font-weight:600}.s{font-size:11px;fill:#64748b}.a{font-size:11px}"
    ".l{font-size:10.5px;text-anchor:middle}.w{fill:#fff;font-weight:600}"
    ".q{font-size:7.5px;fill:#475569;text-anchor:middle}"
    ".n rect{fill:#fff;stroke:#64748b}.n .m{fill:#fdf6e3;stroke:#a8956b}.n .k{fill:#eef2f7;stroke:#94a3b8}"
    ".n .d{fill:#334155;stroke:#334155}.e,.h{fill:none;stroke-linecap:round}.p{stroke:" + BLUE + "}"
    ".m{stroke:" + ORANGE + "}.z{stroke:#64748b}path.m{stroke-dasharray:7 5;stroke-linecap:butt}"
    ".e{stroke-opacity:.78}"
    ".cb{stroke:#a3adba}.ca{stroke:#7c3aed;stroke-dasharray:9 4;stroke-linecap:butt}"
    ".cs{stroke:#a15c07;stroke-dasharray:2 4}"
    ".h{stroke:#6b4fa0;stroke-dasharray:.1 5}.b{fill:#f6f8fa}.g{stroke:#e5e9ef}"
    ".n .o{fill:none;stroke:#a3b3c7}"
)
_MIN_WIDTH, _MESSAGE_WIDTH = 430.0, 460.0


@dataclass(frozen=True)
class Drawing:
    """SVG text, and what is in it in document order: lines (`path.e`), hops (`path.h`) and boxes (`g.n`)."""

    svg: str
    width: float
    lines: tuple[Line, ...]
    hops: tuple[Hop, ...]
    boxes: tuple[Box, ...]


def to_svg(view: CircuitView, *, kind: ViewKind = "component") -> str:
    """One view as SVG text: the `view.top` strongest edges, dead ends dropped. Same view, same bytes.

    Args:
        kind: `component` or `position`; without scores by position the picture of the latter is a line that
            says so.
    Raises:
        UnknownName: another kind of view.

    >>> from workbench.circuit.circuit import Circuit
    >>> from workbench.sites import Shape
    >>> to_svg(CircuitView.of(Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16))))[:4]
    '<svg'
    """
    if kind not in get_args(ViewKind):
        raise UnknownName("kind", kind, get_args(ViewKind))
    lines = lines_of(view, kind)
    n_considered = n_strongest(view, lines, view.top)
    shown = alive(lines[:n_considered])
    known = view.count(kind)
    note = ""
    if len(shown) < known:
        noun = {"component": "edges", "position": "pairs of edge and position"}[kind]
        note = f"drawn: {len(shown)} on complete paths among the {n_considered} strongest of {known} {noun}"
    return draw(view, kind, shown, note=note).svg


def draw(view: CircuitView, kind: ViewKind, lines: Sequence[Line], *, note: str = "") -> Drawing:
    """These lines of a view, laid out and drawn; without any, a message says why there are none."""
    if not lines:
        return Drawing(_message(view, kind), _MESSAGE_WIDTH, (), (), ())
    if kind == "component":
        hops, layout = [], layered(component_layout(view, lines), lines, query_heads_per_kv(view))
    else:
        hops, layout = hops_of(view, lines), position_layout(view, lines)
    boxes, width = layout.boxes, max(layout.width, _MIN_WIDTH)
    index = {box.key: number for number, box in enumerate(boxes)}
    heading, top = _heading(view, [*view.provenance, note], width)
    strokes = Strokes.of(lines)
    key = legend(view, kind, strokes, hops=bool(hops), width=width, y=layout.height + 16)
    # in the order of painting: boxes hide the ends of edges, so that edges seem to begin at their rims
    body = [
        layout.background,
        *edge_paths(view, lines, boxes, index, strokes, routes=layout.routes),
        *(hop_path(hop, boxes[index[hop.start]], boxes[index[hop.end]]) for hop in hops),
        *map(_box, boxes),
        key.svg,
    ]
    below_heading = f'<g transform="translate(0 {top})">{"".join(body)}</g>'
    height = top + (layout.height + 16 + key.height)
    svg = _document(width, height, view.title, heading + below_heading)
    return Drawing(svg, width, tuple(lines), tuple(hops), tuple(boxes))


def _document(width: float, height: float, title: str, body: str) -> str:
    wide, tall = decimal(width), decimal(height)
    size = f'viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{xml(title)}" '
        f'font-family="{FONT}">'
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{body}</svg>'
    )


def _message(view: CircuitView, kind: ViewKind) -> str:
    if not view.edges:
        text = "This circuit has no edges."
    elif kind == "position" and not view.has_positions:
        text = "Scores by position are not known: pass position_scores= for one prompt."
    else:
        text = "No edge lies on a complete path: all are dead ends."
    heading, top = _heading(view, view.provenance, _MESSAGE_WIDTH)
    line = f'<text class="a" x="16" y="{top + 26}">{xml(text)}</text>'
    return _document(_MESSAGE_WIDTH, top + 60, view.title, heading + line)


def _heading(view: CircuitView, facts: Sequence[str], width: float) -> tuple[str, float]:
    """Title and facts, wrapped to the width, and the height they take."""
    text, y = "", 10.0
    # set in 15 pixels and measured in 16, because bold letters are wider
    for row in wrap(list(filter(None, [view.title])), width - 32, 16.0):
        y += 18
        text += f'<text class="t" x="16" y="{decimal(y)}">{xml(row)}</text>'
    for row in wrap(list(filter(None, facts)), width - 32, 11.0):
        y += 15
        text += f'<text class="s" x="16" y="{decimal(y)}">{xml(row)}</text>'
    return text, y + 10


def _box(box: Box) -> str:
    """A `g.n`: a box, its label and its ports, and the outline of a kv head and what shares it."""
    left, top = box.x - box.w / 2, box.y - box.h / 2
    text = '<g class="n">'
    if box.reach:
        size = f'width="{decimal(box.reach - (left - 3) + 3)}" height="{decimal(box.h + 6)}"'
        text += f'<rect class="o" x="{decimal(left - 3)}" y="{decimal(top - 3)}" {size} rx="7"/>'
    size = f'width="{decimal(box.w)}" height="{decimal(box.h)}"'
    text += f'<rect class="{box.style}" x="{decimal(left)}" y="{decimal(top)}" {size} rx="5"/>'
    if box.label:
        style, y = "l", box.y + 3.8
        if box.style == "d":
            style = "l w"
        if box.ports:  # the label makes room for the letters of the ports below it
            y -= 4.2
        text += f'<text class="{style}" x="{decimal(box.x)}" y="{decimal(y)}">{xml(box.label)}</text>'
    for port, x in box.ports:
        y = decimal(box.y + box.h / 2 - 2.5)
        text += f'<text class="q" x="{decimal(x)}" y="{y}">{port}</text>'
    return text + "</g>"
