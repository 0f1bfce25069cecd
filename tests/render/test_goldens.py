"""Pictures keep their structure: what is drawn, in which order, with which text; places and sizes may move.

After a change that is meant, `python tests/render/test_goldens.py` writes the goldens anew; read the
difference.
"""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from pictures import HOSTILE, TOKENS, make_circuit, make_panels, make_view

from workbench.render.circuit.svg import to_svg
from workbench.render.circuit.view import CircuitView
from workbench.render.report import report
from workbench.sites import Shape

FOLDER = Path(__file__).with_name("goldens")
GROUPED = Shape(2, 4, 2, 32, 8, 64, 50, 16)


@cache
def pictures() -> dict[str, str]:
    """Circuits in both layouts, compared, without scores and empty; and the stills of panels."""
    grouped, whole = make_circuit(GROUPED, 12), make_circuit(n=12)
    views = {
        "unscored": CircuitView.of(make_circuit(n=12, scored=False)),
        "hostile": make_view(whole, HOSTILE, title=HOSTILE[0]),
    }
    views |= {
        "compared": CircuitView.compared(whole, make_circuit(n=20)),
        "empty": CircuitView.of(whole - whole),
    }
    views |= {"grouped": make_view(grouped, TOKENS)}
    drawn = {f"circuit-{name}": to_svg(view) for name, view in views.items()}
    drawn |= {f"positions-{name}": to_svg(views[name], kind="position") for name in ("grouped", "hostile")}
    stills = {panel.component: panel.still for panel in make_panels(TOKENS) if panel.still}
    return drawn | {f"panel-{name}": still for name, still in stills.items()}


def structure(svg: str) -> list[str]:
    """A line for each element, indented as it is nested: tag, class, role, text.

    Coordinates and styles are left out.
    """
    lines: list[str] = []

    def visit(element: ElementTree.Element, depth: int) -> None:
        tag = element.tag.split("}")[1]
        if tag == "style":
            return
        words = [tag, element.get("class") or "", element.get("role") or "", (element.text or "").strip()]
        lines.append(" " * depth + " ".join(filter(None, words)))
        for child in element:
            visit(child, depth + 1)

    visit(ElementTree.fromstring(svg), 0)
    return lines


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_structure_is_the_golden_one(name):
    assert structure(pictures()[name]) == json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_picture_has_a_golden():
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(pictures())


def page_hash(folder: Path) -> str:
    """The hash of a page with a circuit, panels and figures, written into a folder."""
    table = xr.DataArray(np.eye(3), dims=("layer", "head"), name="effect")
    sections = [
        ("Circuit", make_view(make_circuit(), TOKENS)),
        ("Panels", make_panels(TOKENS)),
        ("Table", table),
        ("Many", table.expand_dims(pos=4)),
    ]
    path = report(sections, folder / "page.html", title="t", overwrite=True)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_page_has_the_same_bytes_in_every_process(tmp_path):
    """Nothing depends on the order of sets, which differs between processes with the seed of hashes."""
    paths = [str(FOLDER.parent), str(FOLDER.parents[1]), str(FOLDER.parents[2])]
    code = f"import sys; sys.path[:0] = {paths}; import test_goldens, pathlib; "
    code += f"print(test_goldens.page_hash(pathlib.Path({str(tmp_path)!r})))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed}
    other = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == page_hash(tmp_path)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for golden in FOLDER.glob("*.json"):
        golden.unlink()
    for picture, text in pictures().items():
        (FOLDER / f"{picture}.json").write_text(
            json.dumps(structure(text), indent=0, ensure_ascii=True) + "\n", encoding="utf-8"
        )
