"""The gallery is built from real results and draws itself."""

import runpy
from pathlib import Path

import pytest
from browsers import opened

GALLERY = Path(__file__).parents[2] / "docs" / "gallery.py"


@pytest.mark.slow
def test_gallery_draws_every_picture():
    gallery = runpy.run_path(str(GALLERY))
    path = gallery["build"]()
    with opened(path) as seen:
        assert seen.page.locator(".circuit iframe").count() >= 4
        assert seen.page.locator("img.plot").count() >= 40
        seen.wait("document.querySelectorAll('.panel').length === 9")
        seen.page.evaluate(
            "document.querySelectorAll('.panel details').forEach((fold) => { fold.open = true; })"
        )
        seen.wait(
            "[...document.querySelectorAll('.panel')]"
            ".every((box) => box.querySelector('.live')?.childElementCount)"
        )
        broken = (
            "[...document.images].filter((img) => img.style.display !== 'none' && !img.naturalWidth).length"
        )
        assert seen.page.evaluate(broken) == 0
        assert seen.console == []
        assert [
            url for url in seen.requests if not url.startswith(("file:", "data:", "about:", "blob:"))
        ] == []
