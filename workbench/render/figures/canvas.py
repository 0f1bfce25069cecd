"""What every figure shares: its style and palettes, and how it becomes bytes.

Figures are made without pyplot and without a global theme. A palette that diverges is centred on 0; a cell
that was not measured is hatched, never coloured as 0. Begin with `Picture`, `styled` and `settled`, which
every figure uses; words and axes are in `headings` and `axis_labels`. Nothing here knows what kind of result
is drawn.
"""

import base64
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from workbench.render.figures.meaning import supporting_sign
from workbench.render.writing import BLUE, FONT, ORANGE
from workbench.text import xml

Title = str | None
Labels = Sequence[str] | None
"""Token strings of the position axes, where a result carries none."""
CAPTION = "caption"
"""The mark of texts that a paper has below its figure: the title, what it shows, where the numbers come from."""
SHADES = "Blues"
SIGNED = LinearSegmentedColormap.from_list(
    "supports", ["#7c2d12", ORANGE, "#fbd9bd", "#f8f8f8", "#cde1f4", BLUE, "#123c66"]
)
"""Orange below 0, blue above; its reverse where negative numbers show support."""
CLIPPED = 4.0
"""Colours end at so many times the 90th percentile, so that one cell cannot turn all others white."""
GREY = "#64748b"
INK = "#334155"
SERIES = (BLUE, "#b45309", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f", "#0891b2", "#475569", "#a16207")
GROUND: dict[str, Any] = {"facecolor": "#e5e7eb", "edgecolor": "#b6bec9", "hatch": "////"}
"""How a cell looks that was not measured."""
# Text stays text in SVG, so that it can be searched and is small. The salt makes ids, and so the bytes, the
# same in every run. Token text may hold a `$`, which matplotlib would take for the beginning of a formula.
STYLE: dict[Any, Any] = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.edgecolor": GREY, "xtick.color": "#475569", "ytick.color": "#475569",
    "axes.labelcolor": "#1f2937", "svg.fonttype": "none", "svg.hashsalt": "workbench", "hatch.linewidth": 0.6,
    "text.parse_math": False, "pdf.fonttype": 42, "font.family": "DejaVu Sans",
}  # fmt: skip
LEGEND: dict[str, Any] = {
    "loc": "center left",
    "bbox_to_anchor": (1.01, 0.5),
    "frameon": False,
    "fontsize": 8,
}
DASHED: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}
"""A line that marks a level, such as the faithfulness 1 of the whole model."""
NARROWEST = 6.4
"""Inches that a figure has at least: its title, and what it says, need them."""
_DARK_INKS = {
    GREY: "#a8b5c7", INK: "#cbd5e1", "#475569": "#b6c2d2", "#1f2937": "#e2e8f0", "#000000": "#f1f5f9",
    "#e5e9ef": "#2b3950", "#ffffff": "#0f172a", BLUE: "#6aa9ea", ORANGE: "#f0883e", "#dcf0e3": "#17402b",
    "#b45309": "#f2a65a", "#0f766e": "#3fbfae", "#7c3aed": "#b79df0", "#cbd5e1": "#475569",
}  # fmt: skip
"""Colours of the style, and what each is on dark paper."""


def _dark_style() -> bytes:
    """A style for SVG whose colours change with the page: matplotlib writes each colour into the `style` of its
    elements, and rules of a style sheet with `!important` are stronger.
    """
    rules = []
    for light, dark in _DARK_INKS.items():
        rules.append(f'[style*="fill: {light}"]{{fill:{dark}!important}}')
        rules.append(f'[style*="stroke: {light}"]{{stroke:{dark}!important}}')
    # text without a colour of its own is black
    rules.append('text:not([style*="fill:"]){fill:#f1f5f9}')
    # the numbers within cells keep the ink that can be read on the colour of the cell, which stays
    rules.append(
        f'[id^="{CELL}"] text{{fill:#1f2937!important}}[id^="{CELL}-dark"] text{{fill:#fff!important}}'
    )
    fonts = f"text{{font-family:{FONT}!important}}"
    return f"<style>{fonts}@media(prefers-color-scheme:dark){{{''.join(rules)}}}</style>".encode()


CELL = "cell"
"""The mark of a text within a coloured cell."""
DARK = _dark_style()
_SEQUENTIAL = (
    "pattern", "prob", "accuracy", "rank", "norm", "nll", "kl", "auroc", "count", "attention", "entropy",
)  # fmt: skip
"""Parts of the names of quantities that are never negative."""


_narrow = ContextVar("narrow", default=False)


def is_narrow() -> bool:
    """Whether what is drawn has to fit a column: panels one below the other, the legend below them."""
    return _narrow.get()


@contextmanager
def for_column() -> Iterator[None]:
    """Figures that are drawn within are laid out for a column of a paper."""
    token = _narrow.set(True)
    try:
        yield
    finally:
        _narrow.reset(token)


def common_legend(figure: Figure, handles: Any, labels: Any, **options: Any) -> None:
    """One legend for all panels: at the right, in a column of a paper below them."""
    place: dict[str, Any] = {"loc": "outside right lower"}
    if is_narrow():
        place = {"loc": "outside lower center", "ncols": 2}
    figure.legend(handles, labels, **(options | place), frameon=False, fontsize=8)


class Picture(Figure):
    """A figure that a notebook shows by itself, whether or not a backend of pyplot is there."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def palette(result: xr.DataArray) -> dict[str, Any]:
    """The colours of cells: centred on 0 for two signs and for effects, otherwise one colour from 0 up."""
    known = result.values[np.isfinite(result.values)]
    quantity = result.name
    if quantity is None:
        quantity = result.attrs.get("kind", "")
    # an effect that happens to be positive everywhere keeps the colour of positive effects
    is_sequential = any(name in str(quantity).lower() for name in _SEQUENTIAL)
    # `or 1.0`: a result of zeros alone has no scale, and a colour bar from 0 to 0 cannot be drawn
    largest = scale_of(known)
    if (known < 0).any() or not is_sequential:
        colours = SIGNED.reversed() if supporting_sign(result) < 0 else SIGNED
        return {"cmap": colours, "norm": CenteredNorm(0, largest)}
    return {"cmap": SHADES, "norm": Normalize(0, largest)}


def scale_of(known: np.ndarray) -> float:
    """The size at which colours are full: the largest, unless it is far beyond nearly all others."""
    sizes = np.abs(known[known != 0])
    largest = float(sizes.max(initial=0)) or 1.0
    if len(sizes) < 20:  # of a few cells, the largest is what is looked for
        return largest
    return min(largest, CLIPPED * float(np.quantile(sizes, 0.9)))


def styled(changes: Mapping[str, Any] | None = None) -> Any:
    """The style of figures, while it is entered.

    Args:
        changes: settings of matplotlib that differ from it, such as `{"axes.titlesize": 9}`.
    """
    settings: dict[Any, Any] = STYLE | dict(changes or {})
    return matplotlib.rc_context(settings)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are, also on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_formatter(NullFormatter())  # on a logarithmic axis minor ticks would get numbers too


def _plain_number(value: float, place: int) -> str:
    # a function of the module, because a figure with a lambda cannot be copied
    return f"{value:,g}"


def light_grid(axes: Axes, which: str = "y") -> None:
    """Faint lines behind what is drawn."""
    axes.grid(axis=which, color="#e5e9ef")  # pyright: ignore[reportArgumentType]
    axes.set_axisbelow(True)


def settled(figure: Figure) -> Figure:
    """The figure with its layout computed once.

    Computed again at each drawing, the layout would shift a little each time, and change the bytes.
    """
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(w_pad=0.16)  # room, because text is a little wider at other resolutions
    with _any_glyph():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # without a layout engine nothing moves any more
    return figure


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """The figure as an `<img>` with the SVG inside, which follows the dark mode of the page. Same figure, same
    bytes.
    """
    buffer = io.BytesIO()
    # a figure from elsewhere was not made in our style; a date would change the bytes at each run
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "workbench"}), _any_glyph():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    # after the first tag: the style of matplotlib's own follows it
    start = svg.index(b"<defs>")
    data = base64.b64encode(svg[:start] + DARK + svg[start:]).decode()
    width = round(figure.get_figwidth() * 96)
    # the box scrolls where a page is narrower than the text of a figure allows
    return (
        f'<div class="figure" tabindex="0" role="group" aria-label="{xml(alt) or "figure"}"><img class="plot" '
        f'alt="{xml(alt)}" width="{width}" src="data:image/svg+xml;base64,{data}"></div>'
    )


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Text stays text in SVG, drawn with the reader's fonts: a glyph missing from ours needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
