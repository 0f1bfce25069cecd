"""What the strokes of a circuit's picture mean: `legend`, as SVG text."""

from dataclasses import dataclass

from workbench.render.circuit.curves import SIDES, Strokes
from workbench.render.circuit.view import CircuitView, ViewKind
from workbench.render.writing import cut, decimal, text_width
from workbench.text import visible, xml

_SIDE_WIDTH = 160.0
"""Pixels of the name of one of two compared circuits."""
_SAMPLE = 36
"""Room for a sample stroke before its label."""
_ROW = 17


@dataclass(frozen=True)
class Legend:
    """SVG text and the height it takes."""

    svg: str
    height: float


@dataclass(frozen=True)
class _Entry:
    """A sample stroke with its label; without a style there is only the label."""

    style: str
    label: str
    thickness: float

    @property
    def indent(self) -> int:
        """How far the label stands to the right, past a sample of the line where there is one."""
        if self.style:
            return _SAMPLE
        return 0


def legend(
    view: CircuitView, kind: ViewKind, strokes: Strokes, *, hops: bool, width: float, y: float
) -> Legend:
    """Entries in rows of `width` pixels, the first row at `y`.

    Args:
        hops: whether attention is drawn.
    """
    x, row, text = 16.0, 0, ""
    for entry in _entries(view, kind, strokes, hops):
        needed = entry.indent + text_width(entry.label, 11.0) + 18
        if x > 16 and x + needed > width - 8:
            x, row = 16.0, row + 1
        middle = y + _ROW * row
        if entry.style:
            stroke = f'd="M{decimal(x)} {decimal(middle)}h28" stroke-width="{decimal(entry.thickness)}"'
            text += f'<path class="{entry.style} y" {stroke}/>'
        at = f'x="{decimal(x + entry.indent)}" y="{decimal(middle + 4)}"'
        text += f'<text class="s" {at}>{xml(entry.label)}</text>'
        x += needed
    return Legend(text, 1.0 * _ROW * row + 16)


def _entries(view: CircuitView, kind: ViewKind, strokes: Strokes, hops: bool) -> list[_Entry]:
    entries = []
    if view.sides:
        first, second = (cut(visible(name), _SIDE_WIDTH, 11.0) for name in view.sides)
        entries.append(_Entry(f"e {SIDES['both']}", "in both", 3.0))
        entries.append(_Entry(f"e {SIDES['a']}", f"only in {first}", 3.0))
        entries.append(_Entry(f"e {SIDES['b']}", f"only in {second}", 3.0))
    elif strokes.strongest:
        strongest, thickest = strokes.strongest, strokes.thickest
        entries.append(_Entry("e p", "supports", 4.0))
        entries.append(_Entry("e m", "opposes", 4.0))
        entries.append(_Entry("e p", f"|score| = {strongest:.3g}", thickest))
        entries.append(_Entry("e p", f"{strongest / 4:.3g}", thickest / 4))
    else:
        entries.append(_Entry("e z", "edge (no scores)", 1.5))
    if hops:
        entries.append(_Entry("h", "attention, from key to query position", 3.0))
    if view.shape.n_kv_heads != view.shape.n_heads:
        short = "kv: shared key-value head"
        long = "kv: one key-value head, shared by the query heads beside it"
        entries.append(_Entry("", long if kind == "component" else short, 0.0))
    return entries
