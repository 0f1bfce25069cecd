"""What checking the arguments of a public function costs per call: a bar of 50 microseconds.

Each function of the table in `test_arguments.py` is timed with its work taken out, so that the check alone is left.

    python tests/benchmarks/arguments.py
"""

import os
import sys
import tempfile
import timeit
from inspect import isroutine, signature, unwrap
from pathlib import Path
from types import FunctionType
from typing import get_type_hints

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_arguments import valid_calls

from workbench.arguments import checked

CALLS, BAR = 200, 50e-6


def nothing(*given, **named):
    """The work of a function whose check alone is timed."""


def cost(function, arguments):
    """Seconds that the check of one call takes; the smallest of five rounds."""
    bare = FunctionType(nothing.__code__, {})
    bare.__annotations__, bare.__signature__ = get_type_hints(unwrap(function)), signature(function)
    check = checked(bare)
    check(**arguments)
    return min(timeit.repeat(lambda: check(**arguments), number=CALLS, repeat=5)) / CALLS


def main():
    os.chdir(tempfile.mkdtemp())
    costs = {}
    for name, (function, arguments) in valid_calls().items():
        if isroutine(function) and not isinstance(function, type):
            costs[name] = cost(function, arguments)
    slowest = sorted(costs, key=costs.get, reverse=True)
    for name in slowest[:10]:
        print(f"{name:30} {costs[name] * 1e6:6.1f} microseconds")
    print(
        f"{len(costs)} functions; the slowest takes {costs[slowest[0]] / BAR:.2f} of the bar of 50 microseconds"
    )


if __name__ == "__main__":
    main()
