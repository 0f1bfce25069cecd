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
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from workbench.render.writing import BLUE
from workbench.text import xml

Title = str | None
Labels = Sequence[str] | None
"""Token strings of the position axes, where a result carries none."""
SHADES = "Blues"
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
    "text.parse_math": False,
}  # fmt: skip
LEGEND: dict[str, Any] = {
    "loc": "center left",
    "bbox_to_anchor": (1.01, 0.5),
    "frameon": False,
    "fontsize": 8,
}
DASHED: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (4, 3))}
"""A line that marks a level, such as the faithfulness 1 of the whole model."""
_SEQUENTIAL = (
    "pattern", "prob", "accuracy", "rank", "norm", "nll", "kl", "auroc", "count", "attention", "entropy",
)  # fmt: skip
"""Parts of the names of quantities that are never negative."""


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
    if (known < 0).any() or not is_sequential:
        return {"cmap": "RdBu", "norm": CenteredNorm(0, float(np.abs(known).max(initial=0)) or 1.0)}
    return {"cmap": SHADES, "norm": Normalize(0, float(known.max(initial=0)) or 1.0)}


def styled(changes: Mapping[str, Any] | None = None) -> Any:
    """The style of figures, while it is entered.

    Args:
        changes: settings of matplotlib that differ from it, such as `{"axes.titlesize": 9}`.
    """
    settings: dict[Any, Any] = STYLE | dict(changes or {})
    return matplotlib.rc_context(settings)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are, also on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())  # on a logarithmic axis minor ticks would get numbers too


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
        layout.set(w_pad=0.08)  # room, because text is a little wider at other resolutions
    with _any_glyph():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # without a layout engine nothing moves any more
    return figure


def figure_html(figure: Figure, *, alt: str = "") -> str:
    """The figure as an `<img>` with the SVG inside. Same figure, same bytes."""
    buffer = io.BytesIO()
    # a figure from elsewhere was not made in our style; a date would change the bytes at each run
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "workbench"}), _any_glyph():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<img class="plot" alt="{xml(alt)}" width="{width}" src="data:image/svg+xml;base64,{data}">'


@contextmanager
def _any_glyph() -> Iterator[None]:
    """Text stays text in SVG, drawn with the reader's fonts: a glyph missing from ours needs no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
