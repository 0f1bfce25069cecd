"""Code that a data file names: a sweep's file may say `metrics: ["mine:f"]`, and anybody may have written it.

Read `check_trusted`. Such code is run only where the user typed its name or says `--trust`, which no file
remembers. `code_files` says where it lies, so that it can be read first; nothing here imports it.
"""

from collections.abc import Iterable
from importlib.machinery import PathFinder

from workbench.errors import SweepError


def is_code(metric: str) -> bool:
    """Whether a metric is a function of a module, as in `mine:my_metric`, and not a built-in name."""
    return ":" in metric


def code_files(metrics: Iterable[object]) -> dict[str, str]:
    """The metrics that are code, each with the file of its module, in quotes or as words where there is none.

    >>> code_files(["logit_diff", "json.decoder:scan"])
    {'json.decoder:scan': "'...json/decoder.py'"}
    """
    files: dict[str, str] = {}
    for metric in metrics:
        if isinstance(metric, str) and is_code(metric):
            files[metric] = _file_of(metric.partition(":")[0])
    return files


def check_trusted(metrics: Iterable[str], *, trust: bool) -> None:
    """Raise `SweepError` for the first metric that is code, unless it is trusted."""
    if trust:
        return
    for metric, file in code_files(metrics).items():
        raise SweepError(
            f"The metric {metric!r} is code of {file}, named by a file, and is not trusted: running it can "
            "do whatever you can do. Read it, then pass trust=True (--trust), at every call."
        )


def _file_of(module: str) -> str:
    """Where a module lies, found without running a package on the way to it."""
    parts = module.split(".")
    search, name = None, ""
    try:
        for number, part in enumerate(parts, start=1):
            name = f"{name}.{part}".lstrip(".")
            # Not `importlib.util.find_spec`, which imports the packages that a module is in.
            spec = PathFinder.find_spec(name, search)
            if spec is None:
                break
            if number == len(parts) and spec.origin:
                return repr(spec.origin)
            search = list(spec.submodule_search_locations or ())
    except (ImportError, KeyError, ValueError, AttributeError):
        # Not a module's name, or a package inside one that has no folder to look in.
        return "no file that could be found"
    return "no file that could be found"
