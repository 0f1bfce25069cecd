"""`cache_folder`: where this machine keeps what can be made again, such as converted models and verdicts of checks.

Nothing here writes. Whoever writes there takes the loss of a file for granted: users empty such folders.
"""

import os
from pathlib import Path

VARIABLE = "WORKBENCH_CACHE"
"""The environment variable that names the folder."""


def cache_folder() -> Path:
    """The folder for things that can be made again; it need not exist yet.

    `WORKBENCH_CACHE` where it is set, else `interp-workbench` in `XDG_CACHE_HOME`, else in `~/.cache`.

    >>> from unittest.mock import patch
    >>> with patch.dict("os.environ", WORKBENCH_CACHE="/tmp/some-cache"):
    ...     str(cache_folder())
    '/tmp/some-cache'
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG: a path that is not absolute counts as none.
    parent = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    return parent / "interp-workbench"
