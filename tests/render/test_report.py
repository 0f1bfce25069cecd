"""The report: one file, everything escaped, written whole or not at all."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import OutputExists, WorkbenchError
from workbench.render.attention_panels import attention_panel
from workbench.render.report import Folded, Html, Warned, report


def test_report_shows_every_kind_of_item(tmp_path, circuit, view):
    effects = xr.DataArray(
        np.eye(3), dims=("layer", "head"), name="effect", attrs={"model": "tiny", "seed": 11}
    )
    curve = xr.Dataset({"faithfulness": ("size", [0.5, 1.0])}, coords={"size": [1, 2]})
    panel = attention_panel(["a", "b"], np.eye(2)[None], ["a0.0"])
    table = pd.DataFrame({"name": ["<b>x</b>", None], "value": [0.123456789, np.nan], "n": [12345, 2]})
    items = [
        ("text", "A < B\n\nsecond"),
        ("html", Html("<em id='kept'>kept</em>")),
        ("circuit", circuit),
        ("view", view, "a caption <>"),
        ("panels", [panel, panel]),
        ("effects", effects),
        ("curve", curve),
        ("figure", Figure()),
        ("table", table),
    ]
    path = report(
        items, tmp_path / "new" / "report.html", title="A <run>", command="workbench find --task 'ioi' <x>"
    )
    text = path.read_text(encoding="utf-8")
    for words in (
        "A &lt; B",
        "<em id='kept'>",
        "a caption &lt;&gt;",
        "&lt;b&gt;x&lt;/b&gt;",
        "seed 7, 11",
        "A &lt;run&gt;",
        "&#39;ioi&#39; &lt;x&gt;",
    ):
        assert words in text, words
    assert text.count('class="circuit"') == 2
    assert text.count('class="panel"') == 2
    assert text.count("panelsUnpacked = true") == 1
    assert text.count('class="plot"') == 3
    assert '<td class="num">0.123</td><td class="num">12,345</td>' in text
    assert '<td class="num">–</td>' in text
    assert re.search(r"torch \d", text)
    assert path.stat().st_size < 1_000_000


def test_warnings_stand_out_and_folded_items_open_with_a_click(tmp_path):
    table = pd.DataFrame({"faithfulness": ["0.98 [0.96, 0.99]", "-3.90 [-4, -3]", "a [b]"]})
    effects = xr.DataArray(np.eye(2), dims=("layer", "head"), attrs={"model": "tiny"})
    items = [Warned("not <believed>"), Folded("The <numbers>", table), Folded("A picture", effects)]
    text = report([("all", items)], tmp_path / "page.html", title="t").read_text(encoding="utf-8")
    assert '<p class="text warned">not &lt;believed&gt;</p>' in text
    assert '<details class="folded"><summary>The &lt;numbers&gt;</summary><div class="wide"' in text
    assert text.count('<td class="interval">') == 2
    # What a folded result says of where it comes from stands in the footer as that of others does.
    assert "model tiny" in text


def test_report_is_the_same_every_time_and_brings_no_bundle_without_panels(tmp_path, view):
    pages = [
        report([("circuit", view)], tmp_path / name, title="t").read_bytes() for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]
    assert b"panelsUnpacked" not in pages[0]
    assert len(pages[0]) < 250_000


def test_report_names_no_address_that_a_browser_would_fetch(tmp_path, view):
    text = report([("circuit", view)], tmp_path / "r.html", title="t").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", text)


def test_report_replaces_nothing_unasked_and_leaves_no_half_page(tmp_path):
    path = report([("a", "one")], tmp_path / "r.html", title="t")
    with pytest.raises(OutputExists) as error:
        report([("a", "two")], path, title="t")
    assert (
        str(error.value)
        == f"{str(path)!r} exists. Choose another path, or pass overwrite=True to replace it."
    )
    assert "two" in report([("a", "two")], path, title="t", overwrite=True).read_text(encoding="utf-8")
    with pytest.raises(WorkbenchError) as error:
        report([("a", "three"), ("b", object())], path, title="t", overwrite=True)
    assert str(error.value).startswith(
        "Section 'b' of the report: an object cannot be shown. Circuits, views, panels, whatever `plot` draws, "
        "pandas tables, matplotlib figures, text, Html(...), Warned(...) and Folded(...) can. A object cannot be drawn."
    )
    assert "two" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


NO_SECTIONS = [
    ([("a", "b", "cap", "FOURTH")], "tuple of 4"),
    ([("a",)], "tuple of 1"),
    ([("a", "b", 3)], "tuple of 3"),
]


def test_what_is_no_section_is_refused(tmp_path):
    """The message names the type of what was given in its place."""
    for sections, kind in NO_SECTIONS:
        with pytest.raises(WorkbenchError) as error:
            report(sections, tmp_path / "r.html", title="t")
        assert str(error.value) == (
            "A report needs a list of sections, each (heading, item) or (heading, item, caption), not a "
            f"{kind}."
        ), kind


def test_a_page_of_nothing_is_refused(tmp_path, circuit):
    for sections in ([circuit], [None], "ab", {"a": "b"}):
        with pytest.raises(
            WorkbenchError, match=r"^report: sections=.* does not fit; a list of which each is a tuple"
        ):
            report(sections, tmp_path / "r.html", title="t")
    with pytest.raises(
        WorkbenchError, match=r"^A report needs a section: \(heading, item\) or \(heading, item, caption\)\.$"
    ):
        report([], tmp_path / "r.html", title="t")
    with pytest.raises(WorkbenchError, match=r"^report: title=None does not fit; text is needed\.$"):
        report([("a", "b")], tmp_path / "r.html", title=None)  # pyright: ignore[reportArgumentType]
    assert not list(tmp_path.iterdir())
