"""Figures as files of a paper: `save_figure`, at the width of a column, with text that can be read there."""

import pickle
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from workbench.errors import UnknownName, WorkbenchError, warn
from workbench.files import check_free, whole
from workbench.render.figures.canvas import CAPTION, STYLE

WIDTHS = {"column": 3.25, "text": 6.75}
"""Inches: a column of two, and the text of a page, as in the styles of ICML and ACL."""
Width = Literal["column", "text"] | float
NARROW = 4.5
"""Inches below which a result is drawn for a column: panels one below the other."""
TIGHT = 0.4
"""Below this share of its own width a figure has too little room."""
SUFFIXES = (".pdf", ".svg", ".png")
SMALLEST, LARGEST = 6.0, 8.0
"""Points of text in a figure of a paper."""


def inches_of(width: Width) -> float:
    """A width in inches.

    Raises:
        UnknownName: a name other than "column" and "text".
        WorkbenchError: less than an inch, or more than 40.

    >>> inches_of("column"), inches_of(5)
    (3.25, 5.0)
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise UnknownName("width", width, WIDTHS)
        return WIDTHS[width]
    if not 1 <= width <= 40:
        raise WorkbenchError(f"width={width!r}: a width in inches from 1 to 40, or 'column', 'text'.")
    return float(width)


def save_figure(
    figure: Figure, path: str | Path, *, width: Width | None = None, overwrite: bool = False
) -> Path:
    """Write a figure as .pdf, .svg or .png, whole or not at all, and return its path.

    With a width the figure is laid out anew for a paper: in that width, with text of 6 to 8 points, and without
    its title and the lines below it, which a paper has in its caption (`figure_caption`).

    Args:
        path: its suffix says the format. Text stays text in .svg and .pdf.
        width: "column" (3.25 inches), "text" (6.75), or inches; None keeps the size of the screen.
        overwrite: replace a file that is there.
    Raises:
        UnknownName: another suffix, or another name of a width.
        OutputExists: a file is at `path`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UnknownName("suffix", path.suffix, SUFFIXES)
    check_free(path, overwrite=overwrite)
    if width is not None:
        figure = _for_paper(figure, inches_of(width))
    kind = path.suffix.lower().removeprefix(".")
    # a date would change the bytes at each run
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    with rc_context(STYLE), whole(path) as partial:
        figure.savefig(partial, format=kind, dpi=300, metadata=metadata)
    return path


def figure_caption(figure: Figure) -> str:
    """What a paper says below the figure: its title, what it shows, and where the numbers come from."""
    lines = [text for text in _texts(figure) if text.get_gid() == CAPTION and text.get_text().strip()]
    # the title is the largest, then what the figure shows, then the facts
    lines.sort(key=lambda text: -float(text.get_fontsize()))
    return " ".join(f"{_in_one_line(text.get_text()).rstrip('.')}." for text in lines)


def _in_one_line(text: str) -> str:
    """The lines of a sentence joined by spaces, those of facts between dots by dots."""
    glue = " · " if " · " in text else " "
    return glue.join(" ".join(line.split()) for line in text.splitlines())


def _texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text)]


def _for_paper(figure: Figure, width: float) -> Figure:
    """A copy of the figure in a width, laid out anew."""
    try:
        copied: Figure = pickle.loads(pickle.dumps(figure))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise WorkbenchError(
            f"This figure cannot be laid out at another width: {error}. Leave out width=, or draw it with "
            "figsize= at the width that it should have."
        ) from error
    before = copied.get_size_inches()
    if width < TIGHT * before[0]:
        warn(
            f"save_figure: this figure is {before[0]:.1f} inches wide, and in {width:g} inches text leaves its panels "
            "little room: look at it, or use width='text'."
        )
    for text in _texts(copied):
        if text.get_gid() == CAPTION:
            text.set_text("")
        text.set_fontsize(min(LARGEST, max(SMALLEST, float(text.get_fontsize()) * width / before[0] * 1.25)))
    for line in copied.findobj(Line2D):
        assert isinstance(line, Line2D)
        line.set_markersize(float(line.get_markersize()) * min(1.0, 1.3 * width / before[0]))
    # text shrinks less than the figure, so that the figure becomes a little higher for its width
    copied.set_size_inches(width, before[1] * max(0.5, min(1.0, 1.35 * width / before[0])))
    copied.set_layout_engine("constrained")
    copied.draw_without_rendering()
    return copied
