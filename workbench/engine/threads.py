"""One thread for small matrices where waiting threads would spin.

`workbench` makes OpenMP threads sleep while they wait, which libgomp reads once, when torch is imported.
Where torch was imported before `workbench` and the user has set nothing, threads spin: on a busy machine two
of them are then 10 to 25 times slower than one. `few_threads` is put around walks; it must not know what is
computed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 256
"""d_model up to which a second thread gains less than it can lose: `tiny`, but not GPT-2 small."""


def threads_spin() -> bool:
    """Whether waiting OpenMP threads burn their time: nobody told libgomp not to before it was loaded."""
    # libgomp is Linux's; elsewhere torch brings another OpenMP, which sleeps after a while by itself.
    settings = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return sys.platform == "linux" and not settings


@contextmanager
def few_threads(d_model: int) -> Iterator[None]:
    """One thread inside, where the model is small and threads spin; afterwards as many as before."""
    n_threads = torch.get_num_threads()
    if d_model > SMALL or n_threads == 1 or not threads_spin():
        yield
        return
    # Set from inside, because libgomp no longer reads its environment once it is loaded.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
