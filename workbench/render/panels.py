"""Attention panels drawn by circuitsvis: the one place that knows of it.

circuitsvis puts 1.3 MB of script into every figure and asks the network whether it is there. So only its script file is
used, never its Python: one compressed copy per page, unpacked by the browser, draws any number of panels.
"""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np

from workbench.errors import WorkbenchError
from workbench.render.html import script_json
from workbench.render.view import visible

VERSION = "1.43.3"
_SCRIPT = "circuitsvis/dist/cdn/iife.js"
# A classic script element: indirect eval and type=module would hide the bundle's global name.
_UNPACK = """(async () => {
  if (window.panelsUnpacked) return;
  window.panelsUnpacked = true;
  const bytes = Uint8Array.from(atob("%s"), (c) => c.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
  window.drawPanels = () => {
    for (const [name, props] of (window.panels || []).splice(0)) {
      for (const box of document.querySelectorAll('[data-panel="' + name + '"]:not([id])')) {
        box.id = "panel-" + (window.panelsDrawn = (window.panelsDrawn || 0) + 1);
        box.replaceChildren();
        CircuitsVis.render(box.id, CircuitsVis.AttentionHeads, props);
      }
    }
  };
  window.drawPanels();
})();"""


@dataclass(frozen=True, eq=False)
class AttentionPanel:
    """Attention patterns of some heads on one prompt; draws itself in a notebook.

    Attributes:
        tokens: token strings.
        pattern: [head, query_pos, key_pos].
        names: of the heads, as in `a3.4`.
    """

    tokens: Sequence[str]
    pattern: np.ndarray
    names: Sequence[str]

    def html(self) -> str:
        """The panel without the script bundle, for a page that has it already."""
        return attention_panel(self.tokens, self.pattern, self.names)

    def _repr_html_(self) -> str:
        return bundle_html() + self.html()


def attention_panel(tokens: Sequence[str], pattern: np.ndarray, names: Sequence[str]) -> str:
    """HTML of an attention panel; the page must hold `bundle_html()` once, before or after it.

    Args:
        tokens: token strings of one prompt.
        pattern: [head, query_pos, key_pos] attention weights.
        names: one per head, as in `a3.4`.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.
    """
    values = np.asarray(pattern, dtype=float)
    if values.shape != (len(names), len(tokens), len(tokens)):
        raise WorkbenchError(
            f"A pattern of shape {values.shape} does not fit {len(names)} heads and {len(tokens)} tokens: "
            f"[head, query_pos, key_pos] = {(len(names), len(tokens), len(tokens))} is needed."
        )
    if not len(names) or not len(tokens):
        raise WorkbenchError("An attention panel needs at least one head and one token.")
    if not np.isfinite(values).all():
        raise WorkbenchError("The attention pattern has cells that are not finite: cut the prompt to its own length first.")
    props = {
        "attention": np.round(values, 4).tolist(),
        "attentionHeadNames": [visible(name) for name in names],
        "positiveColor": "#2369b0",
        "tokens": [visible(token) for token in tokens],
    }
    text = script_json(props)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return (
        f'<div class="panel" data-panel="{name}">This attention panel is drawn by a script.</div>'
        f'<script>(window.panels = window.panels || []).push(["{name}", {text}]); if (window.drawPanels) drawPanels();</script>'
    )


@cache
def bundle_html() -> str:
    """The script that draws every panel of a page; once per page, about 480 kB.

    Raises:
        WorkbenchError: circuitsvis is not installed, or not the version this was written for.
    """
    try:
        package = distribution("circuitsvis")
    except PackageNotFoundError as error:
        raise WorkbenchError(f"Attention panels need circuitsvis: pip install circuitsvis=={VERSION}.") from error
    if package.version != VERSION:
        raise WorkbenchError(
            f"circuitsvis {package.version} is installed; panels are written for {VERSION}: pip install circuitsvis=={VERSION}."
        )
    with open(str(package.locate_file(_SCRIPT)), encoding="utf-8") as file:
        # without its last line, the address of a source map that a browser's inspector would ask the network for
        text = file.read().rpartition("//# sourceMappingURL=")[0]
    packed = bytearray(gzip.compress(text.encode(), 9, mtime=0))
    packed[9] = 255  # the header names the operating system; the same bytes everywhere
    return f"<script>{_UNPACK % base64.b64encode(packed).decode()}</script>"
