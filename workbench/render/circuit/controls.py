"""The row of buttons, sliders and filters above an interactive circuit: `controls`.

What they do is said in `circuit.js`.
"""

from collections.abc import Sequence

from workbench.render.circuit.view import CircuitView
from workbench.text import visible, xml


def controls(view: CircuitView) -> str:
    """The row of buttons, sliders and filters above a picture."""
    hint = ""
    if not view.has_positions:
        # the button stays, so that readers learn that there is such a view and why it is empty
        hint = ' title="scores by position are not known"'
    filters = "".join(_filter(name, labels) for name, labels in _filters(view).items())
    return (
        '<nav aria-label="what is shown">'
        f'<span><button id="to-position"{hint}>position</button>'
        '<button id="to-component">component</button></span>'
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
    # prompts of one task begin alike; what differs, and what is asked, stands at the end
    if len(words) <= 48:
        return words
    return "…" + words[-47:]
