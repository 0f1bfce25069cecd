"""Whether what a notebook shows is what it was saved with, on any processor."""

import re
from collections.abc import Sequence
from typing import Any

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
SPACES = re.compile(r"[\s\[\](),]+")  # columns and lists are padded by the widths of their numbers
SHARE = 0.03
"""How far apart numbers may be, as a share of the largest in the text: what is printed is rounded."""


def differences(saved: Sequence[Any], ran: Sequence[Any]) -> list[str]:
    """One line for each cell that shows something else: other kinds, other words, or numbers too far apart."""
    found = []
    for i, (one, other) in enumerate(zip(saved, ran, strict=True)):
        if one.cell_type != "code":
            continue
        kinds = [[_kind(output) for output in cell.outputs] for cell in (one, other)]
        if kinds[0] != kinds[1]:
            found.append(f"cell {i} shows {kinds[1]}, and {kinds[0]} is saved")
            continue
        for texts in zip(_texts(one), _texts(other), strict=True):
            if not alike(*texts):
                found.append(f"cell {i} shows {texts[1]!r}, and {texts[0]!r} is saved")
    return found


def alike(saved: str, shown: str) -> bool:
    """Whether two texts have the same words, and numbers that agree to a share of the largest."""
    words = [SPACES.sub(" ", NUMBER.sub("#", text)) for text in (saved, shown)]
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (saved, shown)]
    if words[0] != words[1]:
        return False
    largest = max(map(abs, numbers[0]), default=0)
    return all(abs(a - b) <= SHARE * largest + 0.011 for a, b in zip(*numbers, strict=True))


def _kind(output: Any) -> tuple[str, ...]:
    return (output.output_type, *sorted(output.get("data", {})))


def _texts(cell: Any) -> list[str]:
    """Printed text, and results that are text alone; pictures are compared by their kind."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append("".join(output.text))
        elif [*output.get("data", {})] == ["text/plain"]:
            texts.append("".join(output.data["text/plain"]))
    return texts
