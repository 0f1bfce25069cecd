"""Whole pages: `page`, and `Lead`, the first block of a report.

Pages are templates of jinja2 in `templates/`, where every text is escaped; only HTML that our own code wrote
(`Markup`) goes in as it is. The page's Content-Security-Policy forbids every request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from workbench.render.circuit.page import POLICY, asset
from workbench.text import spelled


def _spelled_text(value: object) -> object:
    """Invisible characters spelled out; the environment escapes the text afterwards."""
    return value if isinstance(value, Markup) else spelled(str(value))


_PAGES = Environment(
    loader=PackageLoader("workbench.render"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_spelled_text,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class KeyNumber:
    """A number of the first block, and the number that could beat it.

    Attributes:
        what: it measures, in a few words.
        value, interval: as texts; no interval is "".
        beside: the control, as in "through other heads 0.90".
        state: "good" or "bad" by the criteria, "" where nothing decides.
    """

    what: str
    value: str
    interval: str = ""
    beside: str = ""
    state: Literal["good", "bad", ""] = ""


@dataclass(frozen=True)
class Lead:
    """The first block of a report: what was asked, what was found, and what speaks against it.

    Attributes:
        asked: the question: model, behaviour, metric and prompts.
        able: whether the model can do it, a sentence each.
        found: the answer, in a sentence.
        verdict: how it is marked: "good", "bad", or "" for no verdict.
        numbers: of the answer, each beside its control.
        against: what speaks against the answer, a sentence each.
        more: further sentences, behind a fold.
    """

    asked: str
    found: str
    able: Sequence[str] = ()
    verdict: Literal["good", "bad", ""] = ""
    numbers: Sequence[KeyNumber] = ()
    against: Sequence[str] = ()
    more: Sequence[str] = ()

    def html(self) -> str:
        """The block as HTML; every text is escaped."""
        return _PAGES.get_template("lead.html").render(lead=self)


def page(
    title: str,
    sections: Sequence[tuple[str, str]],
    *,
    subtitle: str = "",
    footer: str = "",
    lead: Lead | None = None,
) -> str:
    """One self-contained HTML page.

    Args:
        title, subtitle: plain text, escaped here.
        sections: (heading, html); headings are escaped here, the html is taken as it is.
        footer: html at the end of the page.
        lead: the first block.
    """
    # What is taken as it is was escaped by the module that wrote it.
    parts = [{"heading": heading, "html": Markup(html)} for heading, html in sections]
    return _PAGES.get_template("page.html").render(
        title=title,
        subtitle=subtitle,
        sections=parts,
        footer=Markup(footer),
        lead=Markup("" if lead is None else lead.html()),
        policy=POLICY,
        css=Markup(asset("templates/page.css", "workbench.render")),
    )
