"""Every error the workbench raises on purpose. Each message says what was asked, what exists and what to do.

WorkbenchError
├── ArgumentError        an argument of a type that the function does not take
├── UnknownName          a name that does not exist: task, model, method, ... (with near matches)
├── SiteError            a site or edge that cannot be parsed, or that the model does not have
├── ModelError           a model that cannot be loaded, is in train mode, or is changed by settings of torch
│   └── Unreachable      a package registry that weights should come from, and that cannot be reached
├── PromptError          prompts that cannot be used: lengths, tokens, answers, columns
│   └── UnsuitableTask   a task that needs another vocabulary
├── MetricError          a metric that does not fit the prompts or returns the wrong shape
│   └── NotFinite        activations, logits, metrics or scores that are not finite numbers
├── EditError            an edit that did not run, or would change nothing
├── StoreError           a store that lacks something, or belongs to another model or other prompts
├── ProbeError           labels or activations that no probe can be fitted to
├── CircuitError         a circuit for another graph, or a file that is not a circuit file
├── SweepError           a sweep that cannot be planned, run or read: its spec, its folder, its log
├── OutputExists         something is already there and `overwrite=True` was not given
└── CannotWrite          results that cannot be written: a full disk, a place without permission, a URL

What is done, and may not be what was meant, is a `WorkbenchWarning`: a circuit that is mostly dead ends, a
training that found nothing. `warn` makes one.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches


class WorkbenchError(Exception):
    """Base of all deliberate errors.

    The command line prints the message without a traceback and exits with 2.
    """


class ArgumentError(WorkbenchError, TypeError):
    """An argument of a type that the function does not take."""


class UnknownName(WorkbenchError):
    """A name that is not in a closed list of names.

    Args:
        argument: whose value it is, as the caller spells it: `method`, `by`, `task`, ...
        given: the name that was given.
        choices: the names that exist.

    >>> print(UnknownName("by", "magnitud", ["magnitude", "signed"]))
    by='magnitud' is not known. Did you mean 'magnitude'? Choices: magnitude, signed.
    """

    def __init__(self, argument: str, given: object, choices: Iterable[str]) -> None:
        self.argument, self.given, self.choices = argument, given, sorted(choices)
        super().__init__(self.sentence(f"{argument}={given!r}"))

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, object, list[str]]]:
        # Workers send errors back. An exception is unpickled from its message alone, but `__init__` needs
        # three arguments.
        return type(self), (self.argument, self.given, self.choices)

    def sentence(self, subject: str) -> str:
        """The message about `subject`: an argument or an option of the command line, with its value."""
        near = get_close_matches(str(self.given), self.choices, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"{subject} is not known.{hint} Choices: {', '.join(self.choices) or 'none'}."


class SiteError(WorkbenchError):
    """A site or edge that cannot be parsed, or that the model does not have."""


class ModelError(WorkbenchError):
    """A model that cannot be loaded or cannot be used."""


class Unreachable(ModelError):
    """A package registry that weights should come from, and that cannot be reached."""


class PromptError(WorkbenchError):
    """Prompts that cannot be used."""


class UnsuitableTask(PromptError):
    """A task whose words the model's vocabulary lacks, or splits into tokens that do not suit the task."""


class MetricError(WorkbenchError):
    """A metric that does not fit the prompts, or that returns the wrong shape."""


class NotFinite(MetricError):
    """Activations, logits, what a metric makes of them, or scores that are not finite numbers.

    Args:
        place: where they were met (a site, an edge), once that is known.
        example, run: the example of the batch and the edited run that the numbers belong to, where known.
    """

    def __init__(
        self, message: str, *, place: str | None = None, example: int | None = None, run: int | None = None
    ) -> None:
        super().__init__(message)
        self.place, self.example, self.run = place, example, run


class EditError(WorkbenchError):
    """An edit that did not run, or that would change nothing."""


class StoreError(WorkbenchError):
    """A store that lacks something, or that belongs to another model or to other prompts."""


class ProbeError(WorkbenchError):
    """Labels, splits or activations that no probe can be fitted to."""


class CircuitError(WorkbenchError):
    """A circuit that does not fit the model, or a file that is not a circuit."""


class NoCircuit(CircuitError):
    """No circuit of the sizes tried keeps the criteria.

    Args:
        frontier: the measures of each size, as a Dataset.
    """

    def __init__(self, message: str, *, frontier: object = None) -> None:
        super().__init__(message)
        self.frontier = frontier


class SweepError(WorkbenchError):
    """A sweep that cannot be planned or run, or a folder that is not a sweep or is damaged."""


class CannotWrite(WorkbenchError):
    """Results that cannot be written: the disk is full, or the place is a URL or may not be written to."""


class OutputExists(WorkbenchError):
    """Something is already there and overwriting was not asked for."""


class WorkbenchWarning(UserWarning):
    """Something was done as asked, and the result may not be what was meant."""


_UNWARNED: ContextVar[bool] = ContextVar("unwarned", default=False)


def warn(text: str) -> None:
    """Warn with a `WorkbenchWarning` that points at the line of the caller outside this package."""
    if _UNWARNED.get():
        return
    # How many functions lie between varies: checks of arguments and of models wrap each public one (those of
    # models by `contextlib`), and some call each other.
    ours = {__package__, "contextlib"}
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, WorkbenchWarning, stacklevel=level)


@contextmanager
def unwarned() -> Iterator[None]:
    """Around work whose parts would warn of what is expected there, as of empty circuits at the start of a curve."""
    # Not `warnings.catch_warnings`, which is not safe where threads share a process.
    token = _UNWARNED.set(True)
    try:
        yield
    finally:
        _UNWARNED.reset(token)
