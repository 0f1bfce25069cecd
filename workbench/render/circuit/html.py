"""Circuits and whole pages as HTML that asks the network for nothing.

A figure is a still picture (`<img>` with the SVG inside, which survives in notebooks that drop scripts) that
a script replaces by the interactive circuit in a sandboxed frame. All data enter scripts as JSON with `<`
spelled `\\u003c`, and the document as text; the page's Content-Security-Policy forbids every request.

Begin with `to_html` (a circuit) and `page` (a document around any HTML); `circuit.js` is the script inside
the frame.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from workbench.circuit.circuit import Circuit
from workbench.render.circuit.lines import Line, alive, cut, lines_of
from workbench.render.circuit.svg import Drawing, draw, to_svg
from workbench.render.circuit.view import CircuitView, ViewKind
from workbench.sites import Node
from workbench.text import visible, xml

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_PATTERN_CELLS = 400_000  # of all prompts together: more would make a page too large to send
_NEAR = 1.5  # the picture of the strongest edges has up to 1.5 times as many edges as are shown at first


def to_html(view: CircuitView) -> str:
    """A fragment of HTML: a still picture, and the script that makes it interactive. Same view, same text.

    The reader chooses how many of the strongest edges to see (with the faithfulness at that size beside it),
    by sign and by port, in the component or the position view, on one of the prompts; opens an edge or a node
    (click, or Tab and Enter; Escape closes) to see its scores, intervals, patterns, what enters and what
    leaves it; and saves what is shown.
    """
    source = frame_document(view)
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    still = base64.b64encode(to_svg(view).encode()).decode()
    # the document last: its letters might spell the other name
    script = asset("frame.js").replace("NAME", script_json(name))
    script = script.replace("SOURCE", script_json(packed(source)))
    address = f"data:image/svg+xml;base64,{still}"
    picture = f'<img alt="{xml(view.title)}" style="max-width:100%;height:auto" src="{address}">'
    return f'<div class="circuit" data-circuit="{name}">{picture}</div><script>{script}</script>'


def circuit_html(circuit: Circuit) -> str:
    """How a circuit shows itself in a notebook: `to_html` of its plain view."""
    return to_html(CircuitView.of(circuit))


def page(title: str, sections: Sequence[tuple[str, str]], *, subtitle: str = "", footer: str = "") -> str:
    """One self-contained HTML page.

    Args:
        title, subtitle: plain text, escaped here.
        sections: (heading, html); headings are escaped here, the html is taken as it is.
        footer: html at the end of the page.
    """
    entries, body = "", ""
    for number, (heading, html) in enumerate(sections, 1):
        entries += f'<li><a href="#s{number}">{xml(heading)}</a></li>'
        body += f'<section id="s{number}"><h2>{xml(heading)}</h2>{html}</section>'
    contents = f'<nav class="toc" aria-label="contents"><ol>{entries}</ol></nav>' if len(sections) > 1 else ""
    below = f'<p class="subtitle">{xml(subtitle)}</p>' if subtitle else ""
    foot = f"<footer>{footer}</footer>" if footer else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{xml(title)}</title><style>{asset('page.css')}</style></head>\n"
        f"<body><main><h1>{xml(title)}</h1>{below}{contents}{body}{foot}"
        "</main></body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever text is in it.

    ASCII only, so U+2028 is escaped too.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def packed(text: str) -> str:
    """Text as a browser's DecompressionStream unpacks it: gzip, base64, the same bytes everywhere."""
    data = bytearray(gzip.compress(text.encode(), 9, mtime=0))
    data[9] = 255  # this byte of the header names the operating system; 255 is "unknown"
    return base64.b64encode(data).decode()


@cache
def asset(name: str, package: str = "workbench.render.circuit") -> str:
    """The text of a file beside a module, of a script without the comment at its top."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    if name not in ("frame.js", "panels.js"):
        return text
    return text[text.index("(async") :].rstrip()


def frame_document(view: CircuitView) -> str:
    """The document inside the frame."""
    scenes = _scenes(view)
    prompts = [view, *view.more]
    data = {
        "scored": view.scored,
        "title": visible(view.title),
        "prompts": [[visible(token) for token in one.tokens] for one in prompts],
        "edges": [_edge(prompts, i) for i in range(len(view.edges))],
        "patterns": [_patterns(one, _PATTERN_CELLS // len(prompts)) for one in prompts],
        "curve": [[n, *map(_round, shares)] for n, *shares in view.curve],
        "sides": [visible(name) for name in view.sides],
        "scenes": {scene.name: scene.data for scene in scenes},
    }
    pictures = "".join(scene.html for scene in scenes)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{xml(view.title)}</title>'
        f"<style>{asset('frame.css')}</style></head><body>{_controls(view)}{pictures}"
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
    """The component view, and the position view of each prompt that has scores by position."""
    scenes = _component_scenes(view)
    for number, one in enumerate([view, *view.more]):
        if one.has_positions:
            scenes.append(_position_scene(one, f"position-{number}"))
    return scenes


def _component_scenes(view: CircuitView) -> list[_Scene]:
    lines = lines_of(view, "component")
    start = cut(lines, view.top) if view.scored else len(lines)
    shown = alive(lines)
    first = {"start": len(set(lines[:start]) & set(shown)), "known": view.count("component")}
    scenes = [_scene(view, "component", "component", shown, first)]
    strongest = lines[: cut(lines, int(_NEAR * view.top))] if view.scored else lines
    near = alive(strongest)
    if 2 * len(near) < len(shown):
        # a picture of the strongest alone, without the room that the rest takes
        limit = {"limit": len(set(strongest) & set(shown))}
        scenes.append(_scene(view, "component", "component-near", near, limit))
    return scenes


def _position_scene(view: CircuitView, name: str) -> _Scene:
    lines = lines_of(view, "position")
    start = cut(lines, view.top) if view.scored else len(lines)
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


def _controls(view: CircuitView) -> str:
    """The row of buttons, sliders and filters above a picture."""
    hint = "" if view.has_positions else ' title="scores by position are not known"'
    filters = "".join(_filter(name, labels) for name, labels in _filters(view).items())
    return (
        '<nav aria-label="what is shown">'
        '<span><button id="to-component">component</button>'
        f'<button id="to-position"{hint}>position</button></span>'
        '<label>edges <input id="top" type="range" min="1" step="1"></label>'
        '<output id="count" for="top"></output><output id="faith" for="top"></output>'
        f"{_prompt_choice(view)}{filters}"
        '<span class="tools"><button id="theme" aria-pressed="false">dark</button>'
        '<button id="save-svg">SVG</button><button id="save-png">PNG</button></span></nav>'
    )


def _filters(view: CircuitView) -> dict[str, list[str]]:
    """Names of groups of checkboxes, and the labels of each."""
    filters = {}
    if view.sides:
        filters["circuits"] = [f"only {view.sides[0]}", f"only {view.sides[1]}", "both"]
    elif view.scored:
        filters["signs"] = ["supports", "opposes"]
    if view.edges:
        filters["ports"] = ["q", "k", "v", "other"]
    return filters


def _filter(name: str, labels: Sequence[str]) -> str:
    boxes = ""
    for value, label in enumerate(labels):
        box = f'<input type="checkbox" checked data-filter="{name}" value="{value}">'
        boxes += f"<label>{box}{xml(visible(label))}</label>"
    return f"<fieldset><legend>{name}</legend>{boxes}</fieldset>"


def _prompt_choice(view: CircuitView) -> str:
    if not view.more:
        return ""
    options = ""
    for value, one in enumerate([view, *view.more]):
        options += f'<option value="{value}">{value + 1}: {xml(_end_of_prompt(one))}</option>'
    return f'<label>prompt <select id="prompt">{options}</select></label>'


def _end_of_prompt(view: CircuitView) -> str:
    """The last words of a prompt, which tell it from others."""
    words = " ".join(visible(token).strip("·") for token in view.tokens)
    if len(words) <= 48:
        return words
    return "…" + words[-47:]


def _scene_data(drawing: Drawing) -> dict[str, Any]:
    """Lines, hops and boxes by number, as `circuit.js` says at its top."""
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
    row["p"] = [[_round(x) for x in view.edges[index].by_pos] for view in views]
    if edge.interval is not None:
        row["i"] = [_round(end) for end in edge.interval]
    if edge.side:
        row["c"] = ("a", "b", "both").index(edge.side)
    return row


def _patterns(view: CircuitView, room: int) -> dict[str, str]:
    """Patterns as one byte per cell (254 is 1, 255 not measured), heads of the strongest edges first.

    Args:
        room: the most cells; patterns that no longer fit are left out.
    """
    heads = dict.fromkeys(head for i in range(len(view.edges)) for head in _heads_read(view, i))
    encoded = {}
    for name in heads:
        layer, head = map(int, name.split("."))
        pattern = view.patterns.get((layer, head))
        if pattern is None or pattern.size > room or pattern.shape[0] != pattern.shape[1]:
            continue
        room -= pattern.size
        bytes_of_weights = np.clip(np.nan_to_num(pattern) * 254 + 0.5, 0, 254)
        cells = np.where(np.isfinite(pattern), bytes_of_weights, 255).astype(np.uint8)
        encoded[name] = base64.b64encode(cells.tobytes()).decode()
    return encoded


def _round(value: float) -> float | None:
    if np.isfinite(value):
        return float(f"{value:.4g}")
    return None
