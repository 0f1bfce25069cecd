"""The documentation as a reader would try it: every block of every page runs as printed, in order, from an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import page_blocks
import pytest
from notebook_outputs import alike

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST = 40
"""Lines that a block may print: more is for files."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_hides_from_the_tests(page):
    assert page_blocks.faults(page) == []


RUN = [page for page in PAGES if any(block.runs for block in page_blocks.blocks_of(page))]
# A page that takes a few seconds is checked by the fast suite too.
FAST = ROOT / "docs" / "index.md"
MARKED = [pytest.param(page, marks=[] if page == FAST else pytest.mark.slow) for page in RUN]


@pytest.mark.parametrize("page", MARKED, ids=name)
def test_every_block_of_a_page_runs_as_printed(page, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MPLBACKEND": "agg",
    }
    call = [sys.executable, str(TESTS / "page_blocks.py"), str(page)]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    shown = {facts["line"]: facts["shown"] for facts in map(json.loads, done.stdout.splitlines())}
    wrong, before = [], None
    for block in page_blocks.blocks_of(page):
        if block.language == "text" and before is not None and not agrees(block.text, shown[before.line]):
            wrong.append(f"line {before.line} prints\n{shown[before.line]}\nand the page says\n{block.text}")
        before = block
    assert wrong == [], "\n".join(wrong)
    for line, text in shown.items():
        assert len(text.splitlines()) <= LONGEST, f"line {line}: long\n{text}"


def agrees(printed: str, shown: str) -> bool:
    """Whether a page prints what a block shows, up to the last digits; `...` on a line stands for any lines."""
    lines = [line.strip() for line in shown.strip().splitlines()]
    parts = [[]]
    for line in printed.strip().splitlines():
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(line.strip())
    return _agree(parts, lines, anchored=True)


def _agree(parts: list[list[str]], lines: list[str], *, anchored: bool) -> bool:
    """Whether the parts follow each other in the lines, the first at the beginning where it is anchored."""
    part, n = parts[0], len(parts[0])
    if len(parts) == 1 and (anchored or not n):
        return not n or (len(lines) == n and alike("\n".join(part), "\n".join(lines)))
    if len(parts) == 1:
        return alike("\n".join(part), "\n".join(lines[-n:]))
    starts = [0] if anchored else range(len(lines) - n + 1)
    return any(
        alike("\n".join(part), "\n".join(lines[start : start + n]))
        and _agree(parts[1:], lines[start + n :], anchored=False)
        for start in starts
    )


@pytest.mark.parametrize(
    ("printed", "result"),
    [("a 1.00\nb\nc", True), ("a 1.00\n...", True), ("...\nc", True), ("...\nb\n...", True), ("a 2.00\nb\nc", False),
     ("a 1.00", False), ("...\nb", False)],
)  # fmt: skip
def test_what_a_page_prints_is_compared_with_what_is_shown(printed, result):
    assert agrees(printed, "a 1.001\nb\nc\n") is result


PAGE = """
```sh
workbench ls
```

```python3
1 / 0
```

```text
nothing
```

```csv title="mine.csv"
clean,corrupt
```

```console
$ pip install interp-workbench
$ workbench ls
```

```
no language
```
"""


def test_what_would_hide_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert page_blocks.faults(page) == [
        "page.md:7: ```python3 is neither run nor written to a file.",
        "page.md:11: what is printed stands behind the block that prints it.",
        "page.md:15: no later block names mine.csv.",
        "page.md:19: 'workbench ls' could run in a test.",
        "page.md:24: ``` is neither run nor written to a file.",
    ]
