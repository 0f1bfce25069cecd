"""Panels as still pictures: well-formed, the same every time, every number as text."""

from xml.etree import ElementTree

import numpy as np
import pytest

from workbench.render.attention_svg import attention_svg
from workbench.render.panel_svg import BLUE, ORANGE, shade
from workbench.render.token_svg import TokenLine, tokens_svg, top_k_svg
from workbench.text import visible

SVG = "{http://www.w3.org/2000/svg}"


def titles(svg: str) -> list[str]:
    return [title.text or "" for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_attention_has_a_cell_and_a_number_for_each_weight():
    pattern = np.array([[[1.0, 0.0], [0.25, 0.75]], [[1.0, 0.0], [1.0, 0.0]]])
    svg = attention_svg(["a", " b"], pattern, ["a0.1", "a3.4"], title="Attention")
    assert svg == attention_svg(["a", " b"], pattern, ["a0.1", "a3.4"], title="Attention")
    paths = [path.attrib for path in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert [path["fill"] for path in paths] == [shade(x, 1.0) for x in (1.0, 0.24, 0.76, 1.0)]
    assert [path["d"].count("z") for path in paths] == [1, 1, 1, 2]
    assert [text for text in texts(svg) if "." in text] == [
        "a0.1", "the last token attends most to b (0.75)", ".25.75", "1.00",
        "a3.4", "the last token attends most to a (1.00)", "1.00", "1.00",
    ]  # fmt: skip


def test_weights_beyond_one_and_below_zero_are_drawn_in_red_and_blue():
    svg = attention_svg(["a"], np.array([[[-10.0]]]), ["x"], title="difference")
    assert f'fill="{ORANGE}"' in svg
    assert "−10.00" in texts(svg)


def test_of_very_many_weights_the_largest_are_drawn():
    n = 200
    pattern = np.random.default_rng(0).random((1, n, n))
    svg = attention_svg([f"t{i}" for i in range(n)], pattern, ["a0.0"], title="t")
    assert (
        sum(path.attrib["d"].count("z") for path in ElementTree.fromstring(svg).iter(f"{SVG}path")) == 12_000
    )
    assert "; the 12,000 largest weights, from 0.7" in svg
    assert len(svg) < 500_000


def test_tokens_carry_their_values_as_text():
    svg = tokens_svg(
        [TokenLine("row", ["a", " b"], [1.0, -0.5]), TokenLine("", ["c"], [0.0])], title="Tokens", note="nats"
    )
    assert texts(svg) == [
        "Tokens",
        "nats; blue +1, white 0, orange −1",
        "row",
        "a",
        "+1",
        "·b",
        "−0.5",
        "c",
        "0",
    ]
    assert titles(svg) == ["a: +1", "·b: −0.5", "c: 0"]
    assert f'fill="{BLUE}"' in svg


def test_tokens_wrap_inside_the_picture():
    svg = tokens_svg([TokenLine("", ["word"] * 200, list(np.linspace(-1, 1, 200)))], title="t")
    root = ElementTree.fromstring(svg)
    boxes = [box.attrib for box in root.iter(f"{SVG}rect") if box.get("class") == "b"]
    assert len(boxes) == 200
    assert max(float(box["x"]) + float(box["width"]) for box in boxes) <= float(root.attrib["width"])
    assert max(float(box["y"]) for box in boxes) + 30 <= float(root.attrib["height"])
    assert "the first 4,000 of 4,001 tokens are drawn" in tokens_svg(
        [TokenLine("", ["a"] * 4001, [0.0] * 4001)], title="t"
    )


def test_top_k_has_every_guess_and_wraps_its_columns():
    cells = [[[(f" w{r}{c}{k}", 0.5 / (k + 1)) for k in range(2)] for c in range(30)] for r in range(2)]
    svg = top_k_svg([f"c{c}" for c in range(30)], ["layer 0", "layer 1"], cells, title="t", note="n")
    tooltips = titles(svg)
    assert sum(". ·w" in title for title in tooltips) == 120
    assert "2. ·w1291: 0.25" in tooltips
    assert texts(svg).count("layer 1") > 1
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["width"]) <= 970
    assert max(float(box.get("y", 0)) for box in root.iter(f"{SVG}rect")) + 16 <= float(root.attrib["height"])


def test_large_tables_say_what_they_leave_out():
    cells = [[[("a", 0.1)] * 20 for _ in range(100)] for _ in range(10)]
    svg = top_k_svg([str(c) for c in range(100)], [str(r) for r in range(10)], cells, title="t")
    assert "the 3 likeliest of 20 are drawn" in svg
    assert sum(title.startswith("1. a") for title in titles(svg)) == 1000
    wide = top_k_svg([str(c) for c in range(4000)], ["r"], [[[("a", 0.1)]] * 4000], title="t")
    assert "the first 3000 of 4000 columns are drawn" in wide
    assert top_k_svg(["c"], ["r"], [[[]]], title="nothing")


@pytest.mark.parametrize("draw", ["attention", "tokens", "top_k"])
def test_hostile_tokens_appear_as_text(draw, hostile_tokens):
    strings = [*hostile_tokens, "<img src=x onerror=alert(1)>", "'\"", "x" * 500, "\n"]
    n = len(strings)
    svg = {
        "attention": lambda: attention_svg(strings, np.full((1, n, n), 0.5), [strings[0]], title=strings[1]),
        "tokens": lambda: tokens_svg([TokenLine(strings[0], strings, [0.5] * n)], title=strings[1]),
        "top_k": lambda: top_k_svg(
            strings, strings, [[[(text, 0.5)] for text in strings]] * n, title=strings[0], note=strings[1]
        ),
    }[draw]()
    tags = {tag.tag.removeprefix(SVG) for tag in ElementTree.fromstring(svg).iter()}
    assert tags <= {"svg", "style", "rect", "text", "title", "g", "defs", "use", "path"}
    tooltips = "\n".join(titles(svg))
    for text in strings:
        assert visible(text) in tooltips
    svg.encode("utf-8")


def test_palette_is_centred_on_zero():
    assert [shade(value, 2.0) for value in (-2.0, 0.0, 2.0)] == [ORANGE, "#ffffff", BLUE]
    assert shade(0.0, 0.0) == "#ffffff"
