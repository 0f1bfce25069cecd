"""A circuit as a file for papers and slides (`export`): SVG always, PNG and PDF with the extra `pdf`."""

import re
from math import isfinite
from pathlib import Path
from typing import Any

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError, UnknownName, WorkbenchError
from workbench.files import check_free, whole
from workbench.render.circuit.svg import to_svg
from workbench.render.circuit.view import CircuitView, ViewKind

ENDINGS = (".svg", ".png", ".pdf")


@checked
def export(
    view: CircuitView | Circuit,
    path: str | Path,
    *,
    kind: ViewKind = "component",
    scale: float = 2.0,
    overwrite: bool = False,
) -> Path:
    """Write one view of a circuit to a .svg, .png or .pdf file, whole or not at all, and return its path.

    Same view, same bytes.

    Args:
        view: or a circuit, whose view without positions is drawn.
        path: of the file; its ending says which kind.
        kind: `component` or `position`.
        scale: pixels of a PNG for each unit of the picture.
        overwrite: replace a file that is there.
    Raises:
        UnknownName: another ending, or kind of view.
        OutputExists: the file is there.
        CircuitError: scores by position are not known.
        WorkbenchError: a scale that is not a positive number, or CairoSVG is not installed.
    """
    if isinstance(view, Circuit):
        view = CircuitView.of(view)
    if not isinstance(view, CircuitView):
        raise WorkbenchError(f"A {type(view).__name__} cannot be exported: a Circuit or a CircuitView can.")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not (isfinite(scale) and scale > 0):
        raise WorkbenchError(
            f"scale={scale!r}: a number above 0 is needed, the pixels of a PNG for each unit of the picture."
        )
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UnknownName("ending", ending or path.name, ENDINGS)
    check_free(path, overwrite=overwrite)
    # drawn before the check below, because this one names an unknown kind
    text = to_svg(view, kind=kind)
    if kind == "position" and not view.has_positions:
        raise CircuitError(
            "Scores by position are not known: pass position_scores= for one prompt to CircuitView.of, or "
            "export kind='component'."
        )
    data = text.encode() if ending == ".svg" else _drawn_by_cairo(text, ending, scale)
    with whole(path) as partial:
        partial.write_bytes(data)
    return path


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
