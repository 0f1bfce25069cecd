"""Pages pass the automatic checks of axe-core, light and dark, wide and narrow."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import opened
from fake_sweeps import record, write_sweep

import workbench as wb
from workbench.render import panels
from workbench.render.circuit.view import CircuitView
from workbench.render.report import report
from workbench.workflows.runs import report_difference, report_run
from workbench.workflows.sweep import report_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every kind of page, small."""
    folder = tmp_path_factory.mktemp("pages")
    model = wb.load_model("tiny")
    run = wb.discover(model, "ioi", out=folder / "run", n=8, quick=True, progress=False)
    swept = write_sweep(folder / "sweep", [record(f"z[0.{i}]", [float(i), 1.0]) for i in range(3)])
    strings = ["a", " b", "c"]
    sections = [
        ("Circuit", CircuitView.of(run.circuit)),
        ("Tokens", panels.tokens(strings, [0.5, -1.0, 2.0])),
        ("Heads", run.heads),
    ]
    return {
        "discover": run.report,
        "run": report_run(run.folder, folder / "again.html"),
        "difference": report_difference(run.folder, run.folder, folder / "same.html"),
        "sweep": report_sweep(wb.load_sweep(swept), folder / "sweep.html"),
        "report": report(sections, folder / "report.html", title="Three pictures"),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["discover", "run", "difference", "sweep", "report"])
def test_a_page_passes_axe(pages, name, dark):
    """Contrast, names of controls, order of headings, landmarks: what can be checked without a person."""
    with opened(pages[name], width=1280, height=900, dark=dark) as seen:
        seen.page.wait_for_timeout(800)
        found = Axe().run(seen.page)
        problems = [
            f"{one['id']}: {node['html'][:160]}"
            for one in found.response["violations"]
            for node in one["nodes"]
        ]
        assert problems == []


@pytest.mark.parametrize("name", ["discover", "difference", "sweep"])
def test_a_page_is_no_wider_than_a_narrow_screen(pages, name):
    with opened(pages[name], width=480, height=900) as seen:
        seen.page.wait_for_timeout(500)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 480
