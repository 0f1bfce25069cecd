"""Text that is safe inside a page: `script_json`, `packed` and `asset`. Whole pages are in `render.page`.

All data enter scripts as JSON with `<` spelled `\\u003c`, and documents as compressed text; the page's
Content-Security-Policy forbids every request.
"""

import base64
import gzip
import json
from functools import cache
from importlib.resources import files
from typing import Any

# No request at all, so a page that is opened years later shows the same and tells nobody that it was opened.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever text is in it.

    ASCII only, so U+2028 is escaped too.
    """
    # NaN is not JSON and would stop the whole script: better an error while the page is made
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def packed(text: str) -> str:
    """Text as a browser's DecompressionStream unpacks it: gzip, base64, the same bytes everywhere."""
    data = bytearray(gzip.compress(text.encode(), 9, mtime=0))
    data[9] = 255  # the system that packed it, of which a page must not depend: 255 is "unknown"
    return base64.b64encode(data).decode()


@cache
def asset(name: str, package: str = "workbench.render.circuit") -> str:
    """The text of a file beside a module, of a script without the comment at its top."""
    text = files(package).joinpath(name).read_text(encoding="utf-8")
    if name not in ("frame.js", "panels.js"):
        return text
    # the comment is for readers of the repository, and every figure of a page would repeat it
    return text[text.index("(async") :].rstrip()
