"""Panels: one bundle per page, props as data, and the numbers of the stores and results they come from."""

import base64
import gzip
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import xarray as xr
from closeness import close
from families import make_pairs, model_of

from workbench.engine.capture import capture
from workbench.errors import SiteError, StoreError, UnknownName, WorkbenchError
from workbench.lenses.logit_lens import top_tokens
from workbench.render import circuitsvis, panels
from workbench.render.attention_panels import attention_panel
from workbench.render.circuitsvis import bundle_html, script_html
from workbench.render.panel import Panel
from workbench.render.panel_components import COMPONENTS

WORDS = [f" w{i}" for i in range(50)]


@pytest.fixture
def pattern() -> np.ndarray:
    return np.tril(np.ones((2, 3, 3))) / np.arange(1, 4)[:, None]


@pytest.fixture(scope="module")
def captured():
    model, pairs = model_of("gpt2"), make_pairs((4, 6, 5))
    return model, capture(model, pairs.clean, sites=["pattern", "resid_post"])


@pytest.fixture
def fresh_bundle():
    bundle_html.cache_clear()
    yield
    bundle_html.cache_clear()


def pushed(text: str) -> tuple[str, str, dict]:
    match = re.search(r"\.push\((.*?)\); if", text, re.DOTALL)
    assert match is not None
    return tuple(json.loads(match[1]))


def still_of(text: str) -> str:
    match = re.search(r"base64,([^\"]+)\"", text)
    assert match is not None
    return base64.b64decode(match[1]).decode()


def said(call, *args, **options) -> str:
    with pytest.raises(WorkbenchError) as error:
        call(*args, **options)
    return str(error.value)


def test_panel_holds_its_numbers_and_names(pattern):
    text = attention_panel(["a", " b", "c"], pattern, ["a0.1", "a3.4"]).html()
    assert text == attention_panel(["a", " b", "c"], torch.tensor(pattern), ["a0.1", "a3.4"]).html()
    name, component, props = pushed(text)
    assert f'data-panel="{name}"' in text
    assert component == "AttentionHeads"
    assert props["tokens"] == ["a", "·b", "c"]
    assert props["attentionHeadNames"] == ["a0.1", "a3.4"]
    assert props["maskUpperTri"] is True
    assert close(props["attention"], pattern, tolerance=1e-4, scale=1.0)
    assert (
        pushed(attention_panel(["a", "b", "c"], pattern[:, ::-1], ["x", "y"]).html())[2]["maskUpperTri"]
        is False
    )


def test_every_component_is_there_and_hostile_tokens_stay_text(panels_of, hostile_tokens):
    strings = [*hostile_tokens, "<img src=x onerror=alert(1)>", "x" * 500, "\n", "'"]
    panels_drawn = panels_of(strings)
    assert {one.component for one in panels_drawn} == set(COMPONENTS)
    for one in panels_drawn:
        text = one.html()
        assert text.count("<script") == text.count("</script>") == 1, one.component
        assert text.count("<img") == bool(one.still), one.component
        assert "\x00" not in text
        text.encode("utf-8")
        if one.still:
            assert still_of(text) == one.still
            drawn = ElementTree.fromstring(one.still)
            assert {tag.tag.split("}")[1] for tag in drawn.iter()} <= {
                "svg",
                "style",
                "rect",
                "text",
                "title",
                "g",
                "defs",
                "use",
                "path",
            }


def test_panels_draw_the_stores_patterns(captured):
    _, store = captured
    for heads in (["a1.0", "a0.1"], [(1, 0), (0, 1)]):
        _, _, props = pushed(panels.attention(store, heads=heads, prompt=1).html())
        assert props["attentionHeadNames"] == ["a1.0", "a0.1"]
        assert len(props["tokens"]) == 6
        assert close(props["attention"][0], store["pattern", 1].prompt(1)[0], tolerance=1e-4, scale=1.0)
        assert close(props["attention"][1], store["pattern", 0].prompt(1)[1], tolerance=1e-4, scale=1.0)
    every = pushed(panels.attention(store, layer=1, prompt=store.prompts.ids[2]).html())[2]
    assert close(every["attention"], store["pattern", 1].prompt(2), tolerance=1e-4, scale=1.0)
    assert pushed(panels.attention(store, layer=1, heads=[1]).html())[2]["attentionHeadNames"] == ["a1.1"]


def test_heads_and_prompts_that_are_not_there_are_named(captured):
    model, store = captured
    last = len(store["pattern", 0].prompt(0)) - 1
    with pytest.raises(SiteError) as error:
        panels.attention(store)
    assert (
        str(error.value)
        == "Which heads? Pass heads=['a3.4', ...] or layer=3; the store has patterns of layers [0, 1]."
    )
    assert (
        said(panels.attention, store, heads=["a0.77"])
        == f"There is no head a0.77: layer 0 has heads 0 to {last}."
    )
    for wrong in ("m1", "a1.0<q>", 4):
        assert said(panels.attention, store, heads=[wrong]) == (
            f"{wrong!r} is not a head. Heads: 'a3.4', (3, 4), or with layer=3 the number 4."
        )
    with pytest.raises(
        StoreError,
        match=r"^There is no prompt 3 in <ActivationStore .*>: name one by its id, or by 0 to 2\.$",
    ):
        panels.attention(store, heads=["a0.0"], prompt=3)
    with pytest.raises(
        StoreError, match=r"^The store does not hold pattern\[0\]; it has resid_post\. Capture it with"
    ):
        panels.attention(capture(model, store.prompts, sites=["resid_post"]), heads=["a0.0"])


def test_tokens_share_one_scale():
    one = pushed(panels.tokens(["a", "b"], [1.0, -2.0]).html())
    assert one[1] == "ColoredTokens"
    assert (one[2]["values"], one[2]["minValue"], one[2]["maxValue"]) == ([1.0, -2.0], -2.0, 2.0)
    many = pushed(panels.tokens(["a", "b"], [[1.0, -2.0], [0.0, 4.0], [0, 0]]).html())
    assert many[1] == "ColoredTokensMulti"
    assert many[2]["values"] == [[1.0, 0.0, 0.0], [-2.0, 4.0, 0.0]]
    assert many[2]["labels"] == ["row 0", "row 1", "row 2"]
    assert (many[2]["positiveBounds"], many[2]["negativeBounds"]) == ([4.0] * 3, [-4.0] * 3)
    assert pushed(panels.tokens(["a"], [0.0]).html())[2]["maxValue"] == 1.0
    assert "the first 60 of 80 rows are drawn" in panels.tokens(["a"], np.ones((80, 1))).still
    # numbers of one sign are no signed scale
    assert "white 0, blue 2 nats" in panels.tokens(["a", "b"], [1.0, 2.0], unit="nats").still


def test_top_tokens_are_those_of_the_lens(captured):
    model, store = captured
    lens = top_tokens(store, model, k=3)
    words = [f"t{i}" for i in range(int(lens["token"].max()) + 1)]
    _, component, props = pushed(
        panels.top_tokens(lens, words, prompt=0, strings=store.prompts.strings[0]).html()
    )
    assert component == "TopkTokens"
    assert props["sampleLabels"] == ["layer 0", "layer 1"]
    for layer in range(2):
        got = np.array(props["tokens"][layer])[np.array(props["topkIdxs"][layer][0])]
        want = lens["token"].sel(example=0, layer=layer).values[:4]
        assert got.T.tolist() == [[f"t{i}" for i in row] for row in want]
        probs = np.array(props["topkVals"][layer][0]).T
        # a panel keeps five digits
        assert close(probs, lens["prob"][0, layer, :4], tolerance=1e-4, scale=1.0)
    selected = panels.top_tokens(lens.isel(example=0), lambda i: f"t{i}", strings=store.prompts.strings[0])
    assert selected.html() == panels.top_tokens(lens, words, strings=store.prompts.strings[0]).html()
    assert (
        said(panels.top_tokens, lens, words, prompt=3)
        == "There is no prompt 3: the Dataset has examples 0 to 2."
    )
    assert said(panels.top_tokens, lens, words[:1]).startswith("decode has no string for token ")
    assert (
        said(panels.top_tokens, lens, words, strings=["a"])
        == "1 token strings do not reach position 3 of the Dataset."
    )
    assert said(panels.top_tokens, lens[["prob"]], words) == (
        "top_tokens draws the Dataset of workbench.top_tokens, (example, layer, pos, rank) `token` and "
        "`prob`; this has variables prob."
    )


def test_log_probs_name_the_next_tokens_rank_and_what_was_likelier():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.2, 0.6]])
    one = panels.log_probs(["x", "y", "z"], probs.log(), ids=[0, 1, 2], decode={0: "x", 1: "y", 2: "z"}, k=2)
    _, _, props = pushed(one.html())
    assert props["topKTokens"] == [["x", "y"], ["z", "y"]]
    assert props["correctTokenRank"] == [1, 0]
    np.testing.assert_allclose(props["correctTokenLogProb"], np.log([0.3, 0.7]), rtol=1e-4)
    np.testing.assert_allclose(np.exp(props["topKLogProbs"]), [[0.5, 0.3], [0.7, 0.2]], rtol=1e-4)
    wanted = {"ids": [0, 1, 2], "decode": WORDS, "k": 3}
    assert said(panels.log_probs, ["x", "y", "z"], probs, **wanted) == (
        "These are not log-probabilities: their exponentials do not sum to 1 at every position. Pass "
        "logits.log_softmax(-1)."
    )
    assert said(panels.log_probs, ["x", "y"], probs.log(), **wanted) == (
        "Log-probabilities of shape (3, 3) and ids of shape (3,) do not fit 2 tokens: [pos, token] = "
        "(2, ...) and [pos] = (2,), for two tokens or more, are needed."
    )
    assert said(panels.log_probs, ["x", "y", "z"], probs.log(), ids=[0, 1, 3], decode=WORDS, k=2) == (
        "ids reach from 0 to 3; there are 3 log-probabilities."
    )
    assert said(panels.log_probs, ["x", "y", "z"], probs.log(), ids=[0, 1, 2], decode=WORDS) == (
        "k=10; ask for 1 to 3 guesses, as many tokens as there are."
    )


def test_impossible_tokens_have_log_probs_too():
    probs = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    one = panels.log_probs(["x", "y"], probs.log(), ids=[0, 1], decode=["x", "y"], k=2)
    assert pushed(one.html())[2]["correctTokenLogProb"] == [-1e4]


def test_neurons_and_their_top_samples():
    acts = [
        np.arange(12.0).reshape(2, 2, 3),
        -np.arange(6.0).reshape(1, 2, 3),
        10 + np.arange(6.0).reshape(1, 2, 3),
    ]
    strings = [["a", "b"], ["c"], ["d"]]
    _, _, props = pushed(panels.neurons(strings, acts, layers=[3, 5], names=["n0", "n1", "n2"]).html())
    assert props["tokens"] == strings
    assert props["activations"] == [table.tolist() for table in acts]
    assert (props["firstDimensionLabels"], props["secondDimensionLabels"]) == (["3", "5"], ["n0", "n1", "n2"])
    assert pushed(panels.neurons(strings[0], acts[0]).html())[2]["activations"] == [acts[0].tolist()]
    _, _, props = pushed(panels.top_samples(strings, acts, k=2).html())
    assert props["tokens"][1][2] == [["d"], ["a", "b"]]
    assert props["activations"][1][2] == [[15.0], [5.0, 11.0]]
    assert said(panels.neurons, ["a"], acts[0]) == (
        "Activations of shape (2, 2, 3) do not fit 1 tokens: [pos, layer, neuron] = (1, ...) is needed, "
        "with as many layers and neurons for every prompt."
    )
    assert (
        said(panels.neurons, strings, acts[:1])
        == "3 prompts and 1 arrays of activations: one for each prompt is needed."
    )
    assert (
        said(panels.neurons, strings[0], acts[0], layers=[1])
        == "layers has 1 names for 2 of them: one for each is needed."
    )
    assert said(panels.top_samples, strings, acts, k=0) == "k=0; ask for one prompt or more."


def test_what_does_not_fit_is_refused(pattern):
    assert said(attention_panel, ["a", "b"], pattern, ["a0.0", "a0.1"]) == (
        "A pattern of shape (2, 3, 3) does not fit 2 heads and 2 tokens: [head, query_pos, key_pos] = "
        "(2, 2, 2) is needed."
    )
    assert said(attention_panel, ["a", "b", "c"], pattern * np.nan, ["a0.0", "a0.1"]) == (
        "The attention pattern has cells that are not finite: cut the prompt to its own length first."
    )
    assert (
        said(attention_panel, [], np.zeros((0, 0, 0)), [])
        == "An attention panel needs at least one head and one token."
    )
    assert said(panels.tokens, ["a"], [np.nan]) == (
        "The values of the tokens are not all finite: leave out the positions that were not measured."
    )
    assert said(panels.tokens, ["a"], [1.0, 2.0]) == (
        "Values of shape (2,) do not fit 1 tokens: [pos] = (1,) or [row, pos] is needed."
    )
    assert said(panels.tokens, ["a"], [1.0], names=["x", "y"]) == (
        "names has 2 names for 1 of them: one for each is needed."
    )
    assert (
        said(panels.tokens, "abc", [1.0])
        == "'abc' is not a list of token strings: one string for each token is needed."
    )
    assert said(panels.tokens, ["a"], [[1.0], [1.0, 2.0]]).startswith(
        "The values of the tokens cannot be read as one array of numbers: "
    )


def test_panel_refuses_components_and_properties_that_circuitsvis_has_not():
    with pytest.raises(UnknownName) as error:
        Panel("AttentionHead", {})
    assert str(error.value).startswith(
        "component='AttentionHead' is not known. Did you mean 'AttentionHeads'"
    )
    assert said(Panel, "ColoredTokens", {"tokens": ["a"], "colour": "red"}) == (
        "ColoredTokens has no colour and needs values. Needed: tokens, values; optional: maxValue, "
        "minValue, negativeColor, positiveColor, paddingBottom."
    )
    assert (
        said(Panel, "Hello", {"name": float("inf")})
        == "name has numbers that are not finite: leave them out of the panel."
    )
    assert said(Panel, "Hello", {"name": object()}) == (
        "name has an object: a panel holds text, numbers, arrays and lists of these."
    )
    assert said(Panel, "Hello", {"name": "x" * 16_000_001}) == (
        "This Hello panel holds 16 MB, and a page up to 16 MB: choose fewer heads, layers, neurons or "
        "positions."
    )


def test_str_is_a_whole_page_and_a_notebook_gets_the_bundle(pattern):
    one = attention_panel(["a", "b", "c"], pattern, ["a0.0", "a0.1"])
    assert one._repr_html_() == bundle_html() + one.html()
    text = str(one)
    assert text.startswith("<!DOCTYPE html>")
    assert "Content-Security-Policy" in text
    assert text.count("DecompressionStream") == 1
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)


def test_bundle_is_the_script_of_circuitsvis_packed_and_mended():
    text = bundle_html()
    match = re.search(r'atob\("([^"]+)"\)', text)
    assert match is not None
    script = gzip.decompress(base64.b64decode(match[1])).decode()
    assert script.startswith('"use strict";var CircuitsVis=')
    for gone in ("sourceMappingURL", "dangerouslySetInnerHTML:{", "&nbsp;", '="red"'):
        assert gone not in script
    assert 400_000 < len(text) < 600_000
    assert text.count("</script>") == 1


def test_another_version_of_circuitsvis_leaves_still_pictures(monkeypatch, fresh_bundle, pattern):
    monkeypatch.setattr(circuitsvis, "VERSION", "9.9.9")
    message = "circuitsvis 1.43.3 is installed; panels are written for 9.9.9: pip install circuitsvis==9.9.9."
    assert said(bundle_html) == message
    assert script_html() == f'<p class="caption">The panels are still pictures here. {message}</p>'
    one = attention_panel(["a", "b", "c"], pattern, ["a0.0", "a0.1"])
    assert still_of(one._repr_html_()) == one.still


def test_another_script_of_circuitsvis_is_refused(monkeypatch, fresh_bundle):
    monkeypatch.setattr(circuitsvis, "_CORRECTIONS", (("no such thing", "", 1),))
    assert said(bundle_html) == (
        "The script of circuitsvis 1.43.3 is not the published one (no such thing is there 0 times, not 1): "
        "pip install --force-reinstall circuitsvis==1.43.3."
    )


UNFIT_SHAPES = [
    (
        "AttentionHeads",
        {"attention": np.eye(2)[None], "tokens": ["a", "b", "c"]},
        "attention (1, 2, 2); tokens (3,). Needed: attention [head, token, token]; tokens [token].",
    ),
    (
        "AttentionHeads",
        {"attention": np.eye(2), "tokens": ["a", "b"]},
        "attention (2, 2); tokens (2,). Needed: attention [head, token, token]; tokens [token].",
    ),
    (
        "AttentionPattern",
        {"attention": [[1], [1, 0]], "tokens": ["a", "b"]},
        "attention uneven; tokens (2,). Needed: attention [token, token]; tokens [token].",
    ),
    (
        "ColoredTokens",
        {"values": [1.0], "tokens": ["a", "b"]},
        "values (1,); tokens (2,). Needed: values [token]; tokens [token].",
    ),
]


def test_the_shapes_of_a_raw_panel_fit_each_other():
    """The message names every array with its shape, and the axes it needs."""
    for component, props, message in UNFIT_SHAPES:
        expected = f"The shapes of {component} do not fit each other: {message}"
        assert said(Panel, component, props) == expected, component


def test_names_counts_and_ids_of_panels(pattern):
    assert attention_panel(["a", "b", "c"], pattern, [0, 1]).props["attentionHeadNames"] == ["0", "1"]
    table = np.log(np.full((2, 4), 0.25))
    assert (
        said(panels.log_probs, ["a", "b"], table, ids=[0, 1], decode=WORDS, k=1.5)
        == "k=1.5; ask for 1 to 4 guesses, as many tokens as there are."
    )
    assert said(panels.log_probs, ["a", "b"], table, ids=[0.7, 1], decode=WORDS) == (
        "ids are token ids, and not all of them are whole numbers."
    )
    assert (
        said(panels.top_samples, [["a"]], [np.ones((1, 1, 1))], k=1.5) == "k=1.5; ask for one prompt or more."
    )


def test_a_probability_that_is_no_number_is_refused():
    sizes = ("layer", "pos", "rank")
    lens = xr.Dataset(
        {"token": (sizes, np.zeros((1, 1, 1), int)), "prob": (sizes, np.full((1, 1, 1), np.nan))}
    )
    assert said(panels.top_tokens, lens, WORDS) == (
        "The probabilities are not all finite: leave out the positions that were not measured."
    )
