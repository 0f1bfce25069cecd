"""Notebooks in a real JupyterLab, of this machine only.

A server in a folder, and a browser that reaches nothing else.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browsers import BROWSER, FLAGS, HANGS, Seen

ROOT = Path(__file__).parents[1]
_SILENT = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "extensionmanager-extension/plugin": {"enabled": False},
}
_QUIET = (
    "--no-browser",
    "--expose-app-in-browser",
    "--LabApp.extension_manager=readonly",
    "--LabApp.news_url=None",
)
_THERE = "!!document.querySelector('.jp-NotebookPanel .jp-Notebook .jp-Cell')"
_NOTEBOOK = "jupyterapp.shell.currentWidget.context"
# Asked for again and again, since JupyterLab may replace the first panel: its promise `ready` is never kept then.
_LOADED = f"!!jupyterapp.shell.currentWidget?.context && {_NOTEBOOK}.isReady"

_NOT_SHOWN = (
    "[...document.querySelectorAll('.jp-RenderedMarkdown img')].filter(i => !i.naturalWidth).map(i => i.alt)"
)


@dataclass
class Opened(Seen):
    """A notebook in JupyterLab.

    `requests` are those that asked for anything but the server, and were refused.
    """

    path: Path = Path()

    def command(self, name: str) -> None:
        """Runs a command of JupyterLab, by its name there, until it has ended."""
        self.page.evaluate("async (name) => { await jupyterapp.commands.execute(name); }", name)


@dataclass(frozen=True)
class Ran:
    """A notebook after all of its cells ran.

    Attributes:
        cells: as they were saved, with their outputs.
        errors: one line per cell that failed, with its number, and per picture of a text that is not shown.
        pictures: of each cell, if a folder for them was named.
        requests: what the page asked for beyond the server.
        console: what the page said.
    """

    cells: list[Any]
    errors: list[str]
    pictures: list[Path] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Lab:
    """A server of JupyterLab in a folder."""

    folder: Path
    url: str
    token: str
    environment: dict[str, str]

    def set(self, plugin: str, settings: Mapping[str, Any]) -> None:
        """What the Settings Editor would write for a plugin of JupyterLab's own."""
        file = (
            Path(self.environment["JUPYTERLAB_SETTINGS_DIR"])
            / "@jupyterlab"
            / f"{plugin}.jupyterlab-settings"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings), encoding="utf-8")

    def trust(self, name: str) -> None:
        """Signs a notebook as its author's, as `jupyter trust` does."""
        command = [sys.executable, "-m", "jupyter", "trust", str(self.folder / name)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=HANGS)

    @contextmanager
    def opened(
        self, name: str, *, width: int = 1400, height: int = 1000, dark: bool = False
    ) -> Iterator[Opened]:
        """A notebook of the folder in a browser, once its cells are there."""
        from playwright.sync_api import sync_playwright

        self.set("apputils-extension/themes", {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"})
        with sync_playwright() as driver:
            flags = [*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
            browser = driver.chromium.launch(executable_path=BROWSER, args=flags)
            try:
                scheme = "dark" if dark else "light"
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                context.set_default_timeout(HANGS * 1000)
                seen = Opened(context.new_page(), path=self.folder / name)
                context.route(lambda url: not url.startswith(f"{self.url}/"), lambda route: route.abort())
                page, ours = (
                    seen.page,
                    (
                        f"{self.url}/",
                        f"{self.url}/".replace("http", "ws", 1),
                        "data:",
                        "blob:",
                        "about:",
                        "attachment:",
                    ),
                )
                note = lambda asked: asked.url.startswith(ours) or seen.requests.append(asked.url)  # noqa: E731
                page.on("request", note)
                page.on("websocket", note)
                page.on(
                    "console", lambda message: message.type == "error" and seen.console.append(message.text)
                )
                page.on("pageerror", lambda error: seen.console.append(str(error)))
                page.on(
                    "dialog",
                    lambda dialog: (seen.console.append(f"dialog: {dialog.message}"), dialog.dismiss()),
                )
                page.goto(f"{self.url}/lab/tree/{name}?reset&token={self.token}")
                seen.wait("window.jupyterapp !== undefined")
                page.evaluate("async () => { await jupyterapp.restored; }")
                seen.wait(_THERE)
                seen.wait(_LOADED)
                yield seen
            finally:
                browser.close()


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """JupyterLab in a folder, its settings beside it. Skips the test where it or a browser is missing."""
    for module in ("jupyterlab", "ipykernel", "playwright"):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    own, token, port = folder / ".jupyter", secrets.token_hex(16), _free_port()
    places = {f"JUPYTER_{kind}_DIR": str(own / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    places |= {f"JUPYTERLAB_{kind}_DIR": str(own / kind.lower()) for kind in ("SETTINGS", "WORKSPACES")}
    places |= {"IPYTHONDIR": str(own / "ipython"), "JUPYTER_TOKEN": token, "HOME": str(own)}
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    environment = os.environ | places | {"PYTHONPATH": os.pathsep.join(paths), "TQDM_DISABLE": "1"}
    where = (
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.allow_root=True",
    )
    command = [sys.executable, "-m", "jupyterlab", *_QUIET, *where, f"--ServerApp.root_dir={folder}"]
    made = Lab(folder, f"http://127.0.0.1:{port}", token, environment)
    for plugin, settings in _SILENT.items():
        made.set(plugin, settings)
    with open(own / "log.txt", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            _wait_for(made, server, own / "log.txt")
            yield made
        finally:
            server.terminate()  # it ends its kernels
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def run_all(
    made: Lab, name: str, *, pictures: Path | None = None, seconds: float = 600, **window: Any
) -> Ran:
    """What a notebook of the folder holds after "run all cells", saved in place, and a picture of each cell
    if asked.

    Raises:
        TimeoutError: the kernel is still busy after so many seconds.
    """
    with made.opened(name, **window) as seen:
        page = seen.page
        seen.wait(f"{_NOTEBOOK}.sessionContext.isReady")
        page.evaluate(
            "() => { window.ran = false; jupyterapp.commands.execute('notebook:run-all-cells').then(() => { ran = true; }); }"
        )
        end, idle = (
            time.monotonic() + seconds,
            f"ran && {_NOTEBOOK}.sessionContext.session.kernel.status === 'idle'",
        )
        while not page.evaluate(idle):
            if time.monotonic() > end:
                raise TimeoutError(f"{name} is still running after {seconds:g} s.")
            page.wait_for_timeout(100)
        page.wait_for_timeout(1000)  # scripts draw
        seen.command("docmanager:save")
        taken = [] if pictures is None else _pictures(page, pictures, Path(name).stem)
        page.evaluate(f"async () => {{ await {_NOTEBOOK}.sessionContext.shutdown(); }}")
        cells = json.loads((made.folder / name).read_text(encoding="utf-8"))["cells"]
        missing = [f"not shown: {text}" for text in page.evaluate(_NOT_SHOWN)]
        return Ran(cells, errors_of(cells) + missing, taken, list(seen.requests), list(seen.console))


def errors_of(cells: Sequence[Any]) -> list[str]:
    """One line per cell that failed, with its number."""
    return [
        f"cell {number}: {output['ename']}: {output['evalue']}"
        for number, cell in enumerate(cells, 1)
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]


def _pictures(page: Any, folder: Path, stem: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, cell in enumerate(page.locator(".jp-Notebook .jp-Cell").all(), 1):
        cell.scroll_into_view_if_needed()
        page.wait_for_timeout(200)
        paths.append(folder / f"{stem}-{number:02}.png")
        cell.screenshot(path=paths[-1])
    return paths


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for(made: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            opener.open(f"{made.url}/api?token={made.token}", timeout=2).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-4000:]}")
