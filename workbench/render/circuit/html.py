"""Circuits as interactive HTML that asks the network for nothing: `to_html`.

A figure is a still picture (`<img>` with the SVG inside, which survives in notebooks that drop scripts) that
a script replaces by the interactive circuit in a sandboxed frame. The document inside the frame is made by
`scenes`, its script is `circuit.js`, and how text is made safe is known to `page`.
"""

import base64
import hashlib

from workbench.circuit.circuit import Circuit
from workbench.render.circuit.page import asset, packed, script_json
from workbench.render.circuit.scenes import frame_document
from workbench.render.circuit.svg import to_svg
from workbench.render.circuit.view import CircuitView
from workbench.text import xml


def to_html(view: CircuitView) -> str:
    """A fragment of HTML: a still picture, and the script that makes it interactive. Same view, same text.

    The reader chooses how many of the strongest edges to see (with the faithfulness at that size beside it),
    by sign and by port, in the position view (which opens first, where scores by position are known) or that of
    components, on one of the prompts; opens an edge or a node
    (click, or Tab and Enter; Escape closes) to see its scores, intervals, patterns, what enters and what
    leaves it; and saves what is shown.
    """
    source = frame_document(view)
    name = hashlib.sha256(source.encode()).hexdigest()[:12]
    first = "position" if view.has_positions else "component"
    still = base64.b64encode(to_svg(view, kind=first).encode()).decode()
    # the document last: its letters might spell the other name
    script = asset("frame.js").replace("NAME", script_json(name))
    script = script.replace("SOURCE", script_json(packed(source)))
    address = f"data:image/svg+xml;base64,{still}"
    picture = f'<img alt="{xml(view.title)}" style="max-width:100%;height:auto" src="{address}">'
    return f'<div class="circuit" data-circuit="{name}">{picture}</div><script>{script}</script>'


def circuit_html(circuit: Circuit) -> str:
    """How a circuit shows itself in a notebook: `to_html` of its plain view."""
    return to_html(CircuitView.of(circuit))
