"""What the command line does with the logs of the library: `log_to_stderr`.

The library only writes to loggers below `workbench`; whoever uses it decides where they go.
"""

import logging
import sys

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
"""By how often -v was given."""


class StderrHandler(logging.Handler):
    """Prints each line to the stderr of that moment, which a caller may have put elsewhere since."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line of a record."""
        print(self.format(record), file=sys.stderr)


class SpelledFormatter(logging.Formatter):
    """Lines with every invisible character spelled out: they may quote files and prompts of anybody."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        from workbench.text import spelled

        return "\n".join(map(spelled, super().format(record).split("\n")))


def log_to_stderr(verbose: int) -> None:
    """Print the logs of `workbench` on stderr.

    Args:
        verbose: 0 prints warnings, 1 what is done, 2 everything. Where stderr is a file, the progress of long
            work is printed at 0 too: no bar can be drawn there.
    """
    handler = StderrHandler()
    handler.setFormatter(SpelledFormatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("workbench")
    logger.handlers = [handler]
    logger.setLevel(LEVELS[min(verbose, len(LEVELS) - 1)])
    if sys.stderr is not None and not sys.stderr.isatty():
        logging.getLogger("workbench.progress").setLevel(min(logger.level, logging.INFO))
