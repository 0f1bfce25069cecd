"""Pages in a real browser without a network: they draw, do what they say, and complain of nothing."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from browsers import opened
from pictures import make_circuit

from workbench.render.attention_panels import attention_panel
from workbench.render.circuit.html import to_html
from workbench.render.circuit.svg import CircuitView
from workbench.render.page import page
from workbench.render.report import report
from workbench.sites import Shape

pytestmark = pytest.mark.slow
SHOWN = (
    "[...document.querySelectorAll('.scene')].filter((s) => !s.style.display)"
    ".flatMap((s) => [...s.querySelectorAll('path.e:not(.y)')]).filter((p) => !p.style.display)"
)


def pointed_at(seen, still: str) -> str:
    """Which head is named when the pointer is on the first cell of a still picture of attention."""
    seen.wait(f"document.querySelector('{still}')")
    return seen.page.evaluate(
        """(still) => {
          const root = document.querySelector(still).shadowRoot, frame = root.querySelector("[data-head] rect");
          const box = frame.getBoundingClientRect(), at = { bubbles: true, composed: true };
          frame.dispatchEvent(new PointerEvent("pointermove", { ...at, clientX: box.x + 1, clientY: box.y + 1 }));
          return root.querySelector("output").textContent.match(/^[^ ]+ (?=.+ attends to .+ with [01])/)[0];
        }""",
        still,
    )


def test_an_error_would_be_seen(tmp_path):
    bad = page(
        "bad", [("bad", "<script>missing_function()</script><img src='https://example.invalid/a.png'>")]
    )
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    with opened(tmp_path / "bad.html") as seen:
        assert any("missing_function is not defined" in line for line in seen.console)
        assert any("Content Security Policy" in line for line in seen.console)


@pytest.mark.parametrize("name", ["view", "hostile", "grouped_view", "large_view"])
def test_report_draws_itself_without_a_network(name, request, tmp_path):
    view = request.getfixturevalue(name)
    n = len(view.tokens)
    heads = sorted(view.patterns)[:3]
    panel = attention_panel(
        view.tokens, np.stack([view.patterns[head] for head in heads]), [f"a{a}.{b}" for a, b in heads]
    )
    effects = xr.DataArray(np.linspace(-1, 1, 4 * n).reshape(4, n), dims=("layer", "pos"), name="effect")
    sections = [("Circuit", view), ("Attention", [panel, panel]), ("Effects", effects), ("Again", view)]
    path = report(sections, tmp_path / "report.html", title=view.title)
    with opened(path) as seen:
        assert pointed_at(seen, ".panel .still") == f"a{heads[0][0]}.{heads[0][1]}: "
        seen.page.evaluate(
            "document.querySelectorAll('.panel details').forEach((fold) => { fold.open = true; })"
        )
        seen.wait(
            "document.querySelectorAll('.panel canvas').length === 8"
        )  # three heads and the chosen one, large
        assert all(int(box.get_attribute("data-edges")) > 10 for box in seen.page.locator(".circuit").all())
        assert seen.page.locator(".circuit iframe").count() == 2
        assert seen.page.locator(".circuit img").first.evaluate("(img) => img.style.display") == "none"
        assert seen.page.locator("img.plot").count() == 1
        assert seen.console == []
        assert [
            url for url in seen.requests if not url.startswith(("file:", "data:", "about:", "blob:"))
        ] == []


# The contrast of every text that is seen with what lies behind it, by WCAG 2's formula; a line per text
# below 4.5.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = (colour) => colour.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const box = element.closest("g.n");
    if (element.closest("svg")) {
      const rect = box ? [...box.querySelectorAll("rect:not(.o)")].pop()
        : element.closest("svg").querySelector("rect");
      if (rect) return parse(getComputedStyle(rect).fill);
    }
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || element.disabled) continue;
    if (element.closest("script,style,title")) continue;
    const style = getComputedStyle(element), ink = parse(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05), text = element.textContent.slice(0, 30);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.className} ${text}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_can_be_read_and_everything_is_reached_by_key(dark, grouped_view, tmp_path):
    sections = [
        ("Circuit", grouped_view),
        ("Table", pd.DataFrame({"a": ["b"], "n": [1.5]}), "A caption"),
        ("Text", "Words."),
    ]
    path = report(
        sections,
        tmp_path / "report.html",
        title="Contrast",
        subtitle="and keys",
        command="workbench discover",
    )
    with opened(path, dark=dark) as seen:
        frame = seen.frame()
        frame.locator("path.e").first.press("Enter")
        assert frame.locator(".scene:visible").get_attribute("id") == "position-0"
        assert frame.evaluate(CONTRAST) == []
        assert seen.page.evaluate(CONTRAST) == []
        frame.locator("#to-component").click()
        assert frame.evaluate(CONTRAST) == []
        order = frame.evaluate(
            "[...document.querySelectorAll('button:enabled,input,select,[tabindex]')]"
            ".filter((e) => e.getClientRects().length)"
            ".map((e) => e.id || e.getAttribute('role') || e.dataset.filter)"
        )
        assert order[:3] == ["to-position", "to-component", "top"]
        assert set(order[order.index("save-png") + 1 :]) == {"button"}
        labels = frame.evaluate(
            "[...document.querySelectorAll('[tabindex]')].map((e) => e.getAttribute('aria-label'))"
        )
        assert all(labels)
        assert frame.evaluate(
            "[...document.querySelectorAll('svg')]"
            ".every((e) => e.getAttribute('role') && e.getAttribute('aria-label'))"
        )
        assert frame.locator("#detail").get_attribute("aria-live") == "polite"
        for wanted in ("to-position", "to-component", "top"):
            seen.page.keyboard.press("Tab") if wanted != "to-position" else frame.locator(
                "#to-position"
            ).focus()
            assert frame.evaluate("document.activeElement.id") == wanted
        assert seen.console == []


def test_what_was_not_measured_is_said_and_lists_are_whole(view, tmp_path):
    n = len(view.tokens)
    edges = (
        *view.edges[:1],
        *(replace(edge, by_pos=(float("nan"), *edge.by_pos[1:])) for edge in view.edges[1:]),
    )
    curve = ((1, 0.5, 0.4, 0.6), (30, 0.9, 0.8, 1.0))
    bare = replace(
        view, edges=edges, curve=curve, patterns={key: np.full((n, n), np.nan) for key in view.patterns}
    )
    path = tmp_path / "page.html"
    path.write_text(
        page(
            "page",
            [("Circuit", to_html(CircuitView.on_prompts([bare, replace(bare, tokens=("Other",) * n)])))],
        )
    )
    with opened(path) as seen:
        frame = seen.frame()
        frame.locator("#to-component").click()
        frame.evaluate(
            "() => { const top = document.getElementById('top'); top.value = 9;"
            "top.dispatchEvent(new Event('input')); }"
        )
        assert (
            frame.inner_text("#faith")
            == "faithfulness of the 1 strongest: 0.50 [0.40, 0.60], of the 30 strongest: 0.90 [0.80, 1.00]"
        )
        frame.evaluate(
            "() => { const top = document.getElementById('top'); top.value = top.max;"
            "top.dispatchEvent(new Event('input')); }"
        )
        head = frame.locator("g.n:visible[aria-label^='a']").first
        head.press("Enter")
        title = frame.inner_text("#detail h2")
        assert "not measured" in frame.inner_text("#detail")
        frame.locator("#detail").click()
        frame.locator("#theme").click()
        frame.locator("#prompt").select_option("1")
        assert frame.inner_text("#detail h2") == title  # what was opened stays open
        assert frame.locator("#detail caption").count() >= 1
        frame.locator("body").press("Escape")
        assert "Point at" in frame.inner_text("#detail")
        assert seen.console == []


def test_positions_are_offered_where_a_prompt_has_them(view, tmp_path):
    plain = replace(view, edges=tuple(replace(edge, by_pos=()) for edge in view.edges))
    path = tmp_path / "page.html"
    path.write_text(page("page", [("Circuit", to_html(CircuitView.on_prompts([view, plain])))]))
    with opened(path) as seen:
        frame = seen.frame()
        frame.locator("#to-position").click()
        frame.locator("#prompt").select_option("1")
        assert frame.locator("#to-position").is_disabled()
        assert frame.locator(".scene:visible").get_attribute("id") == "component"
        frame.locator("#prompt").select_option("0")
        assert frame.locator("#to-position").is_enabled()
        assert seen.console == []


def test_many_edges_share_one_slider_over_two_pictures(tmp_path):
    circuit = make_circuit(Shape(12, 12, 12, 768, 64, 3072, 50257, 1024), 400)
    path = tmp_path / "many.html"
    path.write_text(page("many", [("Circuit", to_html(CircuitView.of(circuit)))]), encoding="utf-8")
    with opened(path) as seen:
        frame, counts = seen.frame(), []
        for share in (0.05, 0.2, 0.6, 1.0):
            frame.evaluate(
                "(share) => { const top = document.getElementById('top');"
                "top.value = Math.round(top.max * share); top.dispatchEvent(new Event('input')); }",
                share,
            )
            assert frame.locator(".scene:visible").count() == 1
            counts.append(
                (frame.locator(".scene:visible").get_attribute("id"), frame.evaluate(f"{SHOWN}.length"))
            )
            assert frame.inner_text("#count").startswith(f"{counts[-1][1]} of ")
        assert [name for name, _ in counts] == ["component-near", "component-near", "component", "component"]
        assert [count for _, count in counts] == sorted(count for _, count in counts)
        assert seen.console == []


@pytest.fixture
def circuit_page(view, tmp_path):
    """One circuit on two prompts with a faithfulness curve."""
    other = replace(view, tokens=("Then", *view.tokens[1:]))
    curve = ((5, 0.4, 0.3, 0.5), (20, 0.8, 0.7, 0.9), (60, 1.0, 0.9, 1.1))
    path = tmp_path / "circuit.html"
    both = replace(CircuitView.on_prompts([view, other]), curve=curve)
    path.write_text(page("circuit", [("Circuit", to_html(both))]), encoding="utf-8")
    return path


def test_edges_are_counted_filtered_and_opened(view, circuit_page):
    with opened(circuit_page) as seen:
        frame = seen.frame()
        frame.locator("#to-component").click()
        shown = lambda: frame.evaluate(SHOWN + ".length")  # noqa: E731
        start = shown()
        assert 0 < start <= 40
        frame.locator("#top").fill("5")
        assert 0 < shown() <= 5
        assert frame.inner_text("#faith") == "faithfulness of the 5 strongest: 0.40 [0.30, 0.50]"
        frame.locator("#top").fill(str(len(view.edges)))
        assert shown() == len(view.edges)
        assert frame.inner_text("#count") == f"{len(view.edges)} of {len(view.edges)} edges"
        supporting = sum(edge.weight >= 0 for edge in view.edges)
        frame.uncheck("[data-filter=signs][value='1']")
        assert shown() == supporting
        frame.check("[data-filter=signs][value='1']")
        frame.uncheck("[data-filter=ports][value='3']")
        assert shown() == sum("<" in edge.reader for edge in view.edges)
        frame.check("[data-filter=ports][value='3']")
        first = frame.evaluate_handle(SHOWN + "[0]").as_element()
        name = f"{view.edges[0].writer} → {view.edges[0].reader}"
        assert first.get_attribute("aria-label").startswith(name + ", score ")
        first.focus()
        seen.page.keyboard.press("Enter")
        assert frame.inner_text("#detail h2") == name
        assert frame.locator("#detail .bar").count() > 0
        seen.page.keyboard.press("Escape")
        assert "Point at an edge" in frame.inner_text("#detail")
        assert seen.console == []


def test_a_node_says_what_enters_and_leaves_it(view, circuit_page):
    head = next(node for node in view.nodes if node.startswith("a"))
    with opened(circuit_page) as seen:
        frame = seen.frame()
        frame.locator("#to-component").click()
        frame.locator("#top").fill(str(len(view.edges)))
        frame.locator(f"g.n[aria-label='{head}']").first.click()
        said = frame.inner_text("#detail")
        into = sum(edge.reader.split("<")[0] == head for edge in view.edges)
        out = sum(edge.writer == head for edge in view.edges)
        assert said.startswith(head)
        assert f"{into} edge" in said
        assert f"{out} leave" in said
        assert "attends most from" in said
        assert frame.locator("#detail canvas").count() == 1
        assert seen.console == []


def test_prompts_views_and_colours_are_switched(circuit_page):
    with opened(circuit_page, dark=True) as seen:
        frame = seen.frame()
        assert frame.evaluate("document.documentElement.dataset.theme") == "dark"
        frame.click("#theme")
        assert frame.evaluate("document.documentElement.dataset.theme") == "light"
        frame.click("#to-position")
        assert frame.locator("#position-0").is_visible()
        assert not frame.locator("#component").is_visible()
        frame.select_option("#prompt", "1")
        assert frame.locator("#position-1").is_visible()
        assert "Then" in frame.inner_text("#position-1")
        frame.click("#to-component")
        assert frame.locator("#component").is_visible()
        assert seen.console == []


def test_what_is_shown_is_saved(circuit_page, tmp_path):
    with opened(circuit_page) as seen:
        frame = seen.frame()
        frame.locator("#top").fill("8")
        for button, name in (
            ("#save-svg", "Indirect-object-position.svg"),
            ("#save-png", "Indirect-object-position.png"),
        ):
            with seen.page.expect_download() as waiting:
                frame.click(button)
            assert waiting.value.suggested_filename == name
            waiting.value.save_as(tmp_path / name)
        shown = frame.evaluate(SHOWN + ".length")
    root = ET.parse(tmp_path / "Indirect-object-position.svg").getroot()
    paths = [
        e
        for e in root.iter("{http://www.w3.org/2000/svg}path")
        if "e" in e.get("class", "").split() and "y" not in e.get("class", "").split()
    ]
    assert len(paths) == shown
    assert "tabindex" not in (tmp_path / "Indirect-object-position.svg").read_text()
    assert (tmp_path / "Indirect-object-position.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_two_circuits_are_told_apart(circuit_of, tmp_path):
    a, b = circuit_of(n=40), circuit_of(n=20)
    path = tmp_path / "compared.html"
    path.write_text(
        page("compared", [("Both", to_html(CircuitView.compared(a, b, names=("<b>EAP</b>", "exact"))))]),
        encoding="utf-8",
    )
    with opened(path) as seen:
        frame = seen.frame()
        assert "only <b>EAP</b>" in frame.inner_text("nav")
        frame.locator("#top").fill("1000")
        frame.uncheck("[data-filter=circuits][value='0']")
        assert frame.evaluate(SHOWN + ".length") == b.n_edges
        assert seen.console == []


@pytest.mark.parametrize("width", [480, 1400])
def test_hostile_texts_appear_as_text_at_any_width(hostile, tmp_path, width):
    tokens = (*hostile.tokens[:-1], "x" * 500)
    path = report(
        [("Circuit", replace(hostile, tokens=tokens))], tmp_path / "report.html", title=hostile.title
    )
    with opened(path, width=width) as seen:
        frame = seen.frame()
        frame.click("#to-position")
        text = frame.locator("#position-0").text_content()
        assert "</script><img" in text
        assert "\\x00" in text
        assert frame.locator("img").count() == 0
        assert seen.page.locator("main img").count() == 1
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert seen.console == []
