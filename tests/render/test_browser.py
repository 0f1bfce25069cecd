"""A report in a real browser that cannot reach the network: it draws, and complains of nothing."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from workbench.render.html import page
from workbench.render.panel import Panel, script_html
from workbench.render.panels import attention_panel
from workbench.render.report import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=8000 --dump-dom"
).split()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the PATH")]


def load(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and the lines of the console."""
    blocked = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [str(BROWSER), *FLAGS, blocked, f"--user-data-dir={profile}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, errors="replace")
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_an_error_would_be_seen(tmp_path):
    bad = page("bad", [("bad", "<script>missing_function()</script><img src='https://example.invalid/a.png'>")])
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    _, console = load(tmp_path / "bad.html", tmp_path / "profile")
    assert any("missing_function is not defined" in line for line in console)
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.parametrize("name", ["view", "hostile", "grouped_view", "large_view"])
def test_report_draws_itself_without_a_network(name, request, tmp_path):
    view = request.getfixturevalue(name)
    n = len(view.tokens)
    heads = sorted(view.patterns)[:3]
    panel = attention_panel(view.tokens, np.stack([view.patterns[head] for head in heads]), [f"a{a}.{b}" for a, b in heads])
    effects = xr.DataArray(np.linspace(-1, 1, 4 * n).reshape(4, n), dims=("layer", "pos"), name="effect")
    sections = [("Circuit", view), ("Attention", [panel, panel]), ("Effects", effects), ("Again", view)]
    path = report(sections, tmp_path / "report.html", title=view.title)
    document, console = load(path, tmp_path / "profile")
    assert console == []
    circuits = re.findall(r'<div class="circuit"[^>]*>', document)
    assert len(circuits) == 2
    assert all(int(re.search(r'data-edges="(\d+)"', tag)[1]) > 10 for tag in circuits), circuits
    panels = drawn_panels(document)
    assert len(panels) == 2
    assert all(text.count("<canvas") == 4 for text in panels), "three heads and the chosen one, large"
    assert document.count('class="plot"') == 1


def drawn_panels(document: str) -> list[str]:
    """What the script drew of each panel; the still picture before it is hidden."""
    panels = re.split(r'<div class="panel"', document)[1:]
    for text in panels:
        assert re.match(r'[^>]*data-drawn[^>]*><(?:img|p) [^>]*style="[^"]*display: ?none', text), text[:200]
    return [text.split('class="live"', 1)[1].split("<script", 1)[0] for text in panels]


@pytest.mark.parametrize("hostile", [False, True])
def test_every_component_draws_itself(hostile, panels_of, hostile_tokens, tmp_path):
    attack = "<img src=x onerror=document.body.dataset.attacked=1>"
    strings = (
        [*hostile_tokens[:3], attack, *hostile_tokens[3:], "x" * 500, "\n", "'"] if hostile else [f" word{i}" for i in range(8)]
    )
    made = panels_of(strings)
    whole = page("panels", [(one.component, one.html()) for one in made] + [("script", script_html())])
    (tmp_path / "panels.html").write_text(whole, encoding="utf-8")
    document, console = load(tmp_path / "panels.html", tmp_path / "profile")
    assert console == []
    drawn = dict(zip([one.component for one in made], drawn_panels(document), strict=True))
    canvases = {name: text.count("<canvas") for name, text in drawn.items() if "<canvas" in text}
    assert canvases == {"AttentionHeads": 3, "AttentionPattern": 1, "AttentionPatterns": 3}
    assert "data-attacked" not in document
    shown = "word3" if not hostile else attack.replace("<", "&lt;").replace(">", "&gt;")
    for name, text in drawn.items():
        assert name in ("AttentionHeads", "AttentionPattern", "Hello") or shown in text.replace("&nbsp;", " "), name
        assert "<img" not in text


def test_a_panel_alone_is_a_page_of_its_own(panels_of, tmp_path):
    (tmp_path / "panel.html").write_text(str(panels_of(["a", " b", "c"])[3]), encoding="utf-8")
    document, console = load(tmp_path / "panel.html", tmp_path / "profile")
    assert console == []
    assert drawn_panels(document)[0].count("<span") == 6


def test_the_still_picture_stays_where_a_component_fails(tmp_path):
    nothing = {name: [] for name in ("tokens", "topkVals", "topkIdxs", "bottomkVals", "bottomkIdxs")}
    (tmp_path / "panel.html").write_text(str(Panel("TopkTokens", nothing, "<svg/>")), encoding="utf-8")
    document, console = load(tmp_path / "panel.html", tmp_path / "profile")
    assert console
    assert re.search(r'data-drawn=""><img [^>]*style="max-width:100%;height:auto"', document)


def test_edges_can_be_chosen_counted_and_opened_from_the_keyboard(view, tmp_path):
    """Drives the frame's own document: slider, views, Enter and Escape."""
    from workbench.render.html import frame_document

    drive = """<script>
      const say = (key, value) => { document.body.dataset[key] = value; };
      const shown = () => [...document.querySelectorAll("#" + state.kind + " path.e:not(.y)")].filter((p) => !p.style.display);
      const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      say("start", shown().length);
      const slider = document.getElementById("top");
      slider.value = 10; slider.dispatchEvent(new Event("input"));
      say("few", shown().length);
      slider.value = 1000; slider.dispatchEvent(new Event("input"));
      say("all", shown().length);
      press(shown()[0], "Enter");
      say("opened", document.querySelector("#detail h2").textContent);
      say("label", shown()[0].getAttribute("aria-label"));
      say("bars", document.querySelectorAll("#detail .bar").length);
      press(document.body, "Escape");
      say("closed", document.querySelectorAll("#detail h2").length);
      document.getElementById("to-position").click();
      say("positions", shown().length);
      say("hidden", document.getElementById("component").style.display);
    </script></body>"""
    path = tmp_path / "frame.html"
    path.write_text(frame_document(view).replace("</body>", drive), encoding="utf-8")
    document, console = load(path, tmp_path / "profile")
    assert console == []
    said = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", document)[0]))
    assert 0 < int(said["few"]) <= 10 < int(said["start"]) <= 40 <= int(said["all"]) == len(view.edges)
    assert said["opened"] == f"{view.edges[0].writer} → {view.edges[0].reader}".replace("<", "&lt;").replace(">", "&gt;")
    assert said["label"].startswith(said["opened"] + ", score ")
    assert int(said["bars"]) > 0
    assert said["closed"] == "0"
    assert int(said["positions"]) > 0
    assert said["hidden"] == "none"
