"""Circuits as files: valid, whole, and never over another file unasked."""

import xml.etree.ElementTree as ET

import pytest

import workbench as wb
from workbench.errors import OutputExists, UnknownName, WorkbenchError
from workbench.render.svg import to_svg


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
    with pytest.raises(UnknownName, match=r"There is no kind of picture file '\.gif'"):
        wb.export(view, tmp_path / "c.gif")
    monkeypatch.setitem(__import__("sys").modules, "cairosvg", None)
    with pytest.raises(WorkbenchError, match=r"pip install 'interp-workbench\[pdf\]'"):
        wb.export(view, tmp_path / "c.pdf")
    assert list(tmp_path.iterdir()) == []
