"""A real browser that cannot reach the network, driven by playwright; nothing of it is downloaded."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]

# Seconds after which a page counts as hanging: far more than it needs on one busy core.
HANGS = 300


@dataclass
class Seen:
    """A loaded page, and what it said and asked for."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def wait(self, condition: str) -> None:
        """Wait for a condition. Playwright's own wait compiles text in the page, which its policy forbids."""
        end = time.monotonic() + HANGS
        while time.monotonic() < end:
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"it never came to be that {condition}")

    def frame(self, number: int = 0) -> Any:
        """The document of an interactive circuit."""
        return self.page.frames[1 + number]


@contextmanager
def opened(path: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> Iterator[Seen]:
    """The page at a path, once its circuits are drawn. Skips the test where there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        try:
            scheme = "dark" if dark else "light"
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
            )
            context.set_default_timeout(HANGS * 1000)
            page = context.new_page()
            seen = Seen(page)
            page.on("console", lambda message: seen.console.append(message.text))
            page.on("pageerror", lambda error: seen.console.append(str(error)))
            page.on(
                "dialog", lambda dialog: (seen.console.append(f"dialog: {dialog.message}"), dialog.dismiss())
            )
            page.on("request", lambda request: seen.requests.append(request.url))
            page.goto(path.as_uri())
            seen.wait(
                "[...document.querySelectorAll('.circuit')].every((box) => box.dataset.edges !== undefined)"
            )
            yield seen
        finally:
            browser.close()
