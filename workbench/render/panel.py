"""A figure drawn by the script of circuitsvis: `Panel`, with a still picture in its place until it runs.

Its components are described in `panel_components`, its script is read by `circuitsvis`. The Python of
circuitsvis puts 1.3 MB of script into every figure, asks the network whether the script is there, and takes
token text for HTML. So only its script file is used, corrected where it does that: one compressed copy per
page, unpacked by the browser, draws any number of panels. Until it has, and wherever scripts do not run, each
panel is a still picture.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.errors import UnknownName, WorkbenchError
from workbench.render.attention_svg import attention_svg
from workbench.render.circuit.page import script_json
from workbench.render.circuitsvis import script_html
from workbench.render.page import page
from workbench.render.panel_components import COMPONENTS, check_names, check_shapes
from workbench.text import visible, with_article, xml

_MOST_BYTES = 16_000_000
_PATTERNS = ("AttentionPattern", "AttentionPatterns")
"""Components whose still picture follows from their properties."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One figure of circuitsvis and its still picture.

    Draws itself in a notebook, and `str()` of it is a whole page.

    Attributes:
        component: one of the ten of circuitsvis, as in `COMPONENTS`.
        props: what it draws. Text is made visible (`text.visible`), arrays become lists, numbers keep five
            digits.
        still: SVG that is shown until the script has drawn the panel; "" for none.
        title: of the picture, and of the page that `str()` makes.
    Raises:
        UnknownName: no such component.
        WorkbenchError: other properties than it has, shapes that do not fit each other, numbers that are not
            finite, or more of them than a page can hold.

    >>> Panel("Hello", {"name": "</script>"}).html().count("<script")
    1
    """

    component: str
    props: Mapping[str, Any]
    still: str = ""
    title: str = "Panel"

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise UnknownName("component", self.component, COMPONENTS)
        # None stands for a property that is left out, so that callers need no branches
        props = {name: _ready(value, name) for name, value in self.props.items() if value is not None}
        check_names(self.component, props)
        check_shapes(self.component, props)
        object.__setattr__(self, "props", props)
        if not self.still and self.component in _PATTERNS:
            object.__setattr__(self, "still", _pattern_still(props, self.title))
        if len(self._text) > _MOST_BYTES:
            raise WorkbenchError(
                f"This {self.component} panel holds {len(self._text) / 1e6:.0f} MB, and a page up to "
                f"{_MOST_BYTES / 1e6:.0f} MB: choose fewer heads, layers, neurons or positions."
            )

    @cached_property
    def _text(self) -> str:
        return script_json(self.props)

    def html(self) -> str:
        """The panel without the script that draws it.

        A page holds `script_html()` once, before or after its panels.
        """
        name = hashlib.sha256(f"{self.component} {self._text}".encode()).hexdigest()[:12]
        push = f'(window.panels = window.panels || []).push(["{name}", "{self.component}", {self._text}]);'
        return (
            f'<div class="panel" data-panel="{name}">{self._still_html()}</div>'
            f"<script>{push} if (window.drawPanels) drawPanels();</script>"
        )

    def _still_html(self) -> str:
        if not self.still:
            return f"<p>{xml(self.title)}: drawn by a script.</p>"
        # <img>, because notebooks that are not trusted drop <svg>; the script puts the SVG itself in its place,
        # whose tooltips can be read
        picture = base64.b64encode(self.still.encode()).decode()
        # on a narrow screen it scrolls, because text that is scaled down cannot be read
        style = "max-width:max(100%,620px);height:auto"
        return f'<img alt="{xml(self.title)}" style="{style}" src="data:image/svg+xml;base64,{picture}">'

    def _repr_html_(self) -> str:
        return script_html() + self.html()

    def __str__(self) -> str:
        """A complete HTML document that asks the network for nothing."""
        return page(self.title, [("Picture", self.html() + script_html())])


def _pattern_still(props: Mapping[str, Any], title: str) -> str:
    """The still picture of patterns that were given as numbers."""
    pattern = np.asarray(props["attention"], dtype=float)
    if pattern.ndim == 2:
        pattern = pattern[None]
    names = [f"head {i}" for i in range(len(pattern))]
    return attention_svg(list(props["tokens"]), pattern, names, title=title)


def _ready(value: Any, name: str) -> Any:
    """A property as JSON holds it: visible text, lists, finite numbers of five digits."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, np.ndarray | xr.DataArray):
        value = np.asarray(value).tolist()
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            raise WorkbenchError(f"{name} has numbers that are not finite: leave them out of the panel.")
        short = float(f"{value:.5g}")
        # "1" is shorter than "1.0"; larger numbers would be written with all of their digits
        if short.is_integer() and abs(short) < 1e15:
            return int(short)
        return short
    if isinstance(value, Sequence):
        return [_ready(item, name) for item in value]
    raise WorkbenchError(
        f"{name} has {with_article(type(value).__name__)}: a panel holds text, numbers, arrays "
        "and lists of these."
    )
