"""A figure drawn by the script of circuitsvis, the one module that knows of it.

`Panel`, and `script_html` for its script.

The Python of circuitsvis puts 1.3 MB of script into every figure, asks the network whether the script is
there, and takes token text for HTML. So only its script file is used, corrected where it does that: one
compressed copy per page, unpacked by the browser, draws any number of panels. Until it has, and wherever
scripts do not run, each panel is a still picture.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.errors import UnknownName, WorkbenchError
from workbench.render.circuit.html import asset, packed, page, script_json
from workbench.render.writing import BLUE, RED
from workbench.text import visible, xml

VERSION = "1.43.3"
_SCRIPT = "circuitsvis/dist/cdn/iife.js"
_MOST_BYTES = 16_000_000
# component -> (the properties it needs, those it can do without)
COMPONENTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "AttentionHeads": (
        ("attention", "tokens"),
        ("attentionHeadNames", "maxValue", "minValue", "negativeColor", "positiveColor", "maskUpperTri"),
    ),
    "AttentionPattern": (
        ("attention", "tokens"),
        (
            "maxValue",
            "minValue",
            "negativeColor",
            "positiveColor",
            "showAxisLabels",
            "zoomed",
            "maskUpperTri",
        ),
    ),
    "AttentionPatterns": (("attention", "tokens"), ("headLabels",)),
    "ColoredTokens": (
        ("tokens", "values"),
        ("maxValue", "minValue", "negativeColor", "positiveColor", "paddingBottom"),
    ),
    "ColoredTokensMulti": (("tokens", "values"), ("labels", "positiveBounds", "negativeBounds")),
    "Hello": (("name",), ()),
    "TextNeuronActivations": (
        ("tokens", "activations"),
        ("firstDimensionName", "secondDimensionName", "firstDimensionLabels", "secondDimensionLabels"),
    ),
    "TokenLogProbs": (
        ("prompt", "topKLogProbs", "topKTokens", "correctTokenRank", "correctTokenLogProb"),
        (),
    ),
    "TopkSamples": (
        ("tokens", "activations"),
        ("zerothDimensionName", "firstDimensionName", "zerothDimensionLabels", "firstDimensionLabels"),
    ),
    "TopkTokens": (
        ("tokens", "topkVals", "topkIdxs", "bottomkVals", "bottomkIdxs"),
        ("firstDimensionName", "thirdDimensionName", "sampleLabels", "firstDimensionLabels"),
    ),
}
# The axes of properties that have to fit together: an axis has the same size wherever its name stands.
_AXES: Mapping[str, Mapping[str, str]] = {
    "AttentionHeads": {"attention": "head token token", "tokens": "token", "attentionHeadNames": "head"},
    "AttentionPattern": {"attention": "token token", "tokens": "token"},
    "AttentionPatterns": {"attention": "head token token", "tokens": "token", "headLabels": "head"},
    "ColoredTokens": {"values": "token", "tokens": "token"},
    "ColoredTokensMulti": {"values": "token row", "tokens": "token", "labels": "row"},
    "TokenLogProbs": {
        "topKLogProbs": "token k", "topKTokens": "token k",
        "correctTokenRank": "token", "correctTokenLogProb": "token",
    },
}  # fmt: skip
# What is corrected in the script of version 1.43.3: (pattern, replacement, how often it is there).
_CORRECTIONS = (
    # token text becomes text and not HTML; spaces in it are spelled as characters and not as entities
    (r"dangerouslySetInnerHTML:\{__html:([^{}]+)\}", r"children:\1", 5),
    (r'"&nbsp;"', r'"\\xa0"', 3),
    # tensors this small need no graphics card, and a browser without one complains
    (r'\w+\.isBrowser\(\)&&(\w+\("webgl",)', r"false&&\1", 1),
    # the colours of every other picture here
    (r'="red",(\w+)="blue"', rf'="{RED}",\1="{BLUE}"', 1),
    (r'positiveColor:"red"', f'positiveColor:"{BLUE}"', 1),
    # a single sample shows all of its columns
    (r"\w+>1(\?\[\.\.\.Array\(\w+\)\.keys\(\)\]:\[0\])", r"true\1", 1),
)
# The components draw for white paper, as the still pictures do; the names with --jp are what a dark
# JupyterLab tints.
_PAPER = (
    "background:#fff;color:#1f2937;color-scheme:light;"
    "--jp-content-font-color1:#1f2937;--jp-ui-font-color1:#1f2937;--jp-layout-color0:#fff;"
    "--jp-rendermime-table-row-background:#f5f5f5;--jp-rendermime-table-row-hover-background:#e0f2fe"
)


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
        props = {name: _ready(value, name) for name, value in self.props.items() if value is not None}
        _check_names(self.component, props)
        _check_shapes(self.component, props)
        object.__setattr__(self, "props", props)
        if len(self._text) > _MOST_BYTES:
            raise WorkbenchError(
                f"This {self.component} panel holds {len(self._text) / 1e6:.0f} MB, and a page up to "
                f"{_MOST_BYTES / 1e6:.0f} MB: "
                "choose fewer heads, layers, neurons or positions."
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
        # no one can point at the cells of an <img>, so their tooltips would only make the page larger
        shown = re.sub("<title>[^<]*</title>", "", self.still)
        picture = base64.b64encode(shown.encode()).decode()
        style = "max-width:100%;height:auto"
        return f'<img alt="{xml(self.title)}" style="{style}" src="data:image/svg+xml;base64,{picture}">'

    def _repr_html_(self) -> str:
        return script_html() + self.html()

    def __str__(self) -> str:
        """A complete HTML document that asks the network for nothing."""
        return page(self.title, [(self.component, self.html() + script_html())])


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


def _check_names(component: str, props: Mapping[str, Any]) -> None:
    """Raises `WorkbenchError` where properties are missing, or unknown to the component."""
    needed, optional = COMPONENTS[component]
    missing = [name for name in needed if name not in props]
    extra = sorted(set(props) - {*needed, *optional})
    problems = []
    if extra:
        problems.append(f"has no {', '.join(extra)}")
    if missing:
        problems.append(f"needs {', '.join(missing)}")
    if problems:
        raise WorkbenchError(
            f"{component} {' and '.join(problems)}. Needed: {', '.join(needed)}; optional: "
            f"{', '.join(optional) or 'none'}."
        )


def _check_shapes(component: str, props: Mapping[str, Any]) -> None:
    """Raises `WorkbenchError` where arrays disagree about the size of an axis that they share."""
    axes = {name: words.split() for name, words in _AXES.get(component, {}).items() if name in props}
    shapes = {name: _shape(props[name]) for name in axes}
    sizes: dict[str, int] = {}
    for name, words in axes.items():
        fits = len(shapes[name]) == len(words)
        for word, size in zip(words, shapes[name], strict=False):
            fits = fits and sizes.setdefault(word, size) == size
        if not fits:
            needed = "; ".join(f"{name} [{', '.join(words)}]" for name, words in axes.items())
            shown = "; ".join(f"{name} {shape or 'uneven'}" for name, shape in shapes.items())
            raise WorkbenchError(
                f"The shapes of {component} do not fit each other: {shown}. Needed: {needed}."
            )


def _shape(value: Any) -> tuple[int, ...]:
    """The lengths of lists in lists, () where they are uneven."""
    try:
        return np.shape(value)
    except ValueError:
        return ()


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
        f"{name} has a {type(value).__name__}: a panel holds text, numbers, arrays and lists of these."
    )
