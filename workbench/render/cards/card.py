"""`card_of`: what a result shows of itself, as text of a few lines and as HTML.

The headline comes first, then a small table, then the picture of `plot`; the labelled numbers are behind a fold. All
text from files is escaped.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jinja2 import Environment

from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.render.cards.headlines import Result, by_layer, headline, kind_of, of_last_token
from workbench.render.cards.strongest import SHOWN, is_summary, strongest, three_digits
from workbench.render.figures.canvas import figure_html
from workbench.render.plots import plot
from workbench.render.writing import shorten
from workbench.text import visible, xml

WIDTH = 100
"""Columns of a card as text."""
COLUMNS: dict[str, tuple[str, ...]] = {
    "evaluation": ("n_edges", "faithfulness", "low", "high", "error", "r", "kl_recovered", "answers_kept"),
    "minimality": ("missed", "low", "high", "needed"),
    "faithfulness_curve": ("n_edges", "faithfulness", "low", "high"),
    "circuit_tests": ("statistic", "p", "supports", "n"),
    "causal_check": ("effect", "low", "high", "random", "p", "used"),
    "frontier": ("faithfulness", "error", "kl_recovered", "answers_kept", "passes"),
    "controls": ("faithfulness", "error", "holds", "n_edges"),
    "agreement": ("median", "above", "above_bound"),
    "rule_stability": ("size",),
    "specification_curve": ("jaccard",),
    "stability": ("n_edges",),
    "neuron_maps": ("roc_auc", "coefficient"),
}
"""Kind of a Dataset → the columns of its table."""
TRAJECTORIES = ("logit_lens", "norms")
"""Kinds that are read along the layers."""
LARGEST_FIRST = {"minimality": "missed", "neuron_maps": "roc_auc"}
"""Kind → the column whose largest values are shown; rows of all others stay in their order."""

# `safe` stands at what is HTML already: the pictures are ours, the labelled numbers xarray's, and both escape their text.
# Styles stand in the card, because a notebook has no stylesheet of ours. `currentColor` follows light and dark;
# figures are drawn for white paper.
_HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<div class="workbench-card" style="max-width:60rem">
<p style="margin:.2em 0 .6em;font-size:1.05em">{{ headline }}</p>
{% if rows %}
<table style="border-collapse:collapse;margin:0 0 .6em">
<thead><tr>{% for name in columns %}
<th scope="col" style="text-align:left;padding:.1em .8em .1em 0;border-bottom:1px solid currentColor">{{ name }}</th>
{% endfor %}</tr></thead>
<tbody>{% for row in rows %}
<tr>{% for cell in row %}<td style="text-align:left;padding:.1em .8em .1em 0">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table>
{% endif %}
{% if picture %}
<div style="overflow-x:auto;background:#fff;width:fit-content;max-width:100%">{{ picture|safe }}</div>
{% endif %}
{% if plain %}
<details><summary>the labelled numbers (xarray)</summary>{{ plain|safe }}</details>
{% endif %}
</div>
"""
)


@dataclass(frozen=True)
class Marked:
    """A prompt, some of whose tokens are marked: by brackets in text, by colour in HTML."""

    tokens: tuple[str, ...]
    marked: tuple[bool, ...]

    def __str__(self) -> str:
        shown = []
        for token, is_marked in zip(self.tokens, self.marked, strict=True):
            # The space that a token begins with stays outside of its brackets.
            space = " " if token.startswith(" ") else ""
            shown.append(f"{space}[{token.strip()}]" if is_marked else token)
        return "".join(shown).strip()

    def __html__(self) -> str:
        """As jinja2 takes it: the tokens escaped, the marks not."""
        return "".join(
            f"<mark>{xml(token)}</mark>" if is_marked else xml(token)
            for token, is_marked in zip(self.tokens, self.marked, strict=True)
        )


@dataclass(frozen=True, eq=False)
class Card:
    """What is shown of something, plainly.

    Attributes:
        headline: a sentence or two.
        table: a few rows; empty where there is nothing to list.
        draw: makes the picture as HTML that is safe to show; None where there is none.
        plain: HTML of the thing itself, for behind a fold; "" leaves the fold out.
        more: rows that the table leaves out.
        lines: instead of the table in text, where its cells are sentences.
    """

    headline: str
    table: pd.DataFrame
    draw: Callable[[], str] | None = None
    plain: str = ""
    more: int = 0
    lines: tuple[str, ...] = ()

    def text(self) -> str:
        """At most twelve lines of at most `WIDTH` columns."""
        lines = textwrap.wrap(self.headline, WIDTH)[:3]
        if self.lines:
            lines += self.lines
        elif len(self.table):
            lines += _cells(self.table).to_string(index=False, max_rows=SHOWN, line_width=None).splitlines()
        lines = [shorten(line.rstrip(), WIDTH) for line in lines]
        if self.more and len(lines) < 12:
            lines.append(f"... and {self.more:,} more")
        return "\n".join(lines)

    def html(self) -> str:
        """The headline, the table, the picture, and the thing itself behind a fold."""
        shown = _cells(self.table)
        return _HTML.render(
            headline=self.headline,
            columns=[visible(name) for name in shown.columns],
            rows=[
                [cell if isinstance(cell, Marked) else str(cell) for cell in row]
                for row in shown.values.tolist()
            ],
            picture="" if self.draw is None else self.draw(),
            plain=self.plain,
        )


@singledispatch
def card_of(thing: Any) -> Card:
    """The card of a result; of prompts, stores, labels, probes and sweeps too (`objects`).

    Raises:
        WorkbenchError: an array that no function of this package returned.

    >>> data = xr.DataArray([0.5, -2.0], dims="head", attrs={"kind": "effects", "metric": "kl", "unit": "nats"})
    >>> print(card_of(data).text())
    Effects on kl: the strongest of 2 is head 1 with -2.00 nats.
      what  mean low high
    head 1 -2.00   –    –
    head 0 0.500   –    –
    """
    raise WorkbenchError(f"A {type(thing).__name__} has no card.")


@card_of.register(xr.DataArray)
@card_of.register(xr.Dataset)
def _result(result: Result) -> Card:
    told, table = headline(result), table_of(result)
    more = max(0, _n_rows(result) - len(table))
    return Card(told, table, picture_of(result, told), result._repr_html_(), more)


def table_of(result: Result, n: int = SHOWN, *, circuit: Circuit | None = None) -> pd.DataFrame:
    """The rows of a result that a reader wants first.

    Args:
        n: at most so many.
        circuit: as in `strongest`; of arrays and their summaries.
    """
    if isinstance(result, xr.DataArray) and kind_of(result) in TRAJECTORIES and circuit is None:
        along = by_layer(result)
        if along["mean"].dims == ("layer",):
            # The last layers say most: they are shown where not all fit.
            return along[["mean", "low", "high"]].to_dataframe().reset_index().tail(n).reset_index(drop=True)
    if isinstance(result, xr.DataArray) or is_summary(result):
        return strongest(result, n, circuit=circuit)
    if circuit is not None:
        raise WorkbenchError("circuit= goes with scores and effects, whose rows are edges or components.")
    kind = kind_of(result)
    if kind == "top_tokens":
        return _likeliest(result).tail(n).reset_index(drop=True)
    columns = [name for name in COLUMNS.get(kind, ()) if name in result.data_vars]
    if not columns:
        return pd.DataFrame()
    axes = {dim for name in columns for dim in result[name].dims}
    # An axis that only single prompts have would make a row of each.
    chosen = result[columns]
    frame = chosen.drop_vars([name for name in chosen.coords if name not in axes]).to_dataframe()
    frame = frame.reset_index() if axes else frame
    if kind in LARGEST_FIRST:
        frame = frame.sort_values(LARGEST_FIRST[kind], ascending=False, kind="stable")
    return frame.head(n).reset_index(drop=True)


def _likeliest(result: xr.Dataset) -> pd.DataFrame:
    """A row for each layer: the likeliest tokens after the last token of the first prompt."""
    last, rows = of_last_token(result), []
    for layer in range(last.sizes["layer"]):
        cells = last.isel(layer=layer)
        row: dict[str, Any] = {"layer": cells["layer"].item()}
        for rank in range(min(3, last.sizes["rank"])):
            token, probability = cells["spelled"].values[rank], cells["prob"].values[rank]
            row[f"rank {rank + 1}"] = f"{visible(token)} ({probability:.2f})"
        rows.append(row)
    return pd.DataFrame(rows)


def _n_rows(result: Result) -> int:
    """How many rows a whole table would have."""
    if kind_of(result) in (*TRAJECTORIES, "top_tokens") and "layer" in result.dims:
        return result.sizes["layer"]
    if isinstance(result, xr.DataArray):
        return int(np.prod([size for axis, size in result.sizes.items() if axis != "example"], dtype=int))
    if is_summary(result):
        return int(result["mean"].size)
    columns = [name for name in COLUMNS.get(kind_of(result), ()) if name in result.data_vars]
    return max((int(result[name].size) for name in columns), default=0)


def picture_of(thing: Any, alt: str) -> Callable[[], str]:
    """What draws the figure of a result; a sentence where there is none, as of a single number."""

    def draw() -> str:
        try:
            return figure_html(plot(thing), alt=alt)
        except WorkbenchError as error:
            return _NOTE.render(text=str(error))

    return draw


_NOTE = Environment(autoescape=True).from_string("<p>No picture: {{ text }}</p>")


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every number in three digits, and a dash where one is unknown."""
    return table.map(_cell) if len(table) else table


def _cell(value: Any) -> "str | Marked":
    if isinstance(value, Marked):
        return value
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        return three_digits(float(value)) if np.isfinite(value) else "–"
    return visible(value)
