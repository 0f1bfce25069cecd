"""One thread at a time runs a model: `alone`, and `hook_lock` for runs that install hooks.

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
    """A lock that its thread may take again, and whether a run with hooks holds it."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.has_hooks = False


# By weak reference: a lock keeps no model alive.
_locks: "weakref.WeakKeyDictionary[Any, _ModelLock]" = weakref.WeakKeyDictionary()
# Two threads that meet a model first must not make two locks for it.
_new_locks = threading.Lock()


@contextmanager
def alone(model: Model) -> Iterator[None]:
    """No other thread runs the model inside; a thread may enter it again."""
    with _lock_of(model).mutex:
        yield


@contextmanager
def hook_lock(model: Model) -> Iterator[None]:
    """No other run of the model inside, of this thread or another, while hooks are installed.

    Raises:
        EditError: it is taken inside another such run of the same thread, whose hooks would act on this one.
    """
    lock = _lock_of(model)
    with lock.mutex:
        if lock.has_hooks:
            raise EditError(
                "An edit runs the very model that it edits, whose hooks would act on that run too. Run the "
                "model beforehand, and write what comes out."
            )
        lock.has_hooks = True
        try:
            yield
        finally:
            lock.has_hooks = False


def _lock_of(model: Model) -> _ModelLock:
    with _new_locks:
        return _locks.setdefault(model, _ModelLock())
