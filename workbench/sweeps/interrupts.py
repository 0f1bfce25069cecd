"""`interrupts_kept`: a Ctrl-C stops a sweep, whatever was running when it came.

Python drops an exception that is raised in a destructor, in a callback of a weak reference or in a generator
that is being closed, and some libraries turn one that passes through their C code into an error of their own.
A sweep that loses its interrupt in this way would run on to its end.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_kept() -> Iterator[Callable[[], None]]:
    """Ctrl-C interrupts at once, as always; the function that comes back raises it again if it was lost.

    Outside of the main thread, and where the program handles Ctrl-C itself, nothing is changed.

    Raises:
        KeyboardInterrupt: from the function, where Ctrl-C was pressed since.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return
    pressed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.default_int_handler(number, frame)

    def raise_lost() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield raise_lost
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
