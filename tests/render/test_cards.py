"""Results show themselves: the sentence, the table and the page of a result, with numbers that are known by hand."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from IPython.core.interactiveshell import InteractiveShell

import workbench as wb
from workbench.errors import WorkbenchError
from workbench.render import notebook
from workbench.render.cards.objects import card_of
from workbench.render.cards.strongest import strongest

HOSTILE = "</td><script>alert(1)</script>"


def effects(values, **coords) -> xr.DataArray:
    """Effects of zero values on logit_diff, over (example, layer, head)."""
    facts = {"kind": "effects", "sites": "z", "metric": "logit_diff", "unit": "logits", "value": "zero"}
    return xr.DataArray(values, dims=("example", "layer", "head"), coords=coords, name="effect", attrs=facts)


def test_the_headline_names_the_strongest_cell_with_its_interval_and_says_that_it_was_chosen():
    values = np.zeros((4, 2, 3))
    values[:, 1, 2] = [-1.0, -2.0, -3.0, -2.0]
    told = effects(values).wb.headline()
    assert told.startswith(
        "Effects on logit_diff with zero values in z: the strongest of 6 is a1.2 with -2.00 logits ["
    )
    assert told.endswith("(4 prompts). It was chosen as the strongest: expect less on new prompts.")
    table = effects(values).wb.table(2)
    assert table["what"].tolist() == ["a1.2", "a0.0"]
    assert table["low"][0] < -2 < table["high"][0]


def test_cells_are_named_as_in_circuits_and_those_of_a_circuit_are_marked():
    graph = wb.Graph.of(wb.load_model("induction"))
    circuit = wb.Circuit.of(graph, ["input->a0.0<v>", "a0.0->logits"])
    scores = xr.DataArray(
        [[0.1, -3.0], [2.0, np.nan]], dims=("writer", "reader"), attrs={"kind": "edge_scores"},
        coords={"writer": ["input", "a0.0"], "reader": ["m0", "logits"]},
    )  # fmt: skip
    table = strongest(scores, circuit=circuit)
    assert table["what"].tolist() == ["input->logits", "a0.0->m0", "input->m0"], "NaN is no edge"
    assert table["in circuit"].tolist() == ["", "", ""]
    assert strongest(
        scores.rename(reader="reader").assign_coords(reader=["m0", "logits"])[1:], circuit=circuit
    )["in circuit"].tolist() == [""]
    assert strongest(-scores[1:, :1].assign_coords(reader=["logits"]), circuit=circuit)[
        "in circuit"
    ].tolist() == ["yes"]


def test_arrays_of_others_have_no_headline_and_look_as_ever():
    array = xr.DataArray([1.0])
    with pytest.raises(WorkbenchError, match="no headline for an array without a kind"):
        array.wb.headline()
    page = notebook.html_of(array)
    assert page is not None
    assert "workbench-card" not in page
    assert "xr-array" in page
    with pytest.raises(WorkbenchError, match="circuit= goes with scores and effects"):
        xr.Dataset({"missed": ("node", [1.0])}, attrs={"kind": "minimality"}).wb.table(
            circuit=wb.reference_circuit("ioi")
        )


def test_a_part_that_lost_its_variables_is_shown_by_xarray():
    part = xr.Dataset({"faithfulness": ("circuit", [1.0])}, attrs={"kind": "evaluation"})
    with pytest.raises(WorkbenchError, match=r"lacks what its headline tells .*n_edges.*: take the headline"):
        part.wb.headline()
    assert "workbench-card" not in str(notebook.html_of(part))


def test_hostile_text_stays_text_in_a_card():
    values = np.ones((2, 1, 1))
    page = card_of(effects(values).assign_attrs(metric=HOSTILE, value=HOSTILE, unit=HOSTILE)).html()
    assert "<script" not in page.split("<details>")[0]
    pairs = wb.PromptPairs.of([[5, 7]], [[4, 7]], [9], [8])
    named = wb.PromptPairs(pairs.clean, pairs.corrupt, pairs.answers, pairs.wrong, {"task": HOSTILE})
    assert "<script" not in card_of(named).html()


def test_pairs_mark_the_tokens_that_differ():
    pairs = wb.load_task("ioi", wb.load_model("tiny"), n=5)
    card = card_of(pairs)
    assert card.headline.startswith("5 pairs of ioi, ")
    assert card.headline.endswith("measured by logit_diff. Counterfactuals: swap and abc.")
    first = card.table.iloc[0]
    differing = (pairs.clean.tokens[0] != pairs.corrupt.tokens[0]).sum()
    assert str(first["clean"]).count("[") == int(differing)
    assert first["answer"] in str(first["clean"]).replace("[", "").replace("]", "")
    assert card.html().count("<mark>") >= 6
    assert card.text().splitlines()[-1] == "... and 2 more"
    # answers that stand in no prompt have their words too
    is_or_are = card_of(wb.load_task("agreement", wb.load_model("tiny"), n=4)).table
    assert {*is_or_are["answer"], *is_or_are["wrong"]} <= {"is", "are", "was", "were", "has", "have"}


def test_ipython_shows_cards_and_print_shows_xarray():
    shell = InteractiveShell.instance()
    try:
        notebook.register()
        result = effects(np.ones((2, 2, 2)))
        data, _ = shell.display_formatter.format(result)
        assert data["text/plain"].startswith(
            "Effects on logit_diff with zero values in z: the strongest of 4 is a0.0"
        )
        assert '<img class="plot"' in data["text/html"]
        assert "the labelled numbers (xarray)" in data["text/html"]
        assert repr(result).startswith("<xarray.DataArray 'effect'")
        plain, _ = shell.display_formatter.format(xr.DataArray([1.0]))
        assert plain["text/plain"].startswith("<xarray.DataArray")
    finally:
        InteractiveShell.clear_instance()


def test_the_table_of_an_evaluation_has_a_row_for_every_circuit_and_value():
    names = (
        "n_edges",
        "faithfulness",
        "low",
        "high",
        "error",
        "r",
        "kl_recovered",
        "answers_kept",
        "in_sample",
    )
    data = {name: (("ablation", "circuit"), np.full((2, 1), 0.5)) for name in names}
    data["n_edges"], data["in_sample"] = ("circuit", [40]), ("circuit", [0.0])
    result = xr.Dataset(
        data | {"m_full": ("example", [1.0, 2.0])}, coords={"ablation": ["swap", "zero"]},
        attrs={"kind": "evaluation", "metric": "kl"},
    )  # fmt: skip
    assert isinstance(result.wb.table(), pd.DataFrame)
    assert result.wb.table()["ablation"].tolist() == ["swap", "zero"]
    assert result.wb.headline() == (
        "40 edges: faithfulness of kl on 2 prompts 0.50 [0.50, 0.50] with swap values, error per prompt 0.50; 0.50 "
        "[0.50, 0.50] with zero values, error per prompt 0.50. No control was run: checks=() leaves them out."
    )
