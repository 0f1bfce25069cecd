"""The script of circuitsvis, corrected where it is unsafe in a page: `script_html` and `bundle_html`.

The one module that knows of the installed package.
"""

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

from workbench.errors import WorkbenchError
from workbench.render.circuit.page import asset, packed, script_json
from workbench.render.writing import BLUE, ORANGE
from workbench.text import xml

VERSION = "1.43.3"
_SCRIPT = "circuitsvis/dist/cdn/iife.js"
_CORRECTIONS = (
    # token text becomes text and not HTML; spaces in it are spelled as characters and not as entities
    (r"dangerouslySetInnerHTML:\{__html:([^{}]+)\}", r"children:\1", 5),
    (r'"&nbsp;"', r'"\\xa0"', 3),
    # tensors this small need no graphics card, and a browser without one complains
    (r'\w+\.isBrowser\(\)&&(\w+\("webgl",)', r"false&&\1", 1),
    # a colour must mean the same in every picture here
    (r'="red",(\w+)="blue"', rf'="{ORANGE}",\1="{BLUE}"', 1),
    (r'positiveColor:"red"', f'positiveColor:"{BLUE}"', 1),
    # with a single sample the component would show its first column alone, and hide the others
    (r"\w+>1(\?\[\.\.\.Array\(\w+\)\.keys\(\)\]:\[0\])", r"true\1", 1),
)
"""What is corrected in the script of version 1.43.3: (pattern, replacement, how often it is there)."""
# The components draw for white paper, as the still pictures do; the names with --jp are what a dark
# JupyterLab tints.
_PAPER = (
    "background:#fff;color:#1f2937;color-scheme:light;"
    "--jp-content-font-color1:#1f2937;--jp-ui-font-color1:#1f2937;--jp-layout-color0:#fff;"
    "--jp-rendermime-table-row-background:#f5f5f5;--jp-rendermime-table-row-hover-background:#e0f2fe"
)


def script_html() -> str:
    """`bundle_html`, or where circuitsvis cannot be used a line that says why the panels do not move."""
    try:
        return bundle_html()
    except WorkbenchError as error:
        return f'<p class="caption">{xml(f"The panels are still pictures here. {error}")}</p>'


@cache
def bundle_html() -> str:
    """The script that draws every panel of a page; once per page, about 480 kB.

    Raises:
        WorkbenchError: circuitsvis is not installed, or not the version this was written for.
    """
    try:
        package = distribution("circuitsvis")
    except PackageNotFoundError as error:
        raise WorkbenchError(
            f"Panels that move need circuitsvis: pip install circuitsvis=={VERSION}."
        ) from error
    if package.version != VERSION:
        raise WorkbenchError(
            f"circuitsvis {package.version} is installed; panels are written for {VERSION}: pip install "
            f"circuitsvis=={VERSION}."
        )
    with open(str(package.locate_file(_SCRIPT)), encoding="utf-8") as file:
        # the last line is the address of a source map, which a browser's inspector would ask the network for
        text = file.read().rpartition("//# sourceMappingURL=")[0]
    for pattern, replacement, times in _CORRECTIONS:
        text, n_matches = re.subn(pattern, replacement, text)
        if n_matches != times:
            raise WorkbenchError(
                f"The script of circuitsvis {VERSION} is not the published one ({pattern} is there "
                f"{n_matches} times, not {times}): "
                f"pip install --force-reinstall circuitsvis=={VERSION}."
            )
    script = asset("panels.js", "workbench.render").replace("PAPER", script_json(_PAPER))
    # the bundle last: its letters might spell another of these names
    return f"<script>{script.replace('BUNDLE', script_json(packed(text)))}</script>"
