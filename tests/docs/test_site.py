"""The site: every public name is explained in one place, and its pages ask the network for nothing."""

import ast
import http.server
import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsers import BROWSER, FLAGS

import workbench
from workbench import errors
from workbench.course.lessons import LESSONS
from workbench.render import panels

ROOT = Path(__file__).parents[2]


def explained() -> list[str]:
    """The names that the pages of the API have, below `workbench`."""
    pages = (ROOT / "docs" / "api").glob("*.md")
    found = [re.findall(r"^::: workbench\.(\S+)$", page.read_text(encoding="utf-8"), re.M) for page in pages]
    return [name for names in found for name in names]


def test_every_public_name_is_explained_once():
    names = explained()
    assert sorted(names) == sorted(set(names))
    expected = {*workbench.__all__, *(f"render.panels.{name}" for name in panels.__all__)}
    expected |= {"results.ResultAccessor", "kinds.Kinds", "sweeps.table.Sweep"}
    of_errors = [name for name in vars(errors) if isinstance(getattr(errors, name), type)]
    kinds = {name for name in of_errors if issubclass(getattr(errors, name), errors.WorkbenchError)}
    expected |= {f"errors.{name}" for name in kinds - {"WorkbenchError"}}
    assert set(names) == expected


def test_architecture_lists_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "workbench"
    modules = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    folders = [path.parent.name + "/" for path in package.glob("*/__init__.py")]
    table = text.split("\n## The folders\n")[1].split("\n## ")[0]
    assert [name for name in modules + folders if f"`{name}`" not in table] == []


def test_the_course_has_every_lesson():
    text = (ROOT / "docs" / "course.md").read_text(encoding="utf-8")
    links = [
        f"| {lesson.number} · [{lesson.title}](../notebooks/{lesson.file}.ipynb), {lesson.minutes} minutes"
        for lesson in LESSONS
    ]
    assert [link for link in links if link not in text] == []


def test_figures_has_every_kind_of_the_gallery():
    text = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    tree = ast.parse((ROOT / "docs" / "gallery.py").read_text(encoding="utf-8"))
    lists = [node.elts for node in ast.walk(tree) if isinstance(node, ast.List)]
    pairs = [item for elements in lists for item in elements if isinstance(item, ast.Tuple)]
    titles = [pair.elts[0].value for pair in pairs if isinstance(pair.elts[0], ast.Constant)]
    assert len(titles) > 50
    assert [title for title in titles if f"| {title} |" not in text] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    call = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page makes a browser load: addresses of scripts, styles, pictures and frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        if tag != "a" and facts.get("rel") not in ("canonical", "next", "prev"):
            self.addresses += [
                facts[name] or "" for name in ("src", "href", "srcset", "data", "poster") if name in facts
            ]
        self.addresses += re.findall(r"url\(([^)]*)\)", facts.get("style") or "")


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert len(loaded.addresses) > 3
        assert [address for address in loaded.addresses if re.match(r"(https?:)?//", address)] == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), (
            style
        )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""


@pytest.mark.slow
def test_a_browser_stays_on_the_site_and_search_finds_a_function(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        requests, console = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: console.append(message.text))
        for path in ("api/evaluation.html", "figures.html", "index.html"):
            page.goto(home + path)
        page.locator("input.md-search__input").fill("faithfulness_curve")
        page.locator(".md-search-result__link").first.wait_for()
        assert "evaluation.html" in (
            page.locator(".md-search-result__link").first.get_attribute("href") or ""
        )
        browser.close()
    server.shutdown()
    assert [url for url in requests if not url.startswith((home, "data:", "blob:"))] == []
    assert console == []
