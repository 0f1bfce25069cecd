"""A circuit as a file for papers and slides (`save_circuit`): SVG always, PNG and PDF with the extra `pdf`.

`render.export.export` is the call for every kind of picture.
"""

import re
from math import isfinite
from pathlib import Path
from typing import Any

from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.files import check_free, whole
from workbench.render.circuit.svg import to_svg
from workbench.render.circuit.view import CircuitView, ViewKind

ENDINGS = (".svg", ".png", ".pdf")
_SIZE = re.compile(r'width="(?P<width>[\d.]+)" height="(?P<height>[\d.]+)"')
"""How the first tag of our pictures says their size."""


def save_circuit(
    view: CircuitView, path: Path, *, kind: ViewKind, width: float | None, scale: float, overwrite: bool
) -> Path:
    """Write one view of a circuit; arguments as in `render.export.export`.

    Args:
        width: in inches; None keeps a pixel of the picture for each pixel of the screen.
    """
    # drawn before the check below, because this one names an unknown kind
    text = to_svg(view, kind=kind)
    if kind == "position" and not view.has_positions:
        raise CircuitError(
            "Scores by position are not known: pass position_scores= for one prompt to CircuitView.of, or "
            "export kind='component'."
        )
    return save_svg(text, path, width=width, scale=scale, overwrite=overwrite)


def save_svg(svg: str, path: Path, *, width: float | None, scale: float, overwrite: bool) -> Path:
    """Write a picture that is SVG text as .svg, .png or .pdf, whole or not at all."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UnknownName("ending", ending or path.name, ENDINGS)
    if isinstance(scale, bool) or not (isfinite(scale) and scale > 0):
        raise WorkbenchError(
            f"scale={scale!r}: a number above 0 is needed, the pixels of a PNG for each unit of the picture."
        )
    check_free(path, overwrite=overwrite)
    if width is not None:
        svg = _in_inches(svg, width)
    data = svg.encode() if ending == ".svg" else _drawn_by_cairo(svg, ending, scale)
    with whole(path) as partial:
        partial.write_bytes(data)
    return path


def _in_inches(svg: str, width: float) -> str:
    """The picture with a size in inches; its viewBox, and so all within it, stays."""
    size = _SIZE.search(svg)
    if size is None:
        raise WorkbenchError("This picture says no size in pixels, so that it cannot be given one in inches.")
    height = width * float(size["height"]) / float(size["width"])
    return svg[: size.start()] + f'width="{width:g}in" height="{height:.4g}in"' + svg[size.end() :]


def _drawn_by_cairo(svg: str, ending: str, scale: float) -> bytes:
    """A PNG, `scale` pixels for each unit of the picture, or a PDF."""
    try:
        import cairosvg  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:
        raise WorkbenchError(
            f"{ending} pictures need CairoSVG and the library cairo: pip install 'interp-workbench[pdf]'. "
            "SVG needs nothing."
        ) from error
    source = svg.encode()
    if ending == ".png":
        options: dict[str, Any] = {"scale": scale}  # its stub says int, and a fraction works
        return cairosvg.svg2png(bytestring=source, **options) or b""
    return _undated(cairosvg.svg2pdf(bytestring=source) or b"")


def _undated(pdf: bytes) -> bytes:
    """The PDF with a fixed date, so that the same view gives the same bytes.

    The date keeps its length, so that the table of offsets in the file stays right.
    """
    return re.sub(
        rb"/CreationDate \(D:[^)]*\)",
        lambda date: b"/CreationDate (D:20000101000000Z)".ljust(len(date[0])),
        pdf,
    )
