"""The component view with edges that neither run under boxes nor through each other more than they must.

The layered method of Sugiyama, Tagawa and Toda (1981): every edge gets a lane of its own through each row that
it passes, rows are ordered so that few edges cross, and then places are found that keep edges straight. Read
`layered`; it changes where boxes lie within their rows, and never their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import isotonic_regression

from workbench.render.circuit.layout import Box, Layout, bands, column_of
from workbench.render.circuit.lines import Line

MOST_LANES = 2500
"""With more lanes than that the picture is no easier to read, and takes long to compute."""
MANY = 150
"""Lines of which each has one point in a row that it passes."""
SWEEPS, EXCHANGES, PASSES = 12, 8, 24
_LANE, _NEAR_LANE, _GAP = 7.0, 5.0, 16.0
"""Pixels between two lanes, between a lane and a box, and between two boxes."""
_LEFT, _MARGIN = 40.0, 18.0


@dataclass
class _Unit:
    """What has a place in a row: a box, the boxes of a kv head and its query heads, or a lane of an edge.

    Attributes:
        boxes: with the x of each from the middle of the unit.
        below, above: units of the neighbouring rows that an edge leads to.
    """

    width: float
    x: float
    boxes: list[tuple[Box, float]] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    above: list[int] = field(default_factory=list)

    @property
    def is_lane(self) -> bool:
        """Whether an edge runs through it, and no box lies in it."""
        return not self.boxes


@dataclass
class _Rows:
    """The units, and those of each row from left to right; row 0 is the lowest."""

    units: list[_Unit]
    order: list[list[int]]


def layered(layout: Layout, lines: Sequence[Line], group: int) -> Layout:
    """The layout with boxes moved along their rows, and a route for each line.

    Args:
        layout: of the component view.
        group: query heads that share a kv head.
    Returns:
        The same layout where there would be more than `MOST_LANES`.
    """
    ends = {box.key: box for box in layout.boxes if box.style == "d"}
    inner = [box for box in layout.boxes if box.style != "d"]
    heights = sorted({box.y for box in inner}, reverse=True)
    row_of = {box.key: heights.index(box.y) for box in inner}
    row_of |= {"input": -1, "logits": len(heights)}
    if sum(max(0, row_of[line.end] - row_of[line.start] - 1) for line in lines) > MOST_LANES:
        return layout
    rows, unit_of = _units(inner, heights, group)
    lanes: list[list[int]] = [[] for _ in lines]
    # Lanes of one writer and one reader keep the order in which they are made: that of the reader's ports.
    for i in sorted(range(len(lines)), key=lambda i: "qkv".find(lines[i].port or " ")):
        lanes[i] = _lanes(lines[i], rows, unit_of, row_of, layout)
    _order(rows)
    _place(rows)
    boxes = {box.key: box for box in _moved(rows)}
    right = max([unit.x + unit.width / 2 for unit in rows.units], default=_LEFT + 60) + _MARGIN
    for key, box in ends.items():
        boxes[key] = replace(box, x=(right + _LEFT - 6) / 2, w=right - _LEFT + 6)
    moved = [boxes[box.key] for box in layout.boxes]
    routes = _routes(lines, lanes, rows, boxes)
    background = layout.background
    if layout.rows is not None:
        background = bands(layout.rows, _LEFT - 6, right, layout.half)
    return replace(layout, boxes=moved, background=background, width=right + 12, routes=routes)


def _units(inner: Sequence[Box], heights: Sequence[float], group: int) -> tuple[_Rows, dict[str, int]]:
    """A unit for each box, or for each kv head with its query heads; and the unit of each box."""
    members: dict[tuple[float, object], list[Box]] = {}
    for box in inner:
        shared: object = box.key
        if group > 1 and box.style in ("a", "k"):
            shared = column_of(box.key, group)[0]
        members.setdefault((box.y, shared), []).append(box)
    rows, unit_of = _Rows([], [[] for _ in heights]), {}
    for (y, _), boxes in members.items():
        left = min(box.x - box.w / 2 for box in boxes)
        right = max(box.x + box.w / 2 for box in boxes)
        middle = (left + right) / 2
        for box in boxes:
            unit_of[box.key] = len(rows.units)
        rows.order[heights.index(y)].append(len(rows.units))
        rows.units.append(_Unit(right - left, middle, [(box, box.x - middle) for box in boxes]))
    return rows, unit_of


def _lanes(
    line: Line, rows: _Rows, unit_of: dict[str, int], row_of: dict[str, int], layout: Layout
) -> list[int]:
    """A lane in each row that the line passes, linked to its neighbours."""
    x_of = {box.key: box.x for box in layout.boxes}
    first, last = row_of[line.start], row_of[line.end]
    start, end = unit_of.get(line.start), unit_of.get(line.end)
    # input and logits are as wide as the picture: a line leaves and enters them above or below its other end
    from_x = x_of[line.end] if start is None else x_of[line.start]
    to_x = x_of[line.start] if end is None else x_of[line.end]
    chain = [] if start is None else [start]
    for row in range(first + 1, last):
        share = (row - first) / (last - first)
        rows.order[row].append(len(rows.units))
        chain.append(len(rows.units))
        rows.units.append(_Unit(0.0, from_x + share * (to_x - from_x)))
    lanes = chain[0 if start is None else 1 :]
    if end is not None:
        chain.append(end)
    for below, above in pairwise(chain):
        rows.units[below].above.append(above)
        rows.units[above].below.append(below)
    return lanes


def _order(rows: _Rows) -> None:
    """Order each row by the mean place of its neighbours, from below and from above in turn; keep the best."""
    for row in rows.order:
        row.sort(key=lambda unit: rows.units[unit].x)
    best, least = [list(row) for row in rows.order], _crossings(rows)
    for sweep in range(SWEEPS):
        upwards = sweep % 2 == 0
        place = {unit: i for row in rows.order for i, unit in enumerate(row)}
        for row in rows.order if upwards else reversed(rows.order):
            means = {}
            for unit in row:
                others = rows.units[unit].below if upwards else rows.units[unit].above
                means[unit] = float(np.mean([place[other] for other in others])) if others else place[unit]
            row.sort(key=means.__getitem__)
            place |= {unit: i for i, unit in enumerate(row)}
        _exchange_neighbours(rows)
        crossings = _crossings(rows)
        if crossings < least:
            best, least = [list(row) for row in rows.order], crossings
    rows.order = best


def _exchange_neighbours(rows: _Rows) -> None:
    """Exchange neighbours in a row as long as fewer edges cross: means alone stop at orders that this improves.

    Source: Gansner, Koutsofios, North and Vo, A technique for drawing directed graphs (1993), `transpose`.
    """
    place = {unit: i for row in rows.order for i, unit in enumerate(row)}
    for _ in range(EXCHANGES):
        exchanged = False
        for row in rows.order:
            for i, (left, right) in enumerate(pairwise(list(row))):
                # a unit that was exchanged stands one further to the right by now
                left = row[i]
                if _crossed(rows, place, left, right) > _crossed(rows, place, right, left):
                    row[i], row[i + 1] = right, left
                    place[left], place[right] = i + 1, i
                    exchanged = True
        if not exchanged:
            return


def _crossed(rows: _Rows, place: dict[int, int], left: int, right: int) -> int:
    """How often the edges of two neighbours cross where `left` stands before `right`."""
    crossed = 0
    a, b = rows.units[left], rows.units[right]
    for of_left, of_right in ((a.below, b.below), (a.above, b.above)):
        for one in of_left:
            crossed += sum(place[other] < place[one] for other in of_right)
    return crossed


def _crossings(rows: _Rows) -> int:
    """How often edges cross between neighbouring rows."""
    place = {unit: i for row in rows.order for i, unit in enumerate(row)}
    crossings = 0
    for row in rows.order[:-1]:
        ends = []
        for unit in row:
            ends += [(place[unit], place[other]) for other in rows.units[unit].above]
        low, high = np.array(ends, dtype=int).reshape(-1, 2).T
        crossings += int(((low[:, None] < low) & (high[:, None] > high)).sum())
    return crossings


def _place(rows: _Rows) -> None:
    """Give each unit an x: as near to its neighbours as the order of its row allows."""
    for row in rows.order:
        x = _LEFT
        for i, unit in enumerate(row):
            if i:
                x += _apart(rows.units[row[i - 1]], rows.units[unit])
            rows.units[unit].x = x + rows.units[row[0]].width / 2
    for number in range(PASSES):
        for row in rows.order if number % 2 == 0 else reversed(rows.order):
            _settle(rows, row)
    left = min((unit.x - unit.width / 2 for unit in rows.units), default=_LEFT)
    for unit in rows.units:
        unit.x += _LEFT + 6 - left


def _settle(rows: _Rows, row: Sequence[int]) -> None:
    """Move the units of a row towards the mean of their neighbours, in order and apart."""
    if not row:
        return
    units = [rows.units[unit] for unit in row]
    wanted, weights = [], []
    for unit in units:
        others = [rows.units[other] for other in (*unit.below, *unit.above)]
        # a bend between two lanes is seen at once, one at a box hardly
        pull = [4.0 if unit.is_lane and other.is_lane else 1.0 for other in others]
        wanted.append(float(np.average([other.x for other in others], weights=pull)) if others else unit.x)
        weights.append(sum(pull) or 0.5)
    gaps = [0.0, *(_apart(a, b) for a, b in pairwise(units))]
    offsets = np.cumsum(gaps)
    # in order and so far apart: without the gaps this is a monotone regression, which has an exact solution
    fitted = isotonic_regression(np.array(wanted) - offsets, weights=np.array(weights)).x + offsets
    for unit, x in zip(units, fitted.tolist(), strict=True):
        unit.x = x


def _apart(left: _Unit, right: _Unit) -> float:
    """How far apart the middles of two neighbours of a row are at least."""
    gap = _GAP
    if left.is_lane and right.is_lane:
        gap = _LANE
    elif left.is_lane or right.is_lane:
        gap = _NEAR_LANE
    return left.width / 2 + right.width / 2 + gap


def _moved(rows: _Rows) -> list[Box]:
    """The boxes at the places of their units, with their ports and outlines."""
    boxes = []
    for unit in rows.units:
        for box, offset in unit.boxes:
            away = unit.x + offset - box.x
            ports = tuple((port, x + away) for port, x in box.ports)
            reach = box.reach + away if box.reach else 0.0
            boxes.append(replace(box, x=box.x + away, ports=ports, reach=reach))
    return boxes


def _routes(
    lines: Sequence[Line], lanes: Sequence[Sequence[int]], rows: _Rows, boxes: dict[str, Box]
) -> list[list[tuple[float, float]]]:
    """The points of each line from the top of its writer to a port of its reader."""
    y_of_row = {}
    for number, row in enumerate(rows.order):
        ys = [box.y for unit in row for box, _ in rows.units[unit].boxes]
        y_of_row[number] = ys[0]
    row_of_unit = {unit: number for number, row in enumerate(rows.order) for unit in row}
    half = max((box.h for box in boxes.values() if box.style != "d"), default=20.0) / 2 + 2
    middles = []
    for lane in lanes:
        points = []
        for unit in lane:
            y = y_of_row[row_of_unit[unit]]
            x = rows.units[unit].x
            # upright along the row, so that no box is touched; of very many lines one point each keeps the file small
            points += [(x, y)] if len(lines) > MANY else [(x, y + half), (x, y - half)]
        middles.append(points)
    starts = _spread_ends(lines, middles, boxes, upper=True)
    ends = _spread_ends(lines, middles, boxes, upper=False)
    routes = []
    for i, line in enumerate(lines):
        start, end = boxes[line.start], boxes[line.end]
        from_x, to_x = starts[i], ends[i]
        if start.style == "d":
            from_x = middles[i][0][0] if middles[i] else to_x
        if end.style == "d":
            to_x = middles[i][-1][0] if middles[i] else from_x
        routes.append([(from_x, start.y - start.h / 2), *middles[i], (to_x, end.y + end.h / 2)])
    return routes


def _spread_ends(
    lines: Sequence[Line],
    middles: Sequence[Sequence[tuple[float, float]]],
    boxes: dict[str, Box],
    *,
    upper: bool,
) -> list[float]:
    """Where each line leaves its writer (`upper`) or enters its reader: side by side, in the order in which
    they come.
    """
    shared: dict[tuple[str, str], list[int]] = {}
    for i, line in enumerate(lines):
        shared.setdefault((line.start, "") if upper else (line.end, line.port), []).append(i)
    places = [0.0] * len(lines)
    for (key, port), members in shared.items():
        box = boxes[key]
        middle = box.x if upper else dict(box.ports).get(port, box.x)
        room = 9.0 if port else box.w - 14

        def other_x(i: int) -> float:
            """Where the line comes from, or goes to."""
            points = middles[i]
            if points:
                return points[0][0] if upper else points[-1][0]
            return boxes[lines[i].end if upper else lines[i].start].x

        members = sorted(members, key=other_x)
        step = min(6.0, room / max(1, len(members) - 1))
        for place, i in enumerate(members):
            places[i] = middle + (place - (len(members) - 1) / 2) * step
    return places
