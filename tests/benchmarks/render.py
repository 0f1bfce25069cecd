"""Sizes of pages, and how soon a browser has drawn them; all are upper bounds.

    python tests/benchmarks/render.py [--quick] [--json] [--only PART]

The ratio is limit / measured and the bar 1. Pages are loaded in headless Chromium without a network; a slider step is the
median of 20, from the input to the next frame. Needs playwright and Chromium, as the browser tests do.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from side_by_side import Line, arguments, show_cases

sys.path.insert(0, str(Path(__file__).parents[1]))
from browsers import opened
from pictures import TOKENS, make_circuit, make_view

from workbench.render.attention_panels import attention_panel
from workbench.render.circuit.html import to_html
from workbench.render.circuit.svg import CircuitView, to_svg
from workbench.render.page import page
from workbench.render.report import report
from workbench.sites import Shape

GPT2 = Shape(12, 12, 12, 768, 64, 3072, 50257, 1024)
STEP = """async () => {
  const slider = document.getElementById("top"), taken = [];
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    slider.value = Math.round(slider.max * (i + 1) / 20);
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push(performance.now() - start);
  }
  return taken;
}"""


def at_most(case: str, limit: float, measured: float, unit: str) -> Line:
    return Line(
        f"{case}: {measured:.4g} of {limit:.4g} {unit}",
        "the limit",
        1,
        round(limit / measured, 3),
        0,
        0,
        0,
        0,
        0,
        0,
    )


def sizes() -> Sequence[Line]:
    """Kilobytes of pages and pictures."""
    view = make_view(make_circuit(n=137), TOKENS)
    eight = replace(view, patterns=dict(list(view.patterns.items())[:8]))
    names = [f"a{layer}.{head}" for layer, head in eight.patterns]
    panel = attention_panel(TOKENS, np.stack(list(eight.patterns.values())), names)
    large = make_view(make_circuit(GPT2, 200), [f" token{i}" for i in range(15)], top=200)
    many = make_view(make_circuit(GPT2, 2000), TOKENS)
    with tempfile.TemporaryDirectory() as folder:
        alone = report([("Circuit", eight)], Path(folder) / "a.html", title="t").stat().st_size
        beside = (
            report([("Circuit", eight), ("Attention", panel)], Path(folder) / "b.html", title="t")
            .stat()
            .st_size
        )
    return [
        at_most("page of 137 edges and 8 patterns", 120, alone / 1000, "kB"),
        at_most("the same with circuitsvis", 620, beside / 1000, "kB"),
        at_most("200 edges of GPT-2-small shape with patterns", 350, len(to_html(large)) / 1000, "kB"),
        at_most("2,000 edges of GPT-2-small shape", 1200, len(to_html(many)) / 1000, "kB"),
        at_most(
            "still picture of 60 edges",
            90,
            len(to_svg(CircuitView.of(make_circuit(n=60), top=60))) / 1000,
            "kB",
        ),
    ]


def slider() -> Sequence[Line]:
    """Milliseconds of a slider step with 2,000 edges."""
    many = make_view(make_circuit(GPT2, 2000), TOKENS, top=2000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.html"
        path.write_text(page("many", [("Circuit", to_html(many))]), encoding="utf-8")
        with opened(path) as seen:
            taken = seen.frame().evaluate(STEP)
    return [at_most("slider step with 2,000 edges", 100, statistics.median(taken), "ms")]


def figures() -> Sequence[Line]:
    """Twenty attention panels on one page.

    Kilobytes, and seconds from the start of loading until all are drawn.
    """
    view = make_view(make_circuit(n=40), TOKENS)
    heads = sorted(view.patterns)[:4]
    pattern = np.stack([view.patterns[head] for head in heads])
    panels = [
        attention_panel([f"{word}{i}" for word in TOKENS], pattern, [f"a{a}.{b}" for a, b in heads])
        for i in range(20)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = report([("Panels", panels)], Path(folder) / "twenty.html", title="twenty")
        size = path.stat().st_size
        with opened(path) as seen:
            drawn = {}
            for part, which in (
                ("those in view", "box.getBoundingClientRect().top < innerHeight"),
                ("all", "true"),
            ):
                seen.wait(
                    f"[...document.querySelectorAll('[data-panel]')].filter((box) => {which})"
                    ".every((box) => box.querySelector('canvas') && box.firstChild.style.display === 'none')"
                )
                drawn[part] = seen.page.evaluate("performance.now()") / 1000
    return [
        at_most("20 figures of circuitsvis on one page", 800, size / 1000, "kB"),
        *(
            at_most(f"20 figures drawn, {part}", 1.5, seconds, "s (polled every 0.05 s)")
            for part, seconds in drawn.items()
        ),
    ]


def main() -> None:
    asked = arguments(__doc__)
    cases: dict[str, Callable[[], Sequence[Line]]] = {"sizes": sizes, "slider": slider, "figures": figures}
    for _ in show_cases(cases, asked):
        pass


if __name__ == "__main__":
    main()
