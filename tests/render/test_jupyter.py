"""Notebooks in JupyterLab, without a network.

Still pictures where scripts may not run, the interactive ones where they may.
"""

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
import pytest
import xarray as xr
from nbformat import v4

from notebooks import lab, run_all
from workbench.render.plots import plot

# One group: they share a server.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("jupyter")]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}}
HOSTILE = "</script><img src=x onerror=alert(1)>"
NATURAL = (
    "[...document.querySelectorAll('.jp-OutputArea-output img')]"
    ".map((img) => img.complete && img.naturalWidth)"
)
LIVE = [
    """import workbench as wb
model = wb.load_model("tiny")
pairs = wb.load_task("ioi", model, n=4)
_, corrupt = wb.capture_pairs(model, pairs)
circuit = wb.find_circuit(wb.score_edges(model, pairs, value=wb.from_store(corrupt)), n_edges=12)
circuit""",
    f"from workbench.render.panels import tokens\ntokens([{HOSTILE!r}, ' b'], [1.0, -1.0])",
    "tokens(['another', ' panel'], [1.0, -1.0])",
    f"wb.plot(circuit, title={HOSTILE!r})",
    "missing_name",
]


def write(path: Path, cells: list[nbformat.NotebookNode]) -> None:
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), path)


@pytest.fixture(scope="module")
def server(tmp_path_factory, hostile, panels_of, hostile_tokens):
    """JupyterLab in a folder with two saved notebooks that show the same, one of them trusted, and one that
    was never run.
    """
    folder = tmp_path_factory.mktemp("lab")
    png = io.BytesIO()
    plot(xr.DataArray(np.linspace(-1, 1, 12).reshape(3, 4), dims=("layer", "pos"), name="effect")).savefig(
        png, format="png"
    )
    panels = panels_of(hostile_tokens)
    shown = [{"text/html": one._repr_html_()} for one in (hostile, panels[0], panels[3])]
    shown.append({"image/png": base64.b64encode(png.getvalue()).decode()})
    saved = [[v4.new_output("display_data", data)] for data in shown]
    for name in ("untrusted", "trusted"):  # a signature is of the contents: they differ in their sources
        write(folder / f"{name}.ipynb", [v4.new_code_cell(name, outputs=outputs) for outputs in saved])
    write(folder / "live.ipynb", [v4.new_code_cell(text) for text in LIVE])
    with lab(folder) as running:
        running.trust("trusted.ipynb")
        yield running


def test_an_untrusted_notebook_shows_still_pictures(server):
    with server.opened("untrusted.ipynb") as seen:
        seen.wait(f"{NATURAL}.length === 4 && {NATURAL}.every(Boolean)")
        seen.page.wait_for_timeout(500)  # a script would have run by now
        stills = seen.page.locator(":is(.circuit, .panel) > img")
        assert stills.count() == 3
        for still in stills.all():  # JupyterLab lays out only what is near the window
            still.scroll_into_view_if_needed()
            still.wait_for(state="visible")
        assert seen.page.locator(".jp-OutputArea-output :is(iframe, script, canvas, .live)").count() == 0
        assert seen.page.locator("[data-live], [data-drawn], [data-edges]").count() == 0
        assert seen.page.evaluate("window.panels === undefined && window.panelsUnpacked === undefined")
        assert seen.page.locator(".circuit img").get_attribute("alt").startswith(HOSTILE)
        assert (seen.console, seen.requests) == ([], [])
        seen.page.evaluate("fetch('https://example.invalid/a').catch(() => 0)")
        assert seen.requests == ["https://example.invalid/a"]  # it would have been seen


@pytest.mark.parametrize("dark", [False, True])
def test_a_trusted_notebook_is_interactive_in_either_theme(server, hostile, dark):
    # in the dark the window is narrow, too
    with server.opened("trusted.ipynb", dark=dark, width=640 if dark else 1400) as seen:
        seen.wait(
            "!!document.querySelector('.circuit[data-edges]')"
            " && document.querySelectorAll('.panel details').length === 2"
        )
        seen.page.evaluate(
            "document.querySelectorAll('.panel details').forEach((fold) => { fold.open = true; })"
        )
        seen.wait("document.querySelectorAll('.panel .live > *').length >= 2")
        box = seen.page.locator(".circuit")
        assert 0 < int(box.get_attribute("data-edges")) <= len(hostile.edges)  # pairs of edge and position
        assert not box.locator("img").is_visible()
        frame = box.locator("iframe").element_handle().content_frame()
        height = "document.body.getBoundingClientRect().height"
        tall = box.locator("iframe").bounding_box()["height"]
        assert frame.evaluate(height) <= tall <= frame.evaluate(height) + 8
        assert frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
        theme = "dark" if dark else "light"
        frame.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        assert HOSTILE[:13] in frame.locator("#position-0").text_content()
        frame.click("#to-component")
        frame.locator("#component path.e:not(.y)").first.focus()
        seen.page.keyboard.press("Enter")
        assert frame.inner_text("#detail h2") == f"{hostile.edges[0].writer} → {hostile.edges[0].reader}"
        assert (
            seen.page.locator(".jp-OutputArea-output img[src=x]").count() == frame.locator("img").count() == 0
        )
        assert (seen.console, seen.requests) == ([], [])


def test_a_notebook_is_run_from_top_to_bottom(server, tmp_path):
    ran = run_all(server, "live.ipynb", pictures=tmp_path)
    assert ran.errors == ["cell 5: NameError: name 'missing_name' is not defined"]
    assert [path.read_bytes()[:4] for path in ran.pictures] == [b"\x89PNG"] * len(LIVE)
    assert (ran.console, ran.requests) == ([], [])
    edges = ran.cells[0]["outputs"][-1]["data"]["text/plain"][0].split()[1]  # <Circuit: 9 of 1519 edges
    with server.opened("live.ipynb") as seen:  # what was run here is trusted when it is opened again
        seen.wait("document.querySelectorAll('.circuit[data-edges]').length === 2")
        seen.wait("document.querySelectorAll('.panel[data-drawn]').length === 2")
        assert [box.get_attribute("data-edges") for box in seen.page.locator(".circuit").all()] == [
            edges,
            edges,
        ]
        assert (seen.console, seen.requests) == ([], [])
