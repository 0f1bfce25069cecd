"""The site: every public name is explained in one place, and its pages ask the network for nothing."""

import ast
import http.server
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import BROWSER, FLAGS, HANGS, Seen

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


@pytest.fixture(scope="module")
def home(site):
    """The address of the site, served to browsers of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@contextmanager
def visited(**options):
    """A page of a browser, and what it asked for and said. Skips the test where there is no browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on the PATH")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(**options)
        page.set_default_timeout(HANGS * 1000)
        seen = Seen(page)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.console.append(message.text))
        yield seen
        browser.close()


@pytest.mark.slow
def test_a_browser_stays_on_the_site_and_search_finds_a_function(home):
    with visited(viewport={"width": 1280, "height": 900}) as seen:
        for path in ("api/evaluation.html", "figures.html", "index.html"):
            seen.page.goto(home + path)
        box, result = (
            seen.page.locator("input.md-search__input"),
            seen.page.locator(".md-search-result__link").first,
        )
        # What is typed before the index is loaded is not searched, and nothing says when it is.
        for _ in range(30):
            box.fill("")
            box.press_sequentially("faithfulness_curve")
            seen.page.wait_for_timeout(1000)
            if result.count():
                break
        result.wait_for()
        assert "evaluation.html" in (result.get_attribute("href") or "")
    assert [url for url in seen.requests if not url.startswith((home, "data:", "blob:"))] == []
    assert seen.console == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_pass_axe_and_fit_a_narrow_screen(home, scheme):
    pages = ("index", "concepts/values", "howto/sweeps", "figures", "course", "scale", "api/prompts")
    problems = []
    with visited(viewport={"width": 480, "height": 900}, color_scheme=scheme) as seen:
        for name in pages:
            seen.page.goto(f"{home}{name}.html")
            seen.wait("document.querySelectorAll('.md-code__nav:not([aria-label])').length === 0")
            assert seen.page.evaluate("document.documentElement.scrollWidth") <= 480, name
            for width in (480, 1280):
                seen.page.set_viewport_size({"width": width, "height": 900})
                seen.page.wait_for_timeout(800)  # colours fade in
                for one in Axe().run(seen.page).response["violations"]:
                    problems += [
                        f"{name} at {width}: {one['id']}: {node['html'][:160]}" for node in one["nodes"]
                    ]
            seen.page.set_viewport_size({"width": 480, "height": 900})
    assert problems == []
