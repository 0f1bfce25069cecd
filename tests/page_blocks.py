"""The blocks of a page of the documentation, and a program that runs them as a reader would: `python page_blocks.py PAGE`.

* `python` runs in one process and one set of names for the page, as in a notebook.
* `sh` runs with `bash -e`.
* A block with `title="mine.csv"` is a file: it is written under that name, and a later block has to name it.
* `text` after a block is what that block prints; a line of three dots stands for any lines.
* `console` is what cannot run in a test; each command in it has to be of a short list (`CONSOLE`).

The program is called in an empty folder. It writes one line of JSON for each block that ran: its line in the page, its
seconds and what it printed.
"""

import ast
import contextlib
import faulthandler
import io
import json
import linecache
import re
import subprocess
import sys
import textwrap
import time
import types
from dataclasses import dataclass
from pathlib import Path

FILES = ("csv", "jsonl", "json", "yaml", "python", "sh")
"""The languages that a file may have."""
RUN = ("python", "sh")
CONSOLE = (
    "cd ", "git clone ", "hf auth login", "jupyter lab", "make ", "mkdir ", "pip install ", "ray ", "sbatch ",
    "workbench models get ", "wandb ",
)  # fmt: skip
"""What a command that no test runs may begin with. A command of the real language model is allowed too (`REAL`)."""
REAL = re.compile(
    r"workbench (check|discover|effects|measure|paths) .*--model (smollm2-135m-instruct-q4|gpt2)\b"
)
LIMIT = 120
"""Seconds after which a block is stopped. It should take 20 at most; a busy machine is slower."""
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)$")
_INFO = re.compile(r'^(?P<language>\w+)(?: title="(?P<title>[\w.-]+)")?$')


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind its fence, its text, and the line of the page on which the text begins."""

    info: str
    text: str
    line: int

    @property
    def language(self) -> str:
        """The first word behind the fence; none where what stands there is not understood."""
        known = _INFO.match(self.info)
        return known["language"] if known else ""

    @property
    def title(self) -> str | None:
        """The name of the file that the block is."""
        known = _INFO.match(self.info)
        return known["title"] if known else None

    @property
    def runs(self) -> bool:
        """Whether the block is code that is run."""
        return self.title is None and self.language in RUN

    @property
    def commands(self) -> list[str]:
        """The lines of a `console` block that are typed."""
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order.

    Raises:
        ValueError: a fence that is never closed.
    """
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start = 0
    fence: re.Match[str] | None = None
    for number, line in enumerate(lines, 1):
        mark = _FENCE.match(line)
        if fence is None:
            fence, start = mark, number + 1
        elif mark is not None and not mark["info"]:
            text = textwrap.dedent("\n".join(lines[start - 1 : number - 1]))
            found.append(Block(fence["info"].strip(), text + "\n", start))
            fence = None
    if fence is not None:
        raise ValueError(f"{page.name}: the block before line {start} is never closed.")
    return found


def faults(page: Path) -> list[str]:
    """What is wrong with the blocks themselves, a line for each."""
    blocks, found = blocks_of(page), []
    for number, block in enumerate(blocks):
        place = f"{page.name}:{block.line}"
        if block.title is not None:
            later = "".join(other.text for other in blocks[number + 1 :])
            if block.language not in FILES:
                found.append(f"{place}: a file is one of {FILES}, not {block.language!r}.")
            if not re.search(rf"\b{re.escape(block.title.split('.')[0])}\b", later):
                found.append(f"{place}: no later block names {block.title}.")
        elif block.language == "console":
            found += _faults_of_console(block, place)
        elif block.language == "text":
            if not number or not blocks[number - 1].runs:
                found.append(f"{place}: what is printed stands behind the block that prints it.")
        elif not block.runs:
            found.append(f"{place}: ```{block.info} is neither run nor written to a file.")
    return found


def _faults_of_console(block: Block, place: str) -> list[str]:
    if not block.text.startswith("$ "):
        return [f"{place}: a console block begins with `$ ` and a command."]
    commands = [part.strip() for line in block.commands for part in re.split(r"&&|;|\|", line.split(" #")[0])]
    hidden = [command for command in commands if not command.startswith(CONSOLE) and not REAL.match(command)]
    return [f"{place}: {command!r} could run in a test." for command in hidden]


def run(page: Path) -> None:
    """Run the blocks of a page in the working directory."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main  # as in a notebook: processes that code starts have no script to import
    for block in blocks_of(page):
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.runs:
            started = time.monotonic()
            shown = _python(block, page, main) if block.language == "python" else _shell(block)
            facts = {"line": block.line, "seconds": round(time.monotonic() - started, 1), "shown": shown}
            print(json.dumps(facts), file=sys.__stdout__, flush=True)


def _python(block: Block, page: Path, main: types.ModuleType) -> str:
    name = f"<{page.name}:{block.line}>"
    # So that the source of what is defined here can be read, as in a notebook.
    linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(ast.parse(block.text), name, "exec"), main.__dict__)
    faulthandler.cancel_dump_traceback_later()
    return shown.getvalue()


def _shell(block: Block) -> str:
    call = ["bash", "-e", "-c", block.text]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        raise SystemExit(f"line {block.line}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    sys.path[0] = ""
    run(Path(sys.argv[1]))
