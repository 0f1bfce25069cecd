"""Every lesson runs from top to bottom in JupyterLab, in a browser that reaches nothing else; its pictures
are seen.
"""

import shutil
from pathlib import Path

import pytest

from notebooks import lab, run_all
from workbench.course import LESSONS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_lessons_run_in_jupyterlab(tmp_path):
    for lesson in LESSONS:
        shutil.copy(ROOT / "notebooks" / "solutions" / f"{lesson.file}.ipynb", tmp_path)
    with lab(tmp_path) as server:
        for lesson in LESSONS:
            ran = run_all(server, f"{lesson.file}.ipynb", pictures=tmp_path / lesson.module, seconds=300)
            assert ran.errors == [], lesson.title
            assert ran.requests == [], lesson.title
            shown = [
                kind for cell in ran.cells for out in cell.get("outputs", []) for kind in out.get("data", {})
            ]
            assert {"image/png", "text/html", "image/svg+xml"} & set(shown), (
                f"{lesson.title} shows no picture"
            )
