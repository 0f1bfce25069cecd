"""Progress of long work: `progress_bar`, which shows nothing for two seconds and leaves nothing behind.

In a terminal it is a line that goes, in a notebook an output that is emptied, so that a saved notebook holds no
bar. Where there is neither, as in a job of a cluster, a line goes to the log `workbench.progress` every half
minute; `workbench` prints that log, and a script sees it with `logging.basicConfig(level="INFO")`.
"""

import io
import logging
import re
import sys
import time
from typing import Any

from tqdm import tqdm

DELAY = 2.0
"""Seconds before a bar is shown: most calls end sooner."""
LOGGED_EVERY = 30.0
"""Seconds between two lines of the log."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
log = logging.getLogger(__name__)


def progress_bar(total: int, description: str, unit: str, *, shown: bool) -> "tqdm[Any]":
    """A progress bar: `with progress_bar(...) as bar`, then `bar.update()`.

    Args:
        total: how many units there are.
        description, unit: words before the bar, and of what it counts.
        shown: False shows and logs nothing.

    >>> with progress_bar(3, "runs", "run", shown=False) as bar:
    ...     bar.update()
    """
    settings: dict[str, Any] = {"total": total, "desc": description, "unit": unit, "leave": False}
    if not shown:
        return tqdm(**settings, disable=True)
    if _in_notebook():
        return _DelayedBar(**settings, file=_NotebookOutput(), delay=DELAY, ncols=80)
    if sys.stderr is not None and sys.stderr.isatty():
        return _DelayedBar(**settings, delay=DELAY)
    if log.isEnabledFor(logging.INFO):
        return _LoggedBar(**settings, file=io.StringIO(), mininterval=1.0, miniters=1, disable=False)
    return tqdm(**settings, disable=True)


def write_line(text: str) -> None:
    """Write a line to stderr, above a bar that is there; stdout may be read by a program."""
    tqdm.write(text, file=sys.stderr)


class _DelayedBar(tqdm):  # type: ignore[type-arg]
    """A bar that is not drawn before its delay is over, and is wiped out whenever it was drawn.

    tqdm 4.67 draws at once where something is said of a step (`set_postfix`), and then does not wipe out a bar
    that ends before its delay.
    """

    was_drawn = False

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Called by tqdm to draw the bar."""
        # tqdm calls it from its constructor too, before it notes when it started
        if time.time() - getattr(self, "start_t", time.time()) < self.delay:
            return False
        self.was_drawn = True
        return super().display(msg, pos)

    def close(self) -> None:
        """End the bar; tqdm wipes out what it thinks was drawn after the delay."""
        if self.was_drawn:
            self.last_print_t = time.time()
        super().close()


class _LoggedBar(tqdm):  # type: ignore[type-arg]
    """A bar whose state is a line of the log now and then."""

    last_line = 0.0

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Called by tqdm as it would draw the bar."""
        now = time.monotonic()
        if not self.last_line:
            self.last_line = now  # the first line comes after half a minute, not at once
        if now - self.last_line >= LOGGED_EVERY:
            self.last_line = now
            log.info("%s", self.format_meter(**{**self.format_dict, "ncols": 0}).strip())


class _NotebookOutput(io.StringIO):
    """Where a bar of a notebook is written: one output of the cell, shown anew with each state."""

    handle: Any = None

    def write(self, text: str) -> int:
        """Show the text in place of the one before; blanks, with which a bar is wiped out, as nothing."""
        from IPython.display import display

        # bars within bars move the cursor, which an output of a notebook would show as text
        shown = _ESCAPES.sub("", text).strip()
        # an output without content is saved as nothing
        content = {"text/plain": shown} if shown else {}
        if self.handle is None and shown:
            self.handle = display(content, raw=True, display_id=True)
        elif self.handle is not None:
            self.handle.update(content, raw=True)
        return len(text)


def _in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
