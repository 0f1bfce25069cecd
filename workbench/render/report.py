"""One self-contained page for a whole run: circuit, panels, heatmaps, curves, tables, and the command that made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.files import check_free, whole
from workbench.render.circuit.html import page, to_html
from workbench.render.circuit.svg import CircuitView
from workbench.render.figures.canvas import figure_html
from workbench.render.panel import Panel, script_html
from workbench.render.plots import plot
from workbench.results import versions
from workbench.text import visible, xml

Section = tuple[str, Any] | tuple[str, Any, str]
_FACTS = ("model", "data", "task", "metric", "value", "method", "base", "n", "seed")


@dataclass(frozen=True)
class Html:
    """HTML that goes into a report as it is. Its author answers for what is in it; plain text is escaped instead."""

    text: str


def report(
    sections: Sequence[Section],
    path: str | Path,
    *,
    title: str,
    subtitle: str = "",
    command: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one HTML page that asks the network for nothing, whole or not at all; its path comes back.

    Args:
        sections: (heading, item) or (heading, item, caption). An item is a `Circuit` or `CircuitView`, a
            `Panel`, an xarray result (drawn by `plot`), a matplotlib figure, a pandas table, text, `Html`, or a
            list of these.
        path: of the page.
        title, subtitle: plain text.
        command: what made the run, shown at the end with the versions and the facts that the results carry.
        overwrite: replace a file that is there.
    Raises:
        OutputExists: something is at `path`.  WorkbenchError: no title or section, or an item that cannot be shown.
    """
    if not isinstance(title, str):
        raise WorkbenchError(f"A report needs a title, and {title!r} is no text.")
    _check_sections(sections)
    path = Path(path)
    check_free(path, overwrite=overwrite)
    drawn: list[tuple[str, str]] = []
    panels, facts = False, {}
    for section in sections:
        heading, item = section[0], section[1]
        caption = section[2] if len(section) == 3 else ""
        items = item if isinstance(item, list | tuple) else [item]
        try:
            text = "".join(_show(one, heading) for one in items)
        except WorkbenchError as error:
            raise WorkbenchError(f"Section {heading!r} of the report: {error}") from error
        panels = panels or any(isinstance(one, Panel) for one in items)
        for one in items:
            for key, value in _attrs(one).items():
                facts.setdefault(key, []).append(value)
        drawn.append((heading, text + (f'<p class="caption">{xml(caption)}</p>' if caption else "")))
    if panels:
        heading, text = drawn[-1]
        drawn[-1] = heading, text + script_html()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_text(
            page(title, drawn, subtitle=subtitle, footer=_footer(command, facts)), encoding="utf-8"
        )
    return path


def _check_sections(sections: Any) -> None:
    good = isinstance(sections, Sequence) and not isinstance(sections, str)
    wrong = [one for one in sections if not _is_section(one)] if good else [sections]
    if wrong:
        raise WorkbenchError(
            f"A report has a list of sections, (heading, item) or (heading, item, caption) each, and no {_told(wrong[0])}."
        )
    if not sections:
        raise WorkbenchError("A report needs a section: (heading, item) or (heading, item, caption).")


def _is_section(one: Any) -> bool:
    return (
        isinstance(one, tuple | list)
        and len(one) in (2, 3)
        and all(isinstance(text, str) for text in (one[0], *one[2:]))
    )


def _told(section: Any) -> str:
    return (
        f"{type(section).__name__} of {len(section)}"
        if isinstance(section, tuple | list)
        else type(section).__name__
    )


def _show(item: Any, heading: str) -> str:
    if isinstance(item, Html):
        return item.text
    if isinstance(item, str):
        return "".join(
            f'<p class="text">{_paragraph(part)}</p>' for part in item.split("\n\n") if part.strip()
        )
    if isinstance(item, Panel):
        return item.html()
    if isinstance(item, pd.DataFrame):
        return _table(item)
    if isinstance(item, pd.Series):
        return _table(item.to_frame())
    if isinstance(item, Figure):
        return figure_html(item, alt=heading)
    if isinstance(item, Circuit):
        return to_html(CircuitView.of(item))
    if isinstance(item, CircuitView):
        return to_html(item)
    if isinstance(item, xr.DataArray | xr.Dataset):
        return figure_html(plot(item), alt=heading)
    raise WorkbenchError(
        f"a {type(item).__name__} cannot be shown. Circuits, views, panels, xarray results, pandas tables, matplotlib figures, "
        "text and Html(...) can."
    )


def _paragraph(text: str) -> str:
    return "\n".join(xml(line) for line in text.splitlines())


def _table(frame: pd.DataFrame) -> str:
    """An HTML table: numbers to four significant digits and aligned on the right, everything escaped."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    numeric = [
        pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes
    ]
    heads = "".join(
        f"<th{_right(right)}>{xml(name)}</th>" for name, right in zip(frame.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_right(right)}>{xml(_cell(value))}</td>" for value, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return f'<table class="table"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _right(numeric: bool) -> str:
    return ' class="num"' if numeric else ""


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return "–"
        return (
            f"{value:,.0f}" if abs(value) >= 1e4 and np.isfinite(value) else f"{value:.4g}".replace("-", "−")
        )
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)


def _attrs(item: Any) -> dict[str, str]:
    attrs = item.attrs if isinstance(item, Circuit | xr.DataArray | xr.Dataset) else {}
    return {key: visible(attrs[key]) for key in _FACTS if key in attrs}


def _footer(command: str | None, facts: dict[str, list[str]]) -> str:
    lines = f"<p>Made by</p><pre>{_paragraph(command)}</pre>" if command else ""
    told = [f"{key} {', '.join(dict.fromkeys(facts[key]))}" for key in _FACTS if key in facts]
    if told:
        lines += f"<p>{' · '.join(xml(fact) for fact in told)}</p>"
    used = [
        f"{name.removeprefix('version_').replace('_', '-')} {number}" for name, number in versions().items()
    ]
    return lines + f"<p>{' · '.join(xml(fact) for fact in used)}</p>"
