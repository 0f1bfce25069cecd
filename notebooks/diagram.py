"""The diagram of lesson 0: `transformer.svg`, the parts of `tiny` by the names that sites use.

    python notebooks/diagram.py

The notebook holds it as `transformer.png`, drawn by CairoSVG: JupyterLab shows no SVG that is attached to a cell. It has a background of its own, since a picture in a cell cannot know whether the notebook around it is dark.
"""

import hashlib
import io
from html import escape
from pathlib import Path

PLACE = Path(__file__).with_name("transformer.svg")
WIDTH, HEIGHT, STREAM = 1190, 500, 232
INK, SOFT, LINE, PANEL = "#1f2933", "#52606d", "#9aa5b1", "#f3f5f7"
READ, WRITE = "#6b21a8", "#0f766e"  # neither blue nor orange, which mean support and oppose elsewhere
ALT = (
    "A transformer as a line from left to right, the residual stream. Tokens are embedded into it; in each layer "
    "eight heads read it and add to it, then an MLP does; at the end the sum is normed and unembedded into logits."
)


def text(x: float, y: float, words: str, *, size: int = 15, colour: str = INK, code: bool = False,
         bold: bool = False, anchor: str = "middle") -> str:  # fmt: skip
    family = "ui-monospace, Menlo, Consolas, monospace" if code else "Helvetica, Arial, sans-serif"
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" font-family="{family}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, *, fill: str = "#ffffff", line: str = INK,
        dashed: bool = False) -> str:  # fmt: skip
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" stroke="{line}" '
        f'stroke-width="1.5"{dash}/>'
    )


def arrow(x: float, y: float, to_x: float, to_y: float, *, colour: str = INK, width: float = 2,
          dashed: bool = False) -> str:  # fmt: skip
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    name = {READ: "read", WRITE: "write"}.get(colour, "ink")
    return (
        f'<path d="M{x} {y}L{to_x} {to_y}" stroke="{colour}" stroke-width="{width}" fill="none"{dash} '
        f'marker-end="url(#{name})"/>'
    )


def marker(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="9" markerHeight="9" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
    )


def sum_at(x: float) -> str:
    return f'<circle cx="{x}" cy="{STREAM}" r="10" fill="#ffffff" stroke="{INK}" stroke-width="1.5"/>' + text(
        x, STREAM + 5.5, "+", size=17
    )


def layer(x: float, number: int) -> list[str]:
    """Attention and MLP of a layer, above the stream."""
    heads = []
    for head in range(8):
        at = x + 42 + head % 4 * 34, 98 + head // 4 * 30
        heads += [
            f'<circle cx="{at[0]}" cy="{at[1]}" r="13" fill="{PANEL}" stroke="{SOFT}"/>',
            text(at[0], at[1] + 4.5, str(head), size=12, colour=SOFT),
        ]
    return [
        box(x, 24, 322, 250, fill=PANEL, line=LINE),
        text(x + 161, 44, f"layer {number}", colour=SOFT),
        box(x + 20, 54, 146, 100),
        text(x + 93, 74, f"heads a{number}.0 … a{number}.7", size=14, bold=True),
        *heads,
        box(x + 204, 54, 98, 100),
        text(x + 253, 86, f"MLP m{number}", size=14, bold=True),
        text(x + 253, 108, "512 neurons", size=12, colour=SOFT),
        text(x + 253, 128, f"mlp_post[{number}]", size=12, colour=SOFT, code=True),
        arrow(x + 42, STREAM, x + 42, 157, colour=READ, dashed=True),
        text(x + 48, 184, "q k v", size=13, colour=READ, code=True, anchor="start"),
        arrow(x + 140, 154, x + 140, STREAM - 12, colour=WRITE, width=3),
        text(x + 134, 204, f"attn_out[{number}]", size=12, colour=WRITE, code=True, anchor="end"),
        arrow(x + 216, STREAM, x + 216, 157, colour=READ, dashed=True),
        arrow(x + 286, 154, x + 286, STREAM - 12, colour=WRITE, width=3),
        text(x + 280, 204, f"mlp_out[{number}]", size=11, colour=WRITE, code=True, anchor="end"),
        sum_at(x + 140),
        sum_at(x + 286),
        text(x + 52, 264, f"resid_pre[{number}]", size=11, code=True),
        text(x + 176, 264, f"resid_mid[{number}]", size=11, code=True),
        text(x + 276, 264, f"resid_post[{number}]", size=11, code=True),
    ]


def one_head() -> list[str]:
    """What a head does between positions."""
    words, first, step, y = ["Anna", "…", "Tom", "gave", "a", "ball", "to"], 60, 72, 404
    weights = {0: 2.0, 2: 7.0, 3: 1.2, 5: 1.2}
    parts = [
        box(12, 292, 560, 196, fill=PANEL, line=LINE),
        text(26, 314, "Inside a head: one query position, every earlier key", bold=True, anchor="start"),
    ]
    end = first + step * 6
    for i, width in weights.items():
        x = first + step * i
        parts.append(
            f'<path d="M{x} {y - 16}C{x} {y - 40 - 6 * (6 - i)} {end} {y - 40 - 6 * (6 - i)} {end} {y - 16}" '
            f'stroke="{READ}" stroke-width="{width}" fill="none" opacity="0.8"/>'
        )
    for i, word in enumerate(words):
        last = i == len(words) - 1
        parts += [
            box(first + step * i - 30, y - 15, 60, 28, line=INK if last else LINE),
            text(first + step * i, y + 4, word, size=14, bold=last),
        ]
    return [
        *parts,
        text(end, y + 32, "query, q", size=13, colour=READ),
        text(first + step * 2, y + 32, "keys, k", size=13, colour=READ),
        text(26, 458, "q · k gives the weights (pattern, they add up to 1; nothing later is seen).", size=13, anchor="start"),
        text(26, 477, "The weighted values v are z; what z makes is added at the query's position.", size=13, anchor="start"),
    ]  # fmt: skip


def legend() -> list[str]:
    return [
        box(588, 292, 590, 196, fill=PANEL, line=LINE),
        text(604, 314, "How to read it", bold=True, anchor="start"),
        arrow(606, 340, 650, 340, colour=READ, dashed=True),
        text(662, 345, "reads the stream, changes nothing", size=14, anchor="start"),
        arrow(606, 368, 650, 368, colour=WRITE, width=3),
        text(662, 373, "writes: is added to the stream", size=14, anchor="start"),
        text(604, 404, "The stream is a sum: embedding + heads + MLPs, one for each token.", size=14, anchor="start"),
        text(604, 426, "Only heads move anything from one token to another.", size=14, anchor="start"),
        text(604, 456, "a2.4", size=14, code=True, anchor="start"),
        text(644, 456, "head 4 of layer 2;", size=14, anchor="start"),
        text(758, 456, "z[2.4]", size=14, code=True, anchor="start"),
        text(814, 456, "what it fetched;", size=14, anchor="start"),
        text(604, 477, "m0", size=14, code=True, anchor="start"),
        text(644, 477, "the MLP of layer 0;", size=14, anchor="start"),
        text(774, 477, "resid_pre[2]@END", size=14, code=True, anchor="start"),
        text(916, 477, "the stream before layer 2, last token", size=14, anchor="start"),
    ]  # fmt: skip


def drawing() -> str:
    """The picture as SVG."""
    stream = [
        f'<path d="M186 {STREAM}H1010" stroke="{INK}" stroke-width="6"/>',
        box(12, STREAM - 24, 72, 48),
        text(48, STREAM + 5, "tokens"),
        arrow(84, STREAM, 104, STREAM),
        box(106, STREAM - 24, 80, 48),
        text(146, STREAM + 5, "embed", code=True),
        box(538, STREAM - 34, 96, 68, dashed=True, line=SOFT),
        text(586, STREAM - 6, "layers", size=14, colour=SOFT),
        text(586, STREAM + 14, "1 and 2", size=14, colour=SOFT),
        text(586, 180, "residual stream", size=14, bold=True),
        box(984, STREAM - 24, 54, 48),
        text(1011, STREAM + 5, "norm", size=14),
        arrow(1038, STREAM, 1054, STREAM),
        box(1056, STREAM - 24, 70, 48),
        text(1091, STREAM + 5, "unembed", size=14),
        arrow(1126, STREAM, 1142, STREAM),
        text(1167, STREAM - 14, "logits", size=14, code=True),
        text(1167, STREAM + 5, "Anna?", size=13),
    ]
    body = [*layer(200, 0), *layer(648, 3), *stream]
    # The stream lies on the panels of the layers, and the sums on the stream.
    body += [sum_at(x) for x in (340, 486, 788, 934)]
    markers = [marker("read", READ), marker("write", WRITE), marker("ink", INK)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">',
            f"<title>{escape(ALT)}</title>",
            f"<defs>{''.join(markers)}</defs>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *body,
            *one_head(),
            *legend(),
            "</svg>\n",
        ]
    )


def mark(svg: str) -> str:
    """What a PNG says of the SVG that it was drawn from."""
    return hashlib.sha256(svg.encode()).hexdigest()


def main() -> None:
    import cairosvg
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    svg = drawing()
    PLACE.write_text(svg, encoding="utf-8")
    drawn = cairosvg.svg2png(bytestring=svg.encode(), output_width=2 * WIDTH)
    info = PngInfo()
    info.add_text("Source", mark(svg))
    # Few colours are enough for lines and letters, and make a third of the bytes.
    Image.open(io.BytesIO(drawn)).convert("RGB").quantize(64).save(
        PLACE.with_suffix(".png"), pnginfo=info, optimize=True
    )


if __name__ == "__main__":
    main()
