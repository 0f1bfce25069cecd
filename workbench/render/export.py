"""A circuit as a file for papers and slides: SVG always, PNG and PDF with the extra `pdf`."""

from pathlib import Path
from typing import Any

from workbench.errors import UnknownName, WorkbenchError
from workbench.files import check_free, whole
from workbench.render.svg import to_svg
from workbench.render.view import CircuitView, ViewKind

ENDINGS = (".svg", ".png", ".pdf")


def export(
    view: CircuitView, path: str | Path, *, kind: ViewKind = "component", scale: float = 2.0, overwrite: bool = False
) -> Path:
    """Write one view of a circuit to a .svg, .png or .pdf file, whole or not at all; its path comes back.

    Args:
        scale: pixels of a PNG for each unit of the picture.
    Raises:
        UnknownName: another ending.  OutputExists: the file is there.  WorkbenchError: CairoSVG is not installed.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UnknownName("kind of picture file", ending or path.name, ENDINGS)
    check_free(path, overwrite=overwrite)
    text = to_svg(view, kind=kind)
    if ending == ".svg":
        data = text.encode()
    else:
        try:
            import cairosvg  # pyright: ignore[reportMissingImports]
        except (ImportError, OSError) as error:
            raise WorkbenchError(
                f"{ending} pictures need CairoSVG and the library cairo: pip install 'interp-workbench[pdf]'. SVG needs nothing."
            ) from error
        convert = cairosvg.svg2png if ending == ".png" else cairosvg.svg2pdf
        size: dict[str, Any] = {"scale": scale if ending == ".png" else 1.0}
        data = convert(bytestring=text.encode(), **size) or b""
    with whole(path) as partial:
        partial.write_bytes(data)
    return path
