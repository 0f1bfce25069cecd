"""Circuits as HTML fragments and pages: nothing leaves the quotes it was put in, nothing asks the network."""

import base64
import gzip
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from closeness import close
from pictures import TOKENS, make_circuit

from workbench.circuit.circuit import Circuit
from workbench.errors import CircuitError
from workbench.render.circuit.html import circuit_html, to_html
from workbench.render.circuit.page import POLICY, asset, script_json
from workbench.render.circuit.svg import CircuitView, to_svg
from workbench.render.page import page
from workbench.sites import Shape


class Tags(HTMLParser):
    """Every tag that a browser would see, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def frame_of(fragment: str) -> str:
    """The document that the script puts into the frame."""
    return gzip.decompress(base64.b64decode(re.search(r'atob\("([^"]*)"\)', fragment)[1])).decode()


def data_of(fragment: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', frame_of(fragment), re.DOTALL)[1])


def test_fragment_is_the_same_every_time_and_starts_with_the_still_picture(view):
    text = to_html(view)
    assert text == to_html(view)
    still = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', text)[1]
    assert base64.b64decode(still).decode() == to_svg(view, kind="position")
    assert [tag for tag, _ in Tags(text).tags] == ["div", "img", "script"]
    assert 'setAttribute("sandbox", "allow-scripts allow-downloads")' in text


def test_frame_holds_both_views_and_what_their_lines_mean(view):
    data = data_of(to_html(view))
    assert set(data["scenes"]) == {"component", "position-0"}
    assert len(data["scenes"]["component"]["lines"]) == len(view.edges) == len(data["edges"])
    assert data["edges"][0]["w"] == view.edges[0].writer
    assert data["edges"][0]["s"] == pytest.approx(view.edges[0].weight, rel=1e-3)
    frame = frame_of(to_html(view))
    for kind, scene in data["scenes"].items():
        picture = re.search(rf'id="{kind}">(.*?)</svg>', frame, re.DOTALL)[1]
        assert len(re.findall(r'<path class="e [pmz]"', picture)) == len(scene["lines"])
        assert len(re.findall(r'<path class="h"', picture)) == len(scene["hops"])
        assert picture.count('<g class="n">') == 1 + max(max(line[5], line[6]) for line in scene["lines"])
        assert 0 < scene["start"] <= len(scene["lines"]) <= scene["known"]


def test_the_strongest_of_many_edges_have_a_picture_of_their_own():
    circuit = make_circuit(Shape(32, 32, 8, 4096, 128, 14336, 128000, 4096), 400)
    frame, data = frame_of(to_html(CircuitView.of(circuit))), data_of(to_html(CircuitView.of(circuit)))
    whole, near = data["scenes"]["component"], data["scenes"]["component-near"]
    assert set(data["scenes"]) == {"component", "component-near"}
    assert whole["start"] <= near["limit"] < len(whole["lines"])
    considered = [line[:2] for line in whole["lines"][: near["limit"]]]
    near_lines = [line[:2] for line in near["lines"]]
    assert near_lines == [line for line in considered if line in near_lines]
    heights = [float(size) for size in re.findall(r'<svg [^>]*height="([\d.]+)"', frame)]
    assert heights[1] < 0.8 * heights[0]


def test_patterns_are_one_byte_per_cell(view):
    (packed,) = data_of(to_html(view))["patterns"]
    assert packed
    for name, text in packed.items():
        layer, head = map(int, name.split("."))
        cells = base64.b64decode(text)
        # 255 levels: a rounded weight is off by at most half of one
        weights = [cell / 254 for cell in cells]
        assert close(weights, view.patterns[layer, head].ravel(), scale=1.0, tolerance=0.51 / 254)


def test_key_and_value_edges_of_a_shared_head_name_every_query_head(grouped_view):
    edges = data_of(to_html(grouped_view))["edges"]
    shared = [edge for edge in edges if edge["r"].endswith(("<k>", "<v>"))]
    assert shared
    assert all(len(edge["h"]) == 4 for edge in shared)
    assert all(len(edge["h"]) == 1 for edge in edges if edge["r"].endswith("<q>"))


def test_hostile_tokens_stay_text(hostile):
    text = to_html(hostile)
    assert [tag for tag, _ in Tags(text).tags] == ["div", "img", "script"]
    assert text.count("<script") == text.count("</script>") == 1
    frame = Tags(frame_of(text)).tags
    assert {tag for tag, _ in frame}.isdisjoint({"img", "iframe", "object", "link"})
    assert sum(tag == "script" for tag, _ in frame) == 2
    assert not [name for _, attrs in frame for name in attrs if name.startswith("on")]
    text.encode("utf-8")


def test_script_json_holds_nothing_that_ends_a_script():
    value = ["</script>", "<!--", "\u2028\u2029", "\ud800", "\x00"]
    text = script_json(value)
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == value


def test_circuit_draws_itself_in_a_notebook(circuit):
    assert circuit._repr_html_() == circuit_html(circuit) == CircuitView.of(circuit)._repr_html_()


@pytest.mark.parametrize("make", [Circuit.empty, Circuit.full])
def test_smallest_and_unscored_circuits_are_shown(make):
    assert data_of(circuit_html(make(Shape(1, 1, 1, 8, 8, 16, 50, 16))))["scored"] is False


def test_page_escapes_its_texts_and_forbids_requests():
    text = page(
        "<b>title</b>", [('a "heading"', "<p>one</p>"), ("<script>", "<p>two</p>")], subtitle="<i>\x00"
    )
    tags = Tags(text).tags
    assert text.startswith("<!DOCTYPE html>")
    assert {"charset": "utf-8"} in [attrs for tag, attrs in tags if tag == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in [
        attrs for tag, attrs in tags if tag == "meta"
    ]
    assert POLICY.startswith("default-src 'none'")
    assert not {"b", "i", "script"} & {tag for tag, _ in tags}
    assert [attrs["href"] for tag, attrs in tags if tag == "a"] == ["#main", "#s1", "#s2"]
    assert [attrs["id"] for tag, attrs in tags if tag == "section"] == ["s1", "s2"]


def test_assets_name_no_address_and_no_closing_tag():
    for name in ("circuit.js", "frame.js", "frame.css", "../templates/page.css"):
        text = asset(name)
        assert not re.search(r"https?:|//\w+\.|url\(|@import|innerHTML|eval\(|</", text), name
    assert len(asset("circuit.js")) < 18_000


def test_sizes_stay_within_their_bars(view_of, circuit_of, large_view):
    assert len(large_view.edges) >= 200
    assert len(to_html(large_view)) < 350_000
    circuit = circuit_of(n=137)
    shown = view_of(circuit, TOKENS)
    eight = replace(shown, patterns=dict(list(shown.patterns.items())[:8]))
    assert len(page("one", [("Circuit", to_html(eight))])) < 120_000
    many = circuit_of(Shape(12, 12, 12, 768, 64, 3072, 50257, 1024), 2000)
    assert len(to_html(view_of(many, TOKENS))) < 1_200_000
    assert len(to_svg(CircuitView.of(circuit_of(n=60), top=60))) < 90_000


def test_two_circuits_are_compared_by_edge(circuit_of):
    a, b = circuit_of(n=40), circuit_of(n=20)
    view = CircuitView.compared(a, b, names=("A<b>", "B"))
    sides = {(e.writer, e.reader): e.side for e in view.edges}
    for edge in a.edge_list:
        assert sides[edge.writer, edge.reader] == ("both" if edge in b.edge_list else "a")
    picture = to_svg(view)
    assert "only in A&lt;b&gt;" in picture
    assert "in both" in picture
    data = data_of(to_html(view))
    assert {edge["c"] for edge in data["edges"]} <= {0, 1, 2}
    assert data["sides"] == ["A<b>", "B"]
    with pytest.raises(CircuitError):
        CircuitView.compared(a, Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16)))


def test_prompts_and_intervals_and_the_curve_are_carried(circuit, view_of):
    first, second = (view_of(circuit, [word, *TOKENS[1:]]) for word in ("<bos>", "Then"))
    data = data_of(to_html(CircuitView.on_prompts([first, second])))
    assert [tokens[0] for tokens in data["prompts"]] == ["<bos>", "Then"]
    assert {"position-0", "position-1"} < set(data["scenes"])
    with pytest.raises(CircuitError, match="different circuits"):
        CircuitView.on_prompts([first, CircuitView.of(Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16)))])
    axes = {"writer": list(circuit.graph.writers), "reader": list(circuit.graph.readers)}
    score = xr.DataArray(np.nan_to_num(circuit.scores), dims=tuple(axes), coords=axes)
    curve = xr.Dataset(
        {
            name: ("size", [value, 1.0])
            for name, value in (("faithfulness", 0.5), ("low", 0.4), ("high", np.nan))
        },
        coords={"n_edges": ("size", [10, 40])},
        attrs={"ranked_by": "circuit"},
    )
    view = CircuitView.of(
        circuit, intervals=xr.Dataset({"low": score - 0.1, "high": score + 0.1}), curve=curve
    )
    data = data_of(to_html(view))
    assert data["curve"] == [[10, 0.5, 0.4, None], [40, 1.0, 1.0, 1.0]]
    shown = data["edges"][0]["s"]
    # a page has four significant digits
    assert close(data["edges"][0]["i"], [shown - 0.1, shown + 0.1], tolerance=1e-3)
    turned = (
        xr.Dataset({"low": score - 0.1, "high": score + 0.1})
        .sortby("reader")
        .isel(writer=slice(None, None, -1))
    )
    assert (
        CircuitView.of(circuit, intervals=turned).edges
        == CircuitView.of(circuit, intervals=turned.sortby("writer")).edges
    )
    assert CircuitView.of(circuit, intervals=turned).edges[0].interval == view.edges[0].interval
    with pytest.raises(CircuitError, match="intervals belongs to another graph"):
        CircuitView.of(circuit, intervals=turned.isel(reader=slice(3)))
    with pytest.raises(CircuitError, match="this curve is of others"):
        CircuitView.of(circuit, curve=curve.assign_attrs(ranked_by="signed"))
    with pytest.raises(CircuitError, match="curve lacks n_edges"):
        CircuitView.of(circuit, curve=curve.drop_vars("n_edges"))
