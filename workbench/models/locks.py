"""One thread at a time runs a model: `alone`, and `hooked_run` for runs that install hooks.

Hooks belong to a model and not to a thread: the edits of one thread would act on the run of another. Each
model has a lock of its own, which threads wait for, so that calls on one model from several threads give what
they give one after the other. A run of your own, such as `model(tokens)`, takes no lock and meets
none of our hooks; where it installs hooks itself, put it under `alone(model)`.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workbench.errors import EditError
from workbench.models.model import Model


class _ModelLock:
    """A lock that a thread may take again, and whether a run with hooks holds it."""

    def __init__(self) -> None:
        self.thread = threading.RLock()
        self.is_running = False


# By weak reference: a lock keeps no model alive.
_locks: "weakref.WeakKeyDictionary[Any, _ModelLock]" = weakref.WeakKeyDictionary()
_new_locks = threading.Lock()


@contextmanager
def alone(model: Model) -> Iterator[None]:
    """No other thread runs the model inside; a thread may enter it again."""
    with _lock_of(model).thread:
        yield


@contextmanager
def hooked_run(model: Model) -> Iterator[None]:
    """The one run of the model whose hooks are installed.

    Raises:
        EditError: it is asked for inside another such run of the same thread, whose hooks would act on it.
    """
    lock = _lock_of(model)
    with lock.thread:
        if lock.is_running:
            raise EditError(
                "An edit runs the very model that it edits, whose hooks would act on that run too. Run the "
                "model beforehand, and write what comes out."
            )
        lock.is_running = True
        try:
            yield
        finally:
            lock.is_running = False


def _lock_of(model: Model) -> _ModelLock:
    with _new_locks:
        return _locks.setdefault(model, _ModelLock())
