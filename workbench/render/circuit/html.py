"""Circuits and whole pages as HTML that asks the network for nothing.

A figure is a still picture (`<img>` with the SVG inside, which survives in notebooks that drop scripts) that a script
replaces by the interactive circuit in a sandboxed frame. All data enter scripts as JSON with `<` spelled `\\u003c`, and
the document as text; the page's Content-Security-Policy forbids every request.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
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
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)
_PATTERN_CELLS = 400_000
_NEAR = 1.5  # the picture of the strongest edges reaches as far as so many times those shown at first
_UPGRADE = """(async () => {
  const bytes = Uint8Array.from(atob(%s), (c) => c.charCodeAt(0)), id = %s;
  const source = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  for (const box of document.querySelectorAll('[data-circuit="' + id + '"]:not([data-live])')) {
    box.dataset.live = "";
    const frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts allow-downloads");
    frame.title = "interactive circuit";
    frame.style.cssText = "width:100%%;border:0;height:0";
    addEventListener("message", (event) => {
      if (event.source !== frame.contentWindow) return;
      frame.style.height = Math.min(6000, Number(event.data.height) + 4 || 600) + "px";
      box.dataset.edges = Number(event.data.edges);
      box.querySelector("img").style.display = "none";
    });
    frame.srcdoc = source;
    box.append(frame);
  }
})();"""


def to_html(view: CircuitView) -> str:
    """A fragment of HTML: a still picture, and the script that makes it interactive. Same view, same text.

    The reader chooses how many of the strongest edges to see (with the faithfulness at that size beside it), by sign and by
    port, in the component or the position view, on one of the prompts; opens an edge or a node (click, or Tab and Enter;
    Escape closes) to see its scores, intervals, patterns, what enters and what leaves it; and saves what is shown.
    """
    source = frame_document(view)
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    still = base64.b64encode(to_svg(view).encode()).decode()
    script = _UPGRADE % (script_json(packed(source)), script_json(name))
    picture = f'<img alt="{xml(view.title)}" style="max-width:100%;height:auto" src="data:image/svg+xml;base64,{still}">'
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
    entries = "".join(
        f'<li><a href="#s{i}">{xml(heading)}</a></li>' for i, (heading, _) in enumerate(sections, 1)
    )
    contents = f'<nav class="toc" aria-label="contents"><ol>{entries}</ol></nav>' if len(sections) > 1 else ""
    body = "".join(
        f'<section id="s{i}"><h2>{xml(heading)}</h2>{text}</section>'
        for i, (heading, text) in enumerate(sections, 1)
    )
    below = f'<p class="subtitle">{xml(subtitle)}</p>' if subtitle else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{xml(title)}</title><style>{asset('page.css')}</style></head>\n"
        f"<body><main><h1>{xml(title)}</h1>{below}{contents}{body}{f'<footer>{footer}</footer>' if footer else ''}"
        "</main></body></html>\n"
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever text is in it; ASCII only, so U+2028 is escaped too."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


def packed(text: str) -> str:
    """Text as a browser's DecompressionStream unpacks it: gzip, base64, the same bytes everywhere."""
    made = bytearray(gzip.compress(text.encode(), 9, mtime=0))
    made[9] = 255  # the header names the operating system
    return base64.b64encode(made).decode()


@cache
def asset(name: str) -> str:
    """The text of a file that lies beside this module."""
    return files("workbench.render.circuit").joinpath(name).read_text(encoding="utf-8")


def frame_document(view: CircuitView) -> str:
    """The document inside the frame."""
    scenes: dict[str, dict[str, Any]] = {}
    pictures = ""
    prompts = [view, *view.more]
    for number, one in enumerate(prompts):
        kinds: list[ViewKind] = [
            *(["component"] if number == 0 else []),
            *(["position"] if one.has_positions else []),
        ]
        for kind in kinds:
            lines = lines_of(one, kind)
            start = cut(lines, one.top) if one.scored else len(lines)
            most = len(lines) if kind == "component" else cut(lines, 2 * one.top)
            kept = alive(lines[:most])
            name = kind if kind == "component" else f"position-{number}"
            scenes[name] = {"start": len(set(lines[:start]) & set(kept)), "known": one.count(kind)}
            drawn = {name: kept}
            strongest = lines[: cut(lines, int(_NEAR * one.top))] if one.scored else lines
            if kind == "component" and 2 * len(near := alive(strongest)) < len(kept):
                # a picture of the strongest alone, without the room that the rest takes
                drawn[f"{name}-near"] = near
                scenes[f"{name}-near"] = {"limit": len(set(strongest) & set(kept))}
            for name, some in drawn.items():
                drawing = draw(one, kind, some)
                scenes[name] |= _scene(drawing)
                width = drawing.width * 0.72
                pictures += f'<div class="scene" id="{name}"><div style="min-width:{width:.0f}px">{drawing.svg}</div></div>'
    data = {
        "scored": view.scored,
        "title": visible(view.title),
        "prompts": [[visible(token) for token in one.tokens] for one in prompts],
        "edges": [_edge(prompts, i) for i in range(len(view.edges))],
        "patterns": [_patterns(one, _PATTERN_CELLS // len(prompts)) for one in prompts],
        "curve": [[n, *(_round(value) for value in row)] for n, *row in view.curve],
        "sides": [visible(name) for name in view.sides],
        "scenes": scenes,
    }
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{xml(view.title)}</title>'
        f"<style>{asset('frame.css')}</style></head><body>{_controls(view)}{pictures}"
        '<div id="detail" aria-live="polite"></div>'
        f'<script type="application/json" id="data">{script_json(data)}</script>'
        f"<script>{asset('circuit.js')}</script></body></html>"
    )


def _controls(view: CircuitView) -> str:
    hint = "" if view.has_positions else ' title="scores by position are not known"'
    groups = {"ports": ["q", "k", "v", "other"]} if view.edges else {}
    if view.sides:
        groups = {"circuits": [f"only {view.sides[0]}", f"only {view.sides[1]}", "both"], **groups}
    elif view.scored:
        groups = {"signs": ["supports", "opposes"], **groups}
    filters = ""
    for name, labels in groups.items():
        boxes = "".join(
            f'<label><input type="checkbox" checked data-filter="{name}" value="{i}">{xml(visible(label))}</label>'
            for i, label in enumerate(labels)
        )
        filters += f"<fieldset><legend>{name}</legend>{boxes}</fieldset>"
    options = "".join(
        f'<option value="{i}">{i + 1}: {xml(_start_of(one))}</option>'
        for i, one in enumerate([view, *view.more])
    )
    prompts = f'<label>prompt <select id="prompt">{options}</select></label>' if view.more else ""
    return (
        f'<nav aria-label="what is shown"><span><button id="to-component">component</button><button id="to-position"{hint}>'
        'position</button></span><label>edges <input id="top" type="range" min="1" step="1"></label>'
        f'<output id="count" for="top"></output><output id="faith" for="top"></output>{prompts}{filters}'
        '<span class="tools"><button id="theme" aria-pressed="false">dark</button><button id="save-svg">SVG</button>'
        '<button id="save-png">PNG</button></span></nav>'
    )


def _start_of(view: CircuitView) -> str:
    """The end of a prompt, to tell it from others by."""
    words = " ".join(visible(token).strip("·") for token in view.tokens)
    return words if len(words) <= 48 else "…" + words[-47:]


def _scene(drawing: Drawing) -> dict[str, Any]:
    units = {"input": 0, "logits": 1}
    at = {node.key: i for i, node in enumerate(drawing.boxes)}

    def unit(name: str) -> int:
        return units.setdefault(name, len(units))

    def row(line: Line) -> list[Any]:
        position = -1 if line.pos is None else line.pos
        fed, shared = [unit(name) for name in line.feeds], int(line.port in ("k", "v"))
        return [
            line.edge,
            position,
            _round(line.weight),
            unit(line.unit),
            fed,
            at[line.start],
            at[line.end],
            shared,
        ]

    hops = [[at[hop.start], at[hop.end]] for hop in drawing.hops]
    keys = [node.key for node in drawing.boxes]
    return {"lines": [row(line) for line in drawing.lines], "hops": hops, "nodes": keys}


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
    """Patterns as one byte per cell (254 is 1, 255 not measured), heads of the strongest edges first, up to so many cells."""
    wanted = dict.fromkeys(head for i in range(len(view.edges)) for head in _heads_read(view, i))
    kept = {}
    for name in wanted:
        layer, head = (int(part) for part in name.split("."))
        pattern = view.patterns.get((layer, head))
        if pattern is None or pattern.size > room or pattern.shape[0] != pattern.shape[1]:
            continue
        room -= pattern.size
        cells = np.where(
            np.isfinite(pattern), np.clip(np.nan_to_num(pattern) * 254 + 0.5, 0, 254), 255
        ).astype(np.uint8)
        kept[name] = base64.b64encode(cells.tobytes()).decode()
    return kept


def _round(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
