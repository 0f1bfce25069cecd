"""Panels in a real browser without a network: every component draws itself, and hostile texts stay text."""

import re
from pathlib import Path

import pytest
from browsers import opened

from workbench.render.circuitsvis import script_html
from workbench.render.page import page
from workbench.render.panel import Panel

pytestmark = pytest.mark.slow


def load(path: Path, *, fails: bool = False) -> tuple[str, list[str]]:
    """The document once its panels are drawn (or have failed), and the lines of the console."""
    with opened(path) as seen:
        seen.wait(
            "[...document.querySelectorAll('[data-panel]')].every((box) => box.dataset.drawn !== undefined)"
        )
        seen.page.evaluate(
            "document.querySelectorAll('.panel details').forEach((fold) => { fold.open = true; })"
        )
        if fails:
            seen.page.wait_for_timeout(500)
        else:
            seen.wait(
                "[...document.querySelectorAll('[data-panel]')]"
                ".every((box) => box.firstChild.style.display === 'none')"
            )
        return seen.page.content(), seen.console


def drawn_panels(document: str) -> list[str]:
    """What the script drew of each panel; the still picture before it is hidden."""
    panels = re.split(r'<div class="panel"', document)[1:]
    for text in panels:
        assert re.match(r'[^>]*data-drawn[^>]*><(?:img|div|p) [^>]*style="[^"]*display: ?none', text), text[
            :200
        ]
    return [text.split('class="live"', 1)[1].split("<script", 1)[0] for text in panels]


@pytest.mark.parametrize("hostile", [False, True])
def test_every_component_draws_itself(hostile, panels_of, hostile_tokens, tmp_path):
    attack = "<img src=x onerror=document.body.dataset.attacked=1>"
    strings = (
        [*hostile_tokens[:3], attack, *hostile_tokens[3:], "x" * 500, "\n", "'"]
        if hostile
        else [f" word{i}" for i in range(8)]
    )
    panels_drawn = panels_of(strings)
    whole = page(
        "panels", [(one.component, one.html()) for one in panels_drawn] + [("script", script_html())]
    )
    (tmp_path / "panels.html").write_text(whole, encoding="utf-8")
    document, console = load(tmp_path / "panels.html")
    assert console == []
    drawn = dict(zip([one.component for one in panels_drawn], drawn_panels(document), strict=True))
    canvases = {name: text.count("<canvas") for name, text in drawn.items() if "<canvas" in text}
    assert canvases == {"AttentionHeads": 3, "AttentionPattern": 1, "AttentionPatterns": 3}
    assert "data-attacked" not in document
    shown = "word3" if not hostile else attack.replace("<", "&lt;").replace(">", "&gt;")
    for name, text in drawn.items():
        assert name in ("AttentionHeads", "AttentionPattern", "Hello") or shown in text.replace(
            "&nbsp;", " "
        ), name
        assert "<img" not in text


def test_a_panel_alone_is_a_page_of_its_own(panels_of, tmp_path):
    (tmp_path / "panel.html").write_text(str(panels_of(["a", " b", "c"])[3]), encoding="utf-8")
    document, console = load(tmp_path / "panel.html")
    assert console == []
    assert drawn_panels(document)[0].count("<span") == 6


def test_the_still_picture_stays_where_a_component_fails(tmp_path):
    nothing = {name: [] for name in ("tokens", "topkVals", "topkIdxs", "bottomkVals", "bottomkIdxs")}
    (tmp_path / "panel.html").write_text(str(Panel("TopkTokens", nothing, "<svg/>")), encoding="utf-8")
    document, console = load(tmp_path / "panel.html", fails=True)
    assert console
    assert re.search(
        r'data-drawn=""><img [^>]*style="max-width: ?max\(100%, ?620px\); ?height: ?auto;?"', document
    )
