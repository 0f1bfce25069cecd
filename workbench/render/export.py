"""Any picture as a file for papers and slides: `export`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from workbench.arguments import checked
from workbench.circuit.circuit import Circuit
from workbench.errors import WorkbenchError
from workbench.render.circuit.export import save_circuit, save_svg
from workbench.render.circuit.view import CircuitView, ViewKind
from workbench.render.figures.canvas import for_column
from workbench.render.figures.export import NARROW, Width, inches_of, save_figure
from workbench.render.panel import Panel
from workbench.render.plots import plot


@checked
def export(
    thing: Any,
    path: str | Path,
    *,
    width: Width | None = None,
    kind: ViewKind = "component",
    scale: float = 2.0,
    title: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a picture to a .svg, .png or .pdf file, whole or not at all, and return its path.

    Same picture, same bytes. A figure with a width is laid out anew for a paper (`figures.export.save_figure`);
    circuits and panels are scaled, so that their text shrinks with them.

    Args:
        thing: a circuit or a view of one, a panel, a matplotlib figure, or any result that `plot` draws.
        path: of the file; its ending says which format.
        width: "column" (3.25 inches), "text" (6.75), or inches; None keeps the size of the screen.
        kind: of a circuit's view, `component` or `position`.
        scale: of a circuit or panel, pixels of a PNG for each unit of the picture.
        title: of a result that is drawn here.
        overwrite: replace a file that is there.
    Raises:
        UnknownName: another ending, width or kind of view.
        OutputExists: the file is there.
        CircuitError: scores by position are not known.
        WorkbenchError: there is no picture of such a thing, a scale that is not a positive number, or CairoSVG
            is not installed.

    >>> import tempfile, xarray as xr
    >>> effects = xr.DataArray([[1.0, -1.0]], dims=("layer", "head"), name="effect")
    >>> export(effects, Path(tempfile.mkdtemp()) / "effects.svg", width="column").name
    'effects.svg'
    """
    inches = None if width is None else inches_of(width)
    if not isinstance(thing, Circuit | CircuitView | Panel | Figure):
        with for_column() if inches is not None and inches < NARROW else nullcontext():
            thing = plot(thing, title=title)
    if isinstance(thing, Figure):
        return save_figure(thing, path, width=inches, overwrite=overwrite)
    if isinstance(thing, Circuit):
        thing = CircuitView.of(thing)
    if isinstance(thing, CircuitView):
        return save_circuit(thing, Path(path), kind=kind, width=inches, scale=scale, overwrite=overwrite)
    if not thing.still:
        raise WorkbenchError(
            f"The panel {thing.title!r} is drawn by a script and has no picture. Panels of `panels` have one."
        )
    return save_svg(thing.still, Path(path), width=inches, scale=scale, overwrite=overwrite)
