"""The words of a figure: what axes and series are called, its title, and the facts about its numbers.

Begin with `set_title` (figures of one panel) and `set_heading` (of several).
"""

import math
import textwrap

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.render.figures.canvas import CAPTION, GREY, INK
from workbench.render.figures.meaning import words_of
from workbench.render.writing import shorten
from workbench.text import visible

WORDS = {
    "pos": "position", "query_pos": "query position", "key_pos": "key position", "kv_head": "kv head",
    "size": "number of edges", "n_edges": "number of edges", "k": "number of features", "kl": "KL (nats)",
    "roc_auc": "area under the ROC curve",
}  # fmt: skip

LABEL = 16
"""Characters of a label."""
LONGEST = 28
"""Characters of a fact."""


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
    # one name for the activations of the other run, as in commands and tables
    given = {
        key: visible(result.attrs[key]).replace("from_store", "corrupt")
        for key in keys
        if result.attrs.get(key)
    }
    facts = [shorten(fact, LONGEST) for fact in given.values()]
    facts += [words_of(result)] if words_of(result) else []
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


def conclusion_of(result: xr.DataArray | xr.Dataset, width: float) -> list[str]:
    """What the figure shows, in lines of so many inches; none where the result does not say."""
    return textwrap.wrap(str(result.attrs.get("conclusion", "")), max(40, int(width * 14)))


def title_lines(title: str, width: float) -> str:
    """The title in up to three lines of so many inches, cut with an ellipsis after them."""
    return "\n".join(textwrap.wrap(visible(title), max(16, int(width * 8)), max_lines=3, placeholder="…"))


def set_title(axes: Axes, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of one panel, above the facts."""
    figure = axes.figure
    width = 6.0
    if isinstance(figure, Figure):  # a part of a figure has no width of its own
        width = figure.get_figwidth() - 0.8
    told, facts = conclusion_of(result, width), facts_of(result, width)
    # from the bottom: the facts, and what the figure shows above them
    heights = ((facts, 5, 8, GREY), (told, 7 + 12 * len(facts), 8.5, INK))
    for lines, height, size, colour in heights:
        if lines:
            text = axes.annotate(
                "\n".join(lines), xy=(0, 1), xycoords="axes fraction", xytext=(0, height),
                textcoords="offset points", fontsize=size, color=colour, va="bottom", gid=CAPTION,
            )  # fmt: skip
            # the layout would shrink the axes to fit a long line, which may run over their edge instead
            text.set_in_layout(False)
    heading = ""
    if title:
        heading = title_lines(title, width)
    elif told or facts:
        heading = " "  # an empty text would leave no room for the lines below it
    axes.set_title(heading, pad=8 + 12 * len(facts) + 13 * len(told), gid=CAPTION)


def set_heading(figure: Figure, result: xr.DataArray | xr.Dataset, title: str | None) -> None:
    """The title of a figure of several panels; the facts stand at its foot."""
    told = conclusion_of(result, figure.get_figwidth())
    if title or told:
        # matplotlib has one title of a figure and no line below it: the title is drawn on top of its lines
        heading = title_lines(title, figure.get_figwidth()) if title else ""
        below = "\n".join(told)
        # lines of the title are higher than those below it
        room = math.ceil(1.4 * (heading.count("\n") + 1)) if heading else 0
        figure.suptitle(
            "\n" * room + below, x=0.01, ha="left", fontsize=8.5, color=INK, linespacing=1.35, gid=CAPTION
        )
        if heading:
            figure.text(
                0.01, 1 - 0.06 / figure.get_figheight(), heading, ha="left", va="top", fontsize=11,
                fontweight="bold", in_layout=False, gid=CAPTION,
            )  # fmt: skip
    lines = facts_of(result, figure.get_figwidth())
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY, gid=CAPTION)
