"""Links of the documentation that leave `docs/`: on GitHub they lead to the file beside it, on the site to the repository.

A picture outside `docs/` is copied into the site. A target that the repository lacks is a warning, which `--strict`
refuses.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/interp-workbench/interp-workbench"
log = logging.getLogger("mkdocs.hooks.links")
# A link or a picture, up to the end of its target.
_LINK = re.compile(r"(?P<start>(?P<picture>!?)\[[^\]]*\]\()(?P<target>[^)\s#]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, *, page: Page, config: Any, files: Files) -> str:
    """The text of a page with its links out of `docs/` changed; code stays as it is."""
    parts = _FENCE.split(markdown)
    for number in range(0, len(parts), 2):
        parts[number] = _LINK.sub(lambda link: _changed(link, page, config, files), parts[number])
    return "".join(parts)


def _changed(link: re.Match[str], page: Page, config: Any, files: Files) -> str:
    """A link as the site needs it."""
    target = link["target"]
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), target))
    if ":" in target or (path.startswith("docs/") and not path.endswith(".py")):
        return link[0]
    if not (ROOT / path).exists():
        log.warning("%s links to %s, which is not in the repository.", page.file.src_uri, path)
        return link[0]
    if link["picture"]:
        copied = f"repository/{path}"
        if files.get_file_from_path(copied) is None:
            files.append(File.generated(config, copied, abs_src_path=str(ROOT / path)))
        return link["start"] + posixpath.relpath(copied, posixpath.dirname(page.file.src_uri) or ".")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{link['start']}{REPOSITORY}/{kind}/main/{path}"
