"""The document inside the frame of an interactive circuit: `frame_document`.

A scene is one picture and what `circuit.js` knows about it by number.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.render.circuit.controls import controls
from workbench.render.circuit.lines import Line, alive, cut, lines_of, n_strongest
from workbench.render.circuit.page import asset, script_json
from workbench.render.circuit.svg import Drawing, draw
from workbench.render.circuit.view import CircuitView, ViewKind
from workbench.sites import Node
from workbench.text import visible, xml

_PATTERN_CELLS = 400_000  # of all prompts together: more would make a page too large to send
_NEAR = 1.5
"""The picture of the strongest edges has up to 1.5 times as many edges as are shown at first."""


def frame_document(view: CircuitView) -> str:
    """The document inside the frame."""
    scenes = _scenes(view)
    prompts = [view, *view.more]
    data = {
        "scored": view.scored,
        "title": visible(view.title),
        "prompts": [list(map(visible, one.tokens)) for one in prompts],
        "edges": [_edge(prompts, i) for i in range(len(view.edges))],
        "patterns": [_patterns(one, _PATTERN_CELLS // len(prompts)) for one in prompts],
        "curve": [[n, *map(_round, shares)] for n, *shares in view.curve],
        "sides": list(map(visible, view.sides)),
        "scenes": {scene.name: scene.data for scene in scenes},
    }
    pictures = "".join(scene.html for scene in scenes)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{xml(view.title)}</title>'
        f"<style>{asset('frame.css')}</style></head><body>{controls(view)}{pictures}"
        '<div id="detail" aria-live="polite"></div>'
        f'<script type="application/json" id="data">{script_json(data)}</script>'
        f"<script>{asset('circuit.js')}</script></body></html>"
    )


@dataclass(frozen=True)
class _Scene:
    """A picture in the frame: its name, its HTML, and what the script knows about it."""

    name: str
    html: str
    data: dict[str, Any]


def _scenes(view: CircuitView) -> list[_Scene]:
    """The position view of each prompt that has scores by position, then the component view."""
    scenes = []
    for number, one in enumerate([view, *view.more]):
        if one.has_positions:
            scenes.append(_position_scene(one, f"position-{number}"))
    return scenes + _component_scenes(view)


def _component_scenes(view: CircuitView) -> list[_Scene]:
    """The component view with every line, and where that is much larger one of the strongest alone."""
    lines = lines_of(view, "component")
    start = n_strongest(view, lines, view.top)
    shown = alive(lines)
    first = {"start": len(set(lines[:start]) & set(shown)), "known": view.count("component")}
    scenes = [_scene(view, "component", "component", shown, first)]
    strongest = lines[: n_strongest(view, lines, int(_NEAR * view.top))]
    near = alive(strongest)
    if 2 * len(near) < len(shown):
        # a picture of the strongest alone, without the room that the rest takes
        limit = {"limit": len(set(strongest) & set(shown))}
        scenes.append(_scene(view, "component", "component-near", near, limit))
    return scenes


def _position_scene(view: CircuitView, name: str) -> _Scene:
    """The position view of one prompt."""
    lines = lines_of(view, "position")
    start = n_strongest(view, lines, view.top)
    # every position would be too many lines: twice those shown at first leave the slider room
    shown = alive(lines[: cut(lines, 2 * view.top)])
    first = {"start": len(set(lines[:start]) & set(shown)), "known": view.count("position")}
    return _scene(view, "position", name, shown, first)


def _scene(
    view: CircuitView, kind: ViewKind, name: str, lines: Sequence[Line], facts: dict[str, Any]
) -> _Scene:
    drawing = draw(view, kind, lines)
    # smaller than drawn on a narrow screen, but not so small that labels cannot be read
    width = drawing.width * 0.72
    picture = f'<div style="min-width:{width:.0f}px">{drawing.svg}</div>'
    return _Scene(name, f'<div class="scene" id="{name}">{picture}</div>', facts | _scene_data(drawing))


def _scene_data(drawing: Drawing) -> dict[str, Any]:
    """Lines, hops and boxes by number, as `circuit.js` says at its top."""
    # numbers in place of names, which a page would repeat for thousands of lines
    box_numbers = {box.key: number for number, box in enumerate(drawing.boxes)}
    unit_numbers = {"input": 0, "logits": 1}
    rows = []
    for line in drawing.lines:
        for unit in (*line.feeds, line.unit):
            unit_numbers.setdefault(unit, len(unit_numbers))
        rows.append([
            line.edge,
            -1 if line.pos is None else line.pos,
            _round(line.weight),
            unit_numbers[line.unit],
            [unit_numbers[unit] for unit in line.feeds],
            box_numbers[line.start],
            box_numbers[line.end],
            int(line.port in ("k", "v")),
        ])  # fmt: skip
    hops = [[box_numbers[hop.start], box_numbers[hop.end]] for hop in drawing.hops]
    return {"lines": rows, "hops": hops, "nodes": list(box_numbers)}


def _heads_read(view: CircuitView, index: int) -> list[str]:
    """The heads whose attention an edge enters."""
    reader = Node.parse(view.edges[index].reader)
    if reader.head is None:
        return []
    if reader.port == "q":
        return [f"{reader.layer}.{reader.head}"]
    group = view.shape.n_heads // view.shape.n_kv_heads
    first = reader.head * group
    return [f"{reader.layer}.{head}" for head in range(first, first + group)]


def _edge(views: Sequence[CircuitView], index: int) -> dict[str, Any]:
    edge = views[0].edges[index]
    port = {"q": 0, "k": 1, "v": 2}.get(Node.parse(edge.reader).port or "", 3)
    row: dict[str, Any] = {
        "w": edge.writer,
        "r": edge.reader,
        "s": _round(edge.weight),
        "h": _heads_read(views[0], index),
        "t": port,
    }
    row["p"] = [list(map(_round, view.edges[index].by_pos)) for view in views]
    # what is not known is left out: a page repeats these keys for every edge
    if edge.interval is not None:
        row["i"] = list(map(_round, edge.interval))
    if edge.side:
        row["c"] = ("a", "b", "both").index(edge.side)
    return row


def _patterns(view: CircuitView, room: int) -> dict[str, str]:
    """Patterns as one byte per cell (254 is 1, 255 not measured), heads of the strongest edges first.

    Args:
        room: the most cells; patterns that no longer fit are left out.
    """
    heads: dict[str, None] = {}  # a dict in place of a set, to keep the order
    for i in range(len(view.edges)):
        heads |= dict.fromkeys(_heads_read(view, i))
    encoded = {}
    for name in heads:
        layer, head = map(int, name.split("."))
        pattern = view.patterns.get((layer, head))
        if pattern is None or pattern.size > room or pattern.shape[0] != pattern.shape[1]:
            continue
        # a large pattern is passed over, so that smaller ones after it may still fit
        room -= pattern.size
        bytes_of_weights = np.clip(np.nan_to_num(pattern) * 254 + 0.5, 0, 254)
        cells = np.where(np.isfinite(pattern), bytes_of_weights, 255).astype(np.uint8)
        encoded[name] = base64.b64encode(cells.tobytes()).decode()
    return encoded


def _round(value: float) -> float | None:
    if np.isfinite(value):
        return float(f"{value:.4g}")
    return None
