"""What every card keeps to: a sentence, few short lines as text, and HTML that runs nothing."""

from dataclasses import replace
from typing import Any

from workbench.render.cards.card import WIDTH, Card
from workbench.render.cards.objects import card_of


def checked_card(thing: Any) -> Card:
    """The card of a thing, after these checks; its picture is not drawn."""
    card = card_of(thing)
    lines = card.text().splitlines()
    assert 20 < len(card.headline) < 700, card.headline
    assert card.headline.rstrip().endswith((".", ")")), card.headline
    assert "nan" not in card.headline.lower().split(), card.headline
    assert len(lines) <= 12, card.text()
    assert max(map(len, lines)) <= WIDTH, card.text()
    page = replace(card, draw=None).html()
    assert "<script" not in page.replace(card.plain, "")
    return card
