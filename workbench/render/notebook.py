"""IPython shows results, prompts, stores, labels, probes and sweeps by their cards.

`register` is called when the package is imported where IPython runs. It names types and imports none of them, so that
the package is imported as quickly as before. Arrays that are no results of ours are shown as ever.
"""

import sys
from typing import Any

SHOWN_TYPES = (
    ("xarray.core.dataarray", "DataArray"),
    ("xarray.core.dataset", "Dataset"),
    ("workbench.prompts.pairs", "PromptPairs"),
    ("workbench.stores.store", "ActivationStore"),
    ("workbench.probes.labels", "Labels"),
    ("workbench.probes.fit", "Probes"),
    ("workbench.sweeps.table", "Sweep"),
)
"""Module and name of the types that have cards."""


def register() -> None:
    """Give IPython's formatters the types that have cards; nothing where no IPython runs."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or shell.display_formatter is None:
        return
    formatters = shell.display_formatter.formatters
    for module, name in SHOWN_TYPES:
        formatters["text/html"].for_type_by_name(module, name, html_of)
        formatters["text/plain"].for_type_by_name(module, name, print_card)


def html_of(thing: Any) -> str | None:
    """The card of a thing as HTML; what it would show by itself where it has no card."""
    card = _card(thing)
    if card is not None:
        return card.html()
    return thing._repr_html_() if hasattr(thing, "_repr_html_") else None


def print_card(thing: Any, printer: Any, cycle: bool) -> None:
    """The card of a thing as text, for IPython's printer; its `repr` where it has no card."""
    card = _card(thing)
    printer.text(repr(thing) if card is None else card.text())


def _card(thing: Any) -> Any:
    """The card of a thing; None for arrays of others, and for parts of results that lack what a card needs."""
    # Imported when something is shown: cards need matplotlib, and every type that has one.
    from workbench.errors import WorkbenchError
    from workbench.render.cards.objects import card_of

    try:
        return card_of(thing)
    except WorkbenchError:
        return None
