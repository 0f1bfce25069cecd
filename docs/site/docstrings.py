"""Docstrings as Markdown: examples (`>>>`) in fences, because Markdown takes `>` for a quotation."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*)", re.MULTILINE)


class Examples(griffe.Extension):
    """Puts each example of a docstring in a fence."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute that was read."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(_fenced, griffe_cleaned(obj.docstring.value))


def griffe_cleaned(text: str) -> str:
    """The text without trailing spaces, so that an empty line ends an example."""
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


def _fenced(example: re.Match[str]) -> str:
    return f"```pycon\n{example[0].rstrip()}\n```\n"
