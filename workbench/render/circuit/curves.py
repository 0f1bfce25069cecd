"""Edges and attention as curves between boxes: `edge_paths` and `hop_path`, as SVG text.

An edge runs from the top of its writer's box to a port of its reader's; its width is |score|, see `Strokes`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.render.circuit.layout import Box
from workbench.render.circuit.lines import Hop, Line
from workbench.render.circuit.position_layout import position_of
from workbench.render.circuit.view import CircuitView, ViewEdge
from workbench.render.writing import decimal, signed
from workbench.text import xml

SIDES = {"a": "ca", "b": "cs", "both": "cb"}
"""The class of an edge where two circuits are compared, by the circuit that has it."""
_THICKEST, _DENSE = 6.0, 300
_BOWS = (0.0, 36.0, -36.0, 70.0, -70.0)
"""How far to the right each curve that is tried bows out, the least bent first."""


@dataclass(frozen=True)
class Strokes:
    """How wide edges are drawn: in proportion to |score|, the strongest with the width `thickest`."""

    strongest: float
    thickest: float

    @classmethod
    def of(cls, lines: Sequence[Line]) -> "Strokes":
        """For these lines; where there are very many of them, all are thinner."""
        strongest = max((abs(line.weight) for line in lines if np.isfinite(line.weight)), default=0.0)
        # thousands of lines can be told apart, and are painted in time, only where they are thin
        crowding = min(1.0, (_DENSE / len(lines)) ** 0.5)
        return cls(strongest, max(_THICKEST / 2, _THICKEST * crowding))

    def knows(self, weight: float) -> bool:
        """Whether a score can be drawn as a width."""
        return bool(np.isfinite(weight)) and self.strongest > 0

    def width(self, weight: float) -> float:
        """In pixels, never so thin that it cannot be seen; 1.5 without a score."""
        if not self.knows(weight):
            return 1.5
        return max(0.5, self.thickest * abs(weight) / self.strongest)


def edge_paths(
    view: CircuitView, lines: Sequence[Line], boxes: Sequence[Box], index: dict[str, int], strokes: Strokes, *,
    routes: Sequence[Sequence[tuple[float, float]]] | None = None,
) -> Iterator[str]:  # fmt: skip
    """A `path.e` for each line, with its name and score as a tooltip.

    Args:
        index: of each box in `boxes`, by its key.
        routes: the points of each line; without them a curve is looked for that crosses few boxes.
    """
    margins = np.array([_margins(box) for box in boxes])
    for number, line in enumerate(lines):
        ends = index[line.start], index[line.end]
        start, end = boxes[ends[0]], boxes[ends[1]]
        port_x = dict(end.ports).get(line.port, end.x)
        if routes is not None:
            path = _along(routes[number], strokes.width(line.weight))
        else:
            # the curve ends inside its own two boxes, so these cannot count as obstacles
            others = np.delete(margins, ends, axis=0)
            path = _curve(start, end, port_x, others, along_token=line.pos is not None)
        edge = view.edges[line.edge]
        at = ""
        if line.pos is not None:
            at = f" at {line.pos}"
        title = f"{edge.writer} → {edge.reader}{at}: {signed(line.weight)}{_owner(view, edge)}"
        style = _style(edge, line.weight, strokes)
        width = decimal(strokes.width(line.weight))
        yield f'<path class="e {style}" d="{path}" stroke-width="{width}"><title>{xml(title)}</title></path>'


def _along(points: Sequence[tuple[float, float]], width: float) -> str:
    """A smooth line through points, upright at each of them, with an arrowhead at its end."""
    # whole pixels: a large circuit has thousands of points
    (x, y), *rest = [(round(px), round(py)) for px, py in points]
    text, upright = f"M{x} {y}", None
    for to_x, to_y in rest:
        if to_x == x:
            upright = to_y  # several straight pieces are written as one
        else:
            if upright is not None:
                text, upright = f"{text}V{upright}", None
            bend = round(0.5 * (y - to_y))
            text += f"C{x} {y - bend} {to_x} {to_y + bend} {to_x} {to_y}"
        x, y = to_x, to_y
    if upright is not None:
        text += f"V{upright}"
    # two strokes of the same path: a marker would need an id, which several pictures of a page would share
    size = 2.6 + 0.55 * width
    back = decimal(1.5 * size)
    return f"{text}m-{decimal(size)} {back}l{decimal(size)}-{back} {decimal(size)} {back}"


def _margins(box: Box) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a box, a little larger than it is drawn."""
    return (
        box.x - box.w / 2 - 2,
        box.x + box.w / 2 + 2,
        box.y - box.h / 2 - 1,
        box.y + box.h / 2 + 1,
    )


def _style(edge: ViewEdge, weight: float, strokes: Strokes) -> str:
    """The class of an edge: its circuit if two are compared, else p (supports), m (opposes), z (no score)."""
    if edge.side:
        return SIDES[edge.side]
    if not strokes.knows(weight):
        return "z"
    if weight >= 0:
        return "p"
    return "m"


def _owner(view: CircuitView, edge: ViewEdge) -> str:
    """Which of two circuits has the edge, for its tooltip."""
    if not edge.side:
        return ""
    if edge.side == "both":
        return ", in both"
    first, second = view.sides
    owner = {"a": first, "b": second}[edge.side]
    return f", only in {owner}"


def _curve(start: Box, end: Box, end_x: float, margins: np.ndarray, *, along_token: bool) -> str:
    """A curve from the top of one box to a port of another: of those tried, the one that crosses the fewest
    boxes, and of these the least bent.

    Args:
        margins: [box, (left, right, top, bottom)] of all other boxes.
        along_token: in the position view, where wide boxes have to be left and entered in their middle.
    """
    best, least = np.zeros((4, 2)), 1e9
    for bow in _BOWS:
        points = _control_points(start, end, end_x, bow, along_token)
        # a crossing costs more than any bend: the bends only decide between curves that cross equally much
        cost = _crossings(points, margins) + abs(bow) / 100
        if cost < least:
            best, least = points, cost
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = [map(decimal, point) for point in best.tolist()]
    return f"M{x1} {y1}C{x2} {y2} {x3} {y3} {x4} {y4}"


def _control_points(start: Box, end: Box, end_x: float, bow: float, along_token: bool) -> np.ndarray:
    """[4, (x, y)] of a cubic Bézier curve that leaves and arrives upright."""
    y1, y2 = start.y - start.h / 2, end.y + end.h / 2
    # handles in proportion to the height keep long edges upright at both ends; short ones still need a bend
    reach = max(16.0, 0.42 * (y1 - y2))
    x1, x2 = start.x, end_x
    # input and logits are as wide as the picture: an edge leaves or enters them close to where it goes or
    # comes from
    if start.style == "d" and not along_token:
        x1 = start.x + np.clip(end_x + bow / 2 - start.x, -start.w / 2 + 8, start.w / 2 - 8)
    if end.style == "d" and not along_token:
        x2 = end_x + np.clip(start.x + bow / 2 - end_x, -end.w / 2 + 8, end.w / 2 - 8)
    return np.array([(x1, y1), (x1 + bow, y1 - reach), (x2 + bow, y2 + reach), (x2, y2)])


def _crossings(points: np.ndarray, margins: np.ndarray) -> float:
    """How many of 24 points of the curve lie in a box, or on the names of the layers at the left."""
    t = np.linspace(0.04, 0.96, 24)[:, None]  # the ends touch their own boxes
    # a cubic Bézier curve in Bernstein form, which takes all 24 points at once: [point, (x, y)]
    curve = (
        (1 - t) ** 3 * points[0]
        + 3 * (1 - t) ** 2 * t * points[1]
        + 3 * (1 - t) * t**2 * points[2]
        + t**3 * points[3]
    )
    x, y = curve[:, :1], curve[:, 1:]  # columns against a row of boxes, so that every point meets every box
    left, right, top, bottom = margins.T
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    return float(inside.sum()) + float((x < 30).sum())


def hop_path(hop: Hop, start: Box, end: Box) -> str:
    """A `path.h` from where a key or value enters to the head that attends to it."""
    apart = end.x - start.x
    # boxes above each other: from top to top, as an arc between their sides has no room
    if abs(apart) < start.w + 12:
        (x1, y1), (x2, y2) = (start.x, start.y - start.h / 2), (end.x, end.y - end.h / 2)
        bend1, bend2, peak = x1, x2, y1 - 12
    else:  # an arc, so that the hop does not run through the boxes between them
        forward = 1 if apart >= 0 else -1
        (x1, y1), (x2, y2) = (
            (start.x + forward * start.w / 2, start.y - 4),
            (end.x - forward * end.w / 2, end.y - 4),
        )
        bend1, bend2 = x1 + forward * 14, x2 - forward * 14
        peak = start.y - min(34.0, 8 + abs(apart) / 14)
    x1, y1, bend1, peak, bend2, x2, y2 = map(decimal, (x1, y1, bend1, peak, bend2, x2, y2))
    path = f"M{x1} {y1}C{bend1} {peak} {bend2} {peak} {x2} {y2}"
    title = f"{hop.head} attends from {position_of(hop.end)} to {position_of(hop.start)}: {hop.weight:.2f}"
    width = decimal(1.2 + 3 * hop.weight)
    return f'<path class="h" d="{path}" stroke-width="{width}"><title>{xml(title)}</title></path>'
