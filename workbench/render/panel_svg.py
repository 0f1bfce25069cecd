"""What the still pictures of panels share: their document and style, and the colours of values.

`document` puts a picture together and `shade` colours a value: blue above 0, orange below. The pictures are
drawn by `attention_svg` and `token_svg`, as SVG text that is always the same bytes; which numbers they show
is decided in the modules of panels.
"""

from workbench.render.writing import BLUE, FONT, ORANGE, decimal, shorten, text_width
from workbench.text import visible, xml

_STYLE = (
    ".paper{fill:#fff}text{fill:#1f2937}.t{font-size:13px;font-weight:600}.s{font-size:11px;fill:#64748b}"
    ".v{font-size:9px;text-anchor:middle}"
    ".k{font:12px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
    ".c{text-anchor:middle}.r{text-anchor:end}"
    ".x{font-size:10px}.o{font-size:9px}.i,.i text{fill:#000}.d{fill:#475569}.w,.w text{fill:#fff}.g{fill:none;stroke:#cbd5e1}"
    ".b{stroke:#cbd5e1;stroke-width:.7}"
)
_DARK = (
    "@media(prefers-color-scheme:dark){.paper{fill:#0f172a}text{fill:#e2e8f0}.s{fill:#a8b5c7}.d,.d text{fill:#b6c2d2}"
    ".g{stroke:#475569}.b{stroke:#475569}.i,.i text{fill:#000}.w,.w text{fill:#fff}}"
)
"""Cells keep their colours on dark paper, and so does the text on them (classes i and w)."""
WIDTH = 960.0
"""Of a picture, in pixels: about the width of a page."""


def shade(value: float, scale: float) -> str:
    """The colour of a value between −scale (orange), 0 (white) and +scale (blue).

    >>> shade(1.0, 1.0), shade(0.0, 1.0), shade(-2.0, 1.0)
    ('#2369b0', '#ffffff', '#c2410c')
    """
    depth = 0.0
    if scale:
        depth = min(abs(value) / scale, 1.0)
    full = BLUE if value >= 0 else ORANGE
    colour = "#"
    for i in (1, 3, 5):  # red, green, blue of #rrggbb, each starting from white, as 0 has to be blank paper
        channel = 255 + (int(full[i : i + 2], 16) - 255) * depth
        colour += f"{round(channel):02x}"
    return colour


def ink_class(value: float, scale: float) -> str:
    """The class to add to text on the colour of a value: " w" (white) where the colour is dark, else " i" (ink)."""
    if is_dark(value, scale):
        return " w"
    return " i"


def document(width: float, height: float, title: str, note: str, body: str) -> str:
    """A whole picture: its title, a line that says what is in it, and the body below them."""
    width = max(width, text_width(note, 11) + 20)  # the note is never cut
    wide, tall = decimal(width), decimal(height)
    size = f'width="{wide}" height="{tall}" viewBox="0 0 {wide} {tall}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{xml(title)}" '
        f'font-family="{FONT}"><style>{_STYLE}{_DARK}</style><rect class="paper" width="100%" height="100%"/>'
        f'<text class="t" x="10" y="20">{xml(shorten(visible(title), 120))}</text>'
        f'<text class="s" x="10" y="37">{xml(note)}</text>{body}</svg>'
    )


def is_dark(value: float, scale: float) -> bool:
    """Whether white text is easier to read on the colour of the value than dark text, by WCAG's luminance."""
    colour = shade(value, scale)
    luminance = 0.0
    # of #rrggbb: green looks brighter than red, and red than blue
    for weight, i in ((0.2126, 1), (0.7152, 3), (0.0722, 5)):
        channel = int(colour[i : i + 2], 16) / 255
        # sRGB is linear near black and a power above; luminance adds up in linear light, so this curve is
        # undone before the channels are added
        linear = channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        luminance += weight * linear
    # below this luminance the contrast with white is the better one
    return luminance < 0.179
