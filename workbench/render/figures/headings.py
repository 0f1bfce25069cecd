"""The words of a figure: what axes and series are called, its title, and the facts about its numbers.

Begin with `set_title` (figures of one panel) and `set_heading` (of several).
"""

import textwrap

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.figures.canvas import GREY
from workbench.render.writing import shorten
from workbench.text import visible

WORDS = {
    "pos": "position", "query_pos": "query position", "key_pos": "key position", "kv_head": "kv head",
    "size": "number of edges", "n_edges": "number of edges", "k": "number of features", "kl": "KL (nats)",
    "roc_auc": "area under the ROC curve",
}  # fmt: skip

LABEL = 16
"""Characters of a label."""


def word(name: object) -> str:
    """What an axis or a variable is called in a figure."""
    return WORDS.get(str(name), visible(str(name).replace("_", " ")))


def legend_name(name: object, most: int = 32) -> str:
    """A series in a legend, which matplotlib would leave out if its name began with `_`."""
    shown = shorten(visible(name), most)
    if shown.startswith("_"):
        return f" {shown}"
    return shown


def facts_of(result: xr.DataArray | xr.Dataset, width: float) -> list[str]:
    """The line or lines below a title: where the numbers come from, and notes on what is shown.

    `width` in inches.
    """
    keys = ("model", "task", "metric", "value", "method")
    facts = [shorten(visible(result.attrs[key]), LABEL) for key in keys if result.attrs.get(key)]
    facts += [visible(note) for note in str(result.attrs.get("note", "")).split(" · ") if note]
    # a letter of the small font is about a fifteenth of an inch wide
    most, lines = max(24, int(width * 15)), [""]
    for fact in facts:
        joined = " · ".join(filter(None, [lines[-1], fact]))
        if len(joined) <= most:
            lines[-1] = joined
        else:
            lines += textwrap.wrap(fact, most)
    return list(filter(None, lines))


def title_lines(title: str, width: float) -> str:
    """The title in up to three lines of so many inches, cut with an ellipsis after them."""
    return "\n".join(textwrap.wrap(visible(title), max(16, int(width * 8)), max_lines=3, placeholder="…"))


def set_title(axes: Axes, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of one panel, above the facts."""
    figure = axes.figure
    width = 6.0
    if isinstance(figure, Figure):  # a part of a figure has no width of its own
        width = figure.get_figwidth() - 1
    lines = facts_of(result, width)
    if lines:
        facts = axes.annotate(
            "\n".join(lines), xy=(0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points",
            fontsize=8, color=GREY, va="bottom",
        )  # fmt: skip
        # the layout would shrink the axes to fit a long line, which may run over their edge instead
        facts.set_in_layout(False)
    heading = ""
    if title:
        heading = title_lines(title, width)
    elif lines:
        heading = " "  # an empty text would leave no room for the facts
    axes.set_title(heading, pad=8 + 12 * len(lines))


def set_heading(figure: Figure, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of several panels; the facts stand at its foot."""
    if title:
        figure.suptitle(
            title_lines(title, figure.get_figwidth()), x=0.01, ha="left", fontsize=11, fontweight="bold"
        )
    lines = facts_of(result, figure.get_figwidth())
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY)
