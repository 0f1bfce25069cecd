"""One self-contained page for a whole run: `report` puts circuits, panels, figures and tables on it.

Each of these is drawn by a module of its own; here is decided which draws what, and tables are written.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.files import check_free, whole
from workbench.render.circuit.html import to_html
from workbench.render.circuit.svg import CircuitView
from workbench.render.circuitsvis import script_html
from workbench.render.figures.canvas import figure_html
from workbench.render.page import Lead, page
from workbench.render.panel import Panel
from workbench.render.plots import plot
from workbench.results import versions
from workbench.text import visible, with_article, xml

Section = tuple[str, Any] | tuple[str, Any, str]
# A number with its interval, which stays on one line.
_INTERVAL = re.compile(r"-?[\d.,]+%? \[[^\]]*\]")
_FACTS = ("model", "data", "task", "metric", "value", "method", "base", "n", "seed")


@dataclass(frozen=True)
class Html:
    """HTML that goes into a report unchanged. Whoever writes it is responsible for what it does.

    Plain text is escaped instead.
    """

    text: str


@dataclass(frozen=True)
class Folded:
    """An item that opens with a click: exact numbers beside a figure, say.

    Attributes:
        label: what a reader clicks on, plain text.
        item: anything that a section may hold.
    """

    label: str
    item: Any


@dataclass(frozen=True)
class Warned:
    """A sentence that a reader must not miss."""

    text: str


@checked
def report(
    sections: Sequence[Section],
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    lead: Lead | None = None,
    command: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one self-contained HTML page, whole or not at all, and return its path.

    Args:
        sections: (heading, item) or (heading, item, caption). An item is a `Circuit` or `CircuitView`, a
            `Panel`, whatever `plot` draws (results, probes, sweeps), a matplotlib figure, a pandas table, text, `Html`,
            `Warned`, one of these `Folded`, or a list of these.
        path: of the page.
        title, subtitle: plain text.
        lead: the first block: what was asked and found, and what speaks against it.
        command: what made the run, shown at the end with the versions and the facts that the results carry.
        overwrite: replace a file that is there.
    Raises:
        OutputExists: something is at `path`.
        WorkbenchError: no title or section, or an item that cannot be shown.
    """
    if not isinstance(title, str):
        raise WorkbenchError(f"A report needs a title, and {title!r} is not text.")
    _check_sections(sections)
    path = Path(path)
    check_free(path, overwrite=overwrite)
    shown = list(map(_section, sections))
    pieces = [(one.heading, one.html) for one in shown]
    if any(isinstance(item, Panel) for one in shown for item in one.items):
        # the script of all panels, once; it works wherever it stands on the page
        pieces[-1] = shown[-1].heading, shown[-1].html + script_html()
    facts: dict[str, list[str]] = {}
    for one in shown:
        for item in one.items:
            for key, value in _facts(item).items():
                facts.setdefault(key, []).append(value)
    text = page(title, pieces, subtitle=subtitle, footer=_footer(command, facts), lead=lead)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


@dataclass(frozen=True)
class _Shown:
    """A section that was drawn: its heading, its items and their HTML with the caption."""

    heading: str
    items: Sequence[Any]
    html: str


def _section(section: Section) -> _Shown:
    heading, item = section[0], section[1]
    items = [item]
    if isinstance(item, list | tuple):
        items = item
    try:
        html = "".join(_show(one, heading) for one in items)
    except WorkbenchError as error:
        raise WorkbenchError(f"Section {heading!r} of the report: {error}") from error
    if len(section) == 3 and section[2]:
        html += f'<p class="caption">{xml(section[2])}</p>'
    return _Shown(heading, items, html)


def _check_sections(sections: Any) -> None:
    """Raises `WorkbenchError` for anything but a list of sections, and for an empty one."""
    is_list = isinstance(sections, Sequence) and not isinstance(sections, str)
    wrong = [one for one in sections if not _is_section(one)] if is_list else [sections]
    if wrong:
        raise WorkbenchError(
            "A report needs a list of sections, each (heading, item) or (heading, item, caption), not a "
            f"{_type_of(wrong[0])}."
        )
    if not sections:
        raise WorkbenchError("A report needs a section: (heading, item) or (heading, item, caption).")


def _is_section(one: Any) -> bool:
    if not isinstance(one, tuple | list) or len(one) not in (2, 3):
        return False
    return all(isinstance(text, str) for text in (one[0], *one[2:]))


def _type_of(section: Any) -> str:
    name = type(section).__name__
    if isinstance(section, tuple | list):
        return f"{name} of {len(section)}"
    return name


def _show(item: Any, heading: str) -> str:
    """One item as HTML."""
    if isinstance(item, Html):
        return item.text
    if isinstance(item, Folded):
        inside = _show(item.item, heading)
        return f'<details class="folded"><summary>{xml(item.label)}</summary>{inside}</details>'
    if isinstance(item, Warned):
        return f'<p class="text warned">{_lines(item.text)}</p>'
    if isinstance(item, str):
        paragraphs = [text for text in item.split("\n\n") if text.strip()]
        return "".join(f'<p class="text">{_lines(text)}</p>' for text in paragraphs)
    if isinstance(item, Panel):
        return item.html()
    if isinstance(item, pd.DataFrame):
        return _scrolling(_table(item), heading)
    if isinstance(item, pd.Series):
        return _scrolling(_table(item.to_frame()), heading)
    if isinstance(item, Figure):
        return figure_html(item, alt=heading)
    if isinstance(item, Circuit):
        return to_html(CircuitView.of(item))
    if isinstance(item, CircuitView):
        return to_html(item)
    try:
        return figure_html(plot(item), alt=heading)
    except WorkbenchError as error:
        raise WorkbenchError(
            f"{with_article(type(item).__name__)} cannot be shown. Circuits, views, panels, whatever `plot` draws, "
            "pandas tables, matplotlib figures, text, Html(...), Warned(...) and Folded(...) can. "
            f"{error}"
        ) from error


def _lines(text: str) -> str:
    # line by line, because `xml` would spell the ends of lines as visible characters
    return "\n".join(map(xml, text.splitlines()))


def _scrolling(table: str, heading: str) -> str:
    """A table in a box of its own, which scrolls where the page is narrower, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="table: {xml(heading)}">{table}</div>'


def _table(frame: pd.DataFrame) -> str:
    """An HTML table: numbers to four significant digits and aligned on the right, everything escaped."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()  # names of rows are content; numbers from 0 are not
    numeric = []
    for kind in frame.dtypes:
        # pandas counts booleans as numbers
        is_number = pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
        numeric.append(is_number)
    heads = _row("th", map(str, frame.columns), numeric)
    rows = ""
    digits = [_decimals(frame.iloc[:, i]) for i in range(frame.shape[1])]
    for row in frame.itertuples(index=False, name=None):
        rows += _row("td", map(_cell, row, digits), numeric)
    return f'<table class="table"><thead>{heads}</thead><tbody>{rows}</tbody></table>'


def _row(tag: str, texts: Iterable[str], numeric: Sequence[bool]) -> str:
    """A row of cells; those of a column of numbers are aligned on the right."""
    cells = ""
    for text, is_number in zip(texts, numeric, strict=True):
        style = ""
        if is_number:
            style = ' class="num"'
        elif _INTERVAL.fullmatch(text):
            style = ' class="interval"'
        cells += f"<{tag}{style}>{xml(text)}</{tag}>"
    return f"<tr>{cells}</tr>"


def _decimals(column: pd.Series) -> int | None:
    """Digits after the point for a column of numbers, so that all have the same; None where sizes differ too much."""
    if column.dtype.kind != "f":
        return None
    sizes = np.abs(column.to_numpy(dtype=float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes) or sizes.max() >= 1e4 or sizes.min() < 1e-3 * sizes.max():
        return None
    return int(np.clip(2 - np.floor(np.log10(sizes.max())), 0, 4))


def _cell(value: Any, decimals: int | None = None) -> str:
    """A value of a table as text: four significant digits or so many decimals, and a dash for what is missing."""
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "–"
        if abs(value) >= 1e4 and np.isfinite(value):
            return f"{value:,.0f}"
        shown = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
        return shown.replace("-", "−")
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)


def _facts(item: Any) -> dict[str, str]:
    """What a result says of where it comes from."""
    if isinstance(item, Folded):
        return _facts(item.item)
    if not isinstance(item, Circuit | xr.DataArray | xr.Dataset):
        return {}
    attrs = item.attrs
    return {key: visible(attrs[key]) for key in _FACTS if key in attrs}


def _footer(command: str | None, facts: dict[str, list[str]]) -> str:
    """The command, the facts of all results, and the versions of the libraries."""
    html = ""
    if command:
        html = f"<p>Made by</p><pre>{_lines(command)}</pre>"
    known = [f"{key} {', '.join(dict.fromkeys(facts[key]))}" for key in _FACTS if key in facts]
    if known:
        html += f"<p>{_dotted(known)}</p>"
    libraries = []
    for name, number in versions().items():
        libraries.append(f"{name.removeprefix('version_').replace('_', '-')} {number}")
    return html + f"<p>{_dotted(libraries)}</p>"


def _dotted(texts: Iterable[str]) -> str:
    return " · ".join(map(xml, texts))
