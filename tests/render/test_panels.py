"""Attention panels: one bundle per page, props as data."""

import base64
import gzip
import json
import re

import numpy as np
import pytest

from workbench.errors import WorkbenchError
from workbench.render import panels
from workbench.render.panels import AttentionPanel, attention_panel, bundle_html


@pytest.fixture
def pattern() -> np.ndarray:
    return np.tril(np.ones((2, 3, 3))) / np.arange(1, 4)[:, None]


def test_panel_holds_its_numbers_and_names(pattern):
    text = attention_panel(["a", " b", "c"], pattern, ["a0.1", "a3.4"])
    assert text == attention_panel(["a", " b", "c"], pattern, ["a0.1", "a3.4"])
    name, props = json.loads(re.search(r"\.push\((.*?)\); if", text, re.DOTALL)[1])
    assert f'data-panel="{name}"' in text
    assert props["tokens"] == ["a", "·b", "c"]
    assert props["attentionHeadNames"] == ["a0.1", "a3.4"]
    np.testing.assert_allclose(props["attention"], pattern, atol=1e-4)


def test_hostile_tokens_stay_text(hostile_tokens):
    n = len(hostile_tokens)
    text = attention_panel(hostile_tokens, np.zeros((1, n, n)), ["</script>"])
    assert text.count("<script") == text.count("</script>") == 1
    assert "<img" not in text
    text.encode("utf-8")


def test_bundle_is_the_script_of_circuitsvis_packed():
    text = bundle_html()
    packed = base64.b64decode(re.search(r'atob\("([^"]+)"\)', text)[1])
    script = gzip.decompress(packed).decode()
    assert script.startswith('"use strict";var CircuitsVis=')
    assert "sourceMappingURL" not in script
    assert 400_000 < len(text) < 600_000
    assert text.count("</script>") == 1


def test_panel_in_a_notebook_brings_its_bundle(pattern):
    panel = AttentionPanel(["a", "b", "c"], pattern, ["a0.0", "a0.1"])
    assert panel._repr_html_() == bundle_html() + panel.html()


def test_what_does_not_fit_is_refused(pattern):
    with pytest.raises(WorkbenchError) as error:
        attention_panel(["a", "b"], pattern, ["a0.0", "a0.1"])
    assert str(error.value) == (
        "A pattern of shape (2, 3, 3) does not fit 2 heads and 2 tokens: [head, query_pos, key_pos] = (2, 2, 2) is needed."
    )
    with pytest.raises(WorkbenchError) as error:
        attention_panel(["a", "b", "c"], pattern * np.nan, ["a0.0", "a0.1"])
    assert str(error.value) == "The attention pattern has cells that are not finite: cut the prompt to its own length first."
    with pytest.raises(WorkbenchError, match=r"^An attention panel needs at least one head and one token\.$"):
        attention_panel([], np.zeros((0, 0, 0)), [])


def test_another_version_of_circuitsvis_is_refused(monkeypatch):
    bundle_html.cache_clear()
    monkeypatch.setattr(panels, "VERSION", "9.9.9")
    with pytest.raises(WorkbenchError) as error:
        bundle_html()
    assert str(error.value) == "circuitsvis 1.43.3 is installed; panels are written for 9.9.9: pip install circuitsvis==9.9.9."
