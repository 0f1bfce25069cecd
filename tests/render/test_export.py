"""Circuits as files: valid, whole, and never over another file unasked."""

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
import xarray as xr
from matplotlib.text import Text

import workbench as wb
from workbench.errors import CircuitError, OutputExists, UnknownName, WorkbenchError
from workbench.render import panels
from workbench.render.circuit.svg import CircuitView, to_svg
from workbench.render.figures.canvas import for_column
from workbench.render.figures.export import _for_paper


def test_svg_is_the_picture_itself(view, tmp_path):
    path = wb.export(view, tmp_path / "c.svg")
    assert path.read_text() == to_svg(view)
    ET.parse(path)
    with pytest.raises(OutputExists):
        wb.export(view, path)
    wb.export(view, path, kind="position", overwrite=True)
    assert path.read_text() == to_svg(view, kind="position")


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF-")])
def test_png_and_pdf(hostile, tmp_path, ending, start):
    try:
        import cairosvg  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"CairoSVG cannot be used here: {error}")
    assert wb.export(hostile, tmp_path / f"c{ending}").read_bytes().startswith(start)


def test_other_endings_and_a_missing_library_are_named(view, tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match=r"ending='\.gif' is not known"):
        wb.export(view, tmp_path / "c.gif")
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'interp-workbench\[pdf\]'"):
        wb.export(view, tmp_path / "c.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_pdf_is_the_same_bytes_at_another_time(view, tmp_path):
    pytest.importorskip("cairosvg")
    first = wb.export(view, tmp_path / "a.pdf").read_bytes()
    assert b"/CreationDate (D:20000101" in first
    assert wb.export(view, tmp_path / "b.pdf").read_bytes() == first


def test_a_circuit_is_exported_as_its_view(circuit, tmp_path):
    assert wb.export(circuit, tmp_path / "c.svg").read_text() == to_svg(CircuitView.of(circuit))
    with pytest.raises(WorkbenchError, match=r"^A str cannot be drawn\. These can: Circuit, "):
        wb.export("circuit", tmp_path / "d.svg")


def test_a_scale_is_a_positive_number(view, tmp_path):
    for scale in (0, -1):
        with pytest.raises(WorkbenchError) as error:
            wb.export(view, tmp_path / "c.png", scale=scale)  # pyright: ignore[reportArgumentType]
        message = (
            f"scale={scale!r}: a number above 0 is needed, the pixels of a PNG for each unit of the picture."
        )
        assert str(error.value) == message, scale


def test_a_kind_that_cannot_be_drawn_is_refused(view, circuit, tmp_path):
    for call in (
        lambda: to_svg(view, kind="positions"),
        lambda: wb.export(view, tmp_path / "a.svg", kind="positions"),
    ):
        with pytest.raises(UnknownName) as error:
            call()
        assert str(error.value) == (
            "kind='positions' is not known. Did you mean 'position'? Choices: component, position."
        )
    with pytest.raises(CircuitError) as error:
        wb.export(circuit, tmp_path / "a.svg", kind="position")
    assert str(error.value) == (
        "Scores by position are not known: pass position_scores= for one prompt to CircuitView.of, or "
        "export kind='component'."
    )
    assert list(tmp_path.iterdir()) == []


def test_everything_that_has_a_picture_is_exported_at_a_width(view, tmp_path):
    """A paper needs every kind of picture at the width of its column, and not circuits alone."""
    result = xr.DataArray([[1.0, -2.0]] * 2, dims=("layer", "head"), name="effect")
    panel = panels.tokens(["a", " b"], [0.5, 1.0])
    for thing in (view, result, wb.plot(result), panel):
        path = wb.export(thing, tmp_path / "a.svg", width="column", overwrite=True)
        assert re.search(r'width="(3\.25in|234pt)"', path.read_text())
        ET.parse(path)
    with pytest.raises(UnknownName, match="Did you mean 'text'"):
        wb.export(view, tmp_path / "b.svg", width="texts")


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure that are drawn over each other."""
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent() for text in shown]
    pairs = []
    for i, j in itertools.combinations(range(len(shown)), 2):
        across = min(boxes[i].x1, boxes[j].x1) - max(boxes[i].x0, boxes[j].x0)
        upright = min(boxes[i].y1, boxes[j].y1) - max(boxes[i].y0, boxes[j].y0)
        if across > 1 and upright > 1:
            pairs.append((shown[i].get_text(), shown[j].get_text()))
    return pairs


def test_several_circuits_fit_a_column(tmp_path):
    model = wb.load_model("tiny")
    pairs = wb.load_task("ioi", model, n=4)
    circuits = [wb.Circuit.of(model, ["input->m0", "m0->logits"]), wb.Circuit.full(model)]
    result = wb.evaluate(
        circuits, model, pairs, value={"zero": wb.zero(), "scale": wb.scale(0.5)}, checks=(), progress=False
    )
    with for_column():
        narrow = wb.plot(result)
    drawn = save_and_keep(narrow, tmp_path)
    assert overlaps(drawn) == []
    assert drawn.get_figwidth() == 3.25
    # text can be read in print
    assert min(text.get_fontsize() for text in drawn.findobj(Text) if text.get_text().strip()) >= 6


def save_and_keep(figure, folder):
    """The figure as `export` lays it out for a column, and not only its file."""
    wb.export(figure, folder / "a.pdf", width="column")
    return _for_paper(figure, 3.25)
