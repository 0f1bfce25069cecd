"""Where the boxes of the position view lie: x = token, y = layer. Begin with `position_layout`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workbench.render.circuit.layout import (
    Box,
    Layout,
    Live,
    bands,
    column_of,
    head_box,
    live_ports,
    node_of,
    query_heads_per_kv,
    stacked_rows,
)
from workbench.render.circuit.lines import Line
from workbench.render.circuit.view import CircuitView
from workbench.render.writing import decimal, shorten, text_width
from workbench.text import visible, xml

_LONG_PROMPT, _EMPTY_RUN = 40, 3
"""In prompts of more than 40 tokens, runs of 3 or more tokens without a box are left out."""
_LABEL = 14
"""Characters of a token."""
_WIDTH, _HEIGHT, _GAP = 40.0, 23.0, 8
_TOP, _LEFT = 16.0, 34.0


@dataclass(frozen=True)
class _Columns:
    """The x of each token that is shown, and where the last column ends."""

    centres: dict[int, float]
    right: float


@dataclass(frozen=True)
class _Labels:
    """The text under the columns, its height, and how far right the columns move so that no label begins left
    of 0.
    """

    svg: str
    height: float
    shift: float


def position_of(key: str) -> int:
    """The position of a box, such as 3 of `a1.0@3`."""
    return int(key.split("@")[1])


def position_layout(view: CircuitView, lines: Sequence[Line]) -> Layout:
    """Boxes of the position view: a column for each token, and in it the heads of a layer side by side."""
    live = Live.of(lines)
    rows = stacked_rows(live, pitch=66.0, mlp_step=40.0, parallel=view.shape.parallel)
    ends: set[str] = set()
    for line in lines:
        ends |= {line.start, line.end}
    keys = sorted(ends)  # sorted, because the order of a set changes from run to run
    group = query_heads_per_kv(view)
    cells = _heads_by_cell(keys, group)
    columns = _token_columns(len(view.tokens), cells, set(map(position_of, keys)))
    labels = _token_labels(view, columns.centres, rows.bottom)
    centres = {pos: x + labels.shift for pos, x in columns.centres.items()}
    right = columns.right + labels.shift
    background = bands(rows, _LEFT, right, _HEIGHT / 2 + 6)
    for centre in centres.values():
        background += f'<path class="g" d="M{decimal(centre)} 16V{decimal(rows.bottom)}"/>'
    ports, boxes = live_ports(lines), []
    for key in keys:
        pos, node = position_of(key), node_of(key)
        x = centres[pos]
        if node.kind == "input":
            boxes.append(Box(key, "", "d", x, rows.bottom, 16.0, 8.0))
        elif node.layer is None:
            boxes.append(Box(key, "logits", "d", x, _TOP, 40.0, 18.0))
        elif node.is_mlp:
            boxes.append(Box(key, str(node), "m", x, rows.mlp[node.layer], _WIDTH - 4, _HEIGHT - 4))
        else:
            beside = cells[node.layer, pos]
            x += (beside.index(key) - (len(beside) - 1) / 2) * (_WIDTH + _GAP)
            centre, size = (x, rows.attn[node.layer]), (_WIDTH, _HEIGHT)
            boxes.append(head_box(key, centre, size, ports.get(key, ""), group))
    # edges may bow out to the right of the last column
    return Layout(boxes, background + labels.svg, right + 64, rows.bottom + labels.height)


def _heads_by_cell(keys: Iterable[str], group: int) -> dict[tuple[int, int], list[str]]:
    """(layer, position) → the heads and kv heads there, from left to right."""
    cells: dict[tuple[int, int], list[str]] = {}
    for key in keys:
        node = node_of(key)
        if node.layer is not None and not node.is_mlp:
            cells.setdefault((node.layer, position_of(key)), []).append(key)
    return {cell: sorted(heads, key=lambda head: column_of(head, group)) for cell, heads in cells.items()}


def _token_columns(n_tokens: int, cells: Mapping[tuple[int, int], Sequence[str]], used: set[int]) -> _Columns:
    """The x of each token. Tokens without a box are narrow; in long prompts runs of them are left out."""
    n = max(n_tokens, max(used) + 1)
    most_heads: dict[int, int] = {}
    for (_, pos), heads in cells.items():
        most_heads[pos] = max(most_heads.get(pos, 1), len(heads))
    x, centres = 40.0, {}
    empty: list[int] = []
    for pos in range(n + 1):  # one more than there are, so that a run at the end is laid out too
        if pos < n and pos not in used:
            empty.append(pos)
            continue
        if n > _LONG_PROMPT and len(empty) >= _EMPTY_RUN:
            x += 24  # a gap says that tokens were left out
        else:
            for narrow in empty:
                centres[narrow] = x + 12
                x += 24
        empty = []
        if pos < n:
            width = most_heads.get(pos, 1) * (_WIDTH + _GAP) + 10
            centres[pos] = x + width / 2
            x += width
    return _Columns(centres, x)


def _token_labels(view: CircuitView, centres: dict[int, float], y: float) -> _Labels:
    """Token and index under each column: level where all of them fit, slanted otherwise."""
    names = {}
    for pos in centres:
        names[pos] = str(pos)
        if pos < len(view.tokens):
            names[pos] = visible(view.tokens[pos])
    labels = {pos: shorten(name, _LABEL) for pos, name in names.items()}
    widths = {pos: text_width(label, 11.0) for pos, label in labels.items()}
    room = min((right - left for left, right in pairwise(sorted(centres.values()))), default=60.0)
    slanted = max(widths.values()) + 3 > room
    shift, height = 0.0, 38.0
    if slanted:  # 0.77 and 0.65 are the cosine and sine of the angle, 40 degrees, rounded up
        shift = max(0.0, *(4 + 0.77 * widths[pos] - x for pos, x in centres.items()))
        height = 34 + 0.65 * max(widths.values())
    text = ""
    for pos, centre in centres.items():
        x = centre + shift
        text += f'<text class="q" x="{decimal(x)}" y="{decimal(y + 17)}">{pos}</text>'
        if slanted:
            turned = f"translate({decimal(x + 4)} {decimal(y + 26)}) rotate(-40)"
            at = f'transform="{turned}" text-anchor="end"'
        else:
            at = f'x="{decimal(x)}" y="{decimal(y + 31)}" text-anchor="middle"'
        title = f"<title>{xml(names[pos])} at position {pos}</title>"
        text += f'<text class="a" {at}>{xml(labels[pos])}{title}</text>'
    return _Labels(text, height, shift)
