"""Labels of tokens: where they come from, how rows are parted, and what they refuse."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from families import untyped
from hypothesis import given, settings
from hypothesis import strategies as st
from probing import labelled, store_of

from workbench.errors import ProbeError, UnknownName
from workbench.probes.controls import controls_named, splits
from workbench.probes.data import by_type, check_split, deal, shuffled
from workbench.probes.labels import Labels
from workbench.prompts.prompts import Prompts

STORE = store_of([np.zeros((9, 2))], lengths=[2, 3, 4])


def refused(message, call, error=ProbeError):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_rows_come_from_lists_tables_files_and_named_positions(tmp_path):
    rows = {
        "prompt": [0, 1, 2],
        "pos": ["END", 0, 3],
        "plural": [True, False, True],
        "country": ["France", "Peru", "Mali"],
    }
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "labels.csv", index=False)
    table["prompt"] = [STORE.prompts.ids[i] for i in (0, 1, 2)]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_dict("records")))
    made = [
        Labels.of(
            STORE,
            {name: rows[name] for name in ("plural", "country")},
            prompt=rows["prompt"],
            pos=rows["pos"],
        ),
        Labels.from_dataframe(STORE, table),
        Labels.from_csv(STORE, tmp_path / "labels.csv"),
        Labels.from_jsonl(STORE, tmp_path / "labels.jsonl"),
    ]
    for labels in made:
        assert labels.prompt.tolist() == [0, 1, 2]
        assert labels.pos.tolist() == [1, 0, 3]
        assert labels.concept("plural").classes == ("False", "True")
        assert labels.concept("plural").codes.tolist() == [1, 0, 1]
        assert labels.concept("country").classes == ("France", "Mali", "Peru")
    assert repr(made[0]) == "<Labels: 3 rows of 3 prompts, plural (binary), country (3 classes)>"


def test_a_span_is_a_row_for_each_of_its_tokens(tmp_path):
    (tmp_path / "spans.csv").write_text("prompt,start,end,name,score\n0,0,2,yes,1.5\n2,1,4,no,2\n")
    labels = Labels.from_csv(STORE, tmp_path / "spans.csv")
    assert list(zip(labels.prompt.tolist(), labels.pos.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (2, 1),
        (2, 2),
        (2, 3),
    ]
    assert labels.concept("name").loss == "logistic"
    assert labels.concept("score").codes.tolist() == [1.5, 1.5, 2, 2, 2]


def test_one_label_a_prompt_is_read_at_each_position_that_it_has():
    labels = Labels.per_prompt(STORE, {"c": [0, 1, 0]}, pos=["END", 2])
    assert list(zip(labels.prompt.tolist(), labels.pos.tolist(), strict=True)) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (2, 2),
    ]
    assert labels.at("END").prompt.tolist() == [0, 1, 2]
    assert labels.concept("c").classes == ("0", "1")


def test_the_token_at_a_named_position_is_a_concept():
    prompts = Prompts.of(
        [[1, 2], [3, 4]], strings=[["A", " x"], ["B", " x"]], positions=[{"NAME": 0}, {"NAME": 0}]
    )
    labels = Labels.of_concepts(type("Store", (), {"prompts": prompts}), ["NAME"])
    assert labels.pos.tolist() == [1, 1]
    assert labels.concept("NAME").classes == ("A", "B")


def test_what_labels_refuse():
    def of(values=(0, 1), prompt=(0, 1), pos=(0, 0)):
        return lambda: Labels.of(STORE, {"c": list(values)}, prompt=list(prompt), pos=list(pos))

    refused("Row 1 labels prompt 7; the store has prompts 0 to 2.", of(prompt=(0, 7)))
    refused("Row 1 labels position 5; prompt 1 has 3 tokens.", of(pos=(0, 5)))
    refused("position='S2' is not known. Choices: END.", of(pos=("S2", 0)), UnknownName)
    refused("Row 1 labels position 0 of prompt 0 a second time: give each token one row.", of(prompt=(0, 0)))
    refused("Concept 'c' is 1 in every row: a probe needs at least two values.", of(values=(1, 1)))
    refused(
        "Concept 'c' has no label in row 1 (1 of 2 are missing). Leave these rows out, or label them.",
        of(values=("a", None)),
    )
    refused("Concept 'c' mixes number and text: give labels of one kind.", of(values=("a", 1)))
    refused("Concept 'c' has an infinite value in row 1.", of(values=(1.0, float("inf"))))
    refused("Labels need one value for each row: there are 2 of prompt, 1 of pos, 2 of c.", of(pos=(0,)))
    refused(
        "There are no concepts: give at least one column besides the prompt and the position.",
        lambda: Labels.of(STORE, {}, prompt=[0], pos=[0]),
    )
    refused(
        "Concept 'c' has 2 labels for 3 prompts: give one for each.",
        lambda: Labels.per_prompt(STORE, {"c": [0, 1]}),
    )
    refused("concept='d' is not known. Choices: c.", lambda: of()().concept("d"), UnknownName)


def test_what_files_of_labels_refuse(tmp_path):
    def file(text, name="labels.csv"):
        (tmp_path / name).write_text(text)
        return lambda: (Labels.from_jsonl if name.endswith("jsonl") else Labels.from_csv)(
            STORE, tmp_path / name
        )

    refused(
        f"There is no file {str(tmp_path / 'none.csv')!r}.",
        lambda: Labels.from_csv(STORE, tmp_path / "none.csv"),
    )
    refused(
        "labels.csv has no column pos. Needed: prompt, pos and concepts; it has: prompt, c.",
        file("prompt,c\n0,1\n"),
    )
    refused(
        "labels.csv, row 0: there is no prompt 'abc'. Give its index or its id (store.prompts.ids).",
        file("prompt,pos,c\nabc,0,1\n"),
    )
    refused(
        "labels.csv, row 0: start='3', end='2' is not a span: 0 <= start < end.",
        file("prompt,start,end,c\n0,3,2,1\n"),
    )
    with pytest.raises(ProbeError, match=r"labels.jsonl' cannot be read as jsonl: "):
        file("{", "labels.jsonl")()


def test_equal_prompts_are_one_group():
    prompts = Prompts.of([[1, 2], [3], [1, 2]])
    labels = Labels.per_prompt(type("Store", (), {"prompts": prompts}), {"c": [0, 1, 1]})
    assert labels.groups.tolist() == [0, 1, 0]


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=12, max_size=40),
    st.integers(2, 4),
    st.integers(0, 1000),
    st.sampled_from([(0.3, 0.7), (0.25,) * 4, (0.1, 0.2, 0.7)]),
)
def test_groups_never_straddle_and_every_row_is_dealt(lengths, classes, seed, shares):
    groups = np.repeat(np.arange(len(lengths)), lengths)
    codes = np.random.default_rng(seed).integers(0, classes, len(groups))
    for n_classes, values in ((classes, codes), (0, codes + 0.5)):
        parts = deal(values, groups, shares, seed, n_classes=n_classes)
        assert parts.shape == groups.shape
        assert set(parts.tolist()) <= set(range(len(shares)))
        for group in np.unique(groups):
            assert len(set(parts[groups == group].tolist())) == 1
        assert (parts == deal(values, groups, shares, seed, n_classes=n_classes)).all()


def test_classes_are_dealt_in_proportion():
    codes = np.repeat([0, 1], [900, 100])
    parts = deal(codes, np.arange(1000), (0.3, 0.7), 0, n_classes=2)
    assert [(codes[parts == 0] == c).sum() for c in (0, 1)] == [270, 30]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=4, max_size=20), st.integers(0, 100))
def test_shuffling_moves_labels_of_the_given_rows_only(lengths, seed):
    groups = np.repeat(np.arange(len(lengths)), lengths)
    codes, rows = np.arange(len(groups)), groups % 2 == 0
    made = shuffled(codes, rows, groups, seed)
    assert (made[~rows] == codes[~rows]).all()
    assert sorted(made[rows]) == sorted(codes[rows])


def test_a_control_task_gives_every_type_one_label_and_no_class_is_lost():
    types = np.random.default_rng(0).integers(0, 30, 500)
    codes = (np.arange(500) < 20).astype(int)
    for seed in range(20):
        made = by_type(codes, types, seed)
        assert all(len(set(made[types == t].tolist())) == 1 for t in range(30))
        assert set(made.tolist()) == {0, 1}


def test_splits_that_cannot_be_are_refused():
    _, labels = labelled([np.zeros((6, 2))], {"c": [0, 0, 0, 0, 0, 1]})
    how = {"test_share": 0.3, "folds": None, "held_out": None, "seed": 0}
    refused(
        "The held-out rows have no '1' of concept 'c': there are 6 groups of prompts to split, and every class has to be in "
        "two. Label more prompts, or change the seed or the share.",
        lambda: splits(labels, **how),
    )
    refused(
        "test_share=1.5: the share of held-out rows lies between 0 and 1, as in 0.3.",
        lambda: splits(labels, **how | {"test_share": 1.5}),
    )
    refused(
        "folds=1: at least two are needed, or none for one held-out set.",
        lambda: splits(labels, **how | {"folds": 1}),
    )
    refused(
        "held_out has shape (2,); it marks the held-out rows: [6], or [1, 6] for each concept.",
        lambda: splits(labels, **how | {"held_out": np.ones(2, dtype=bool)}),
    )
    concept = replace(labels.concepts[0], codes=np.array([0, 1, 0, 1]))
    test = np.array([False, True, True, False])
    refused(
        "Concept 'c': 1 groups have rows in training and held out, the first of them that of prompt 4. Hold out whole prompts.",
        lambda: check_split(concept, ~test, test, np.array([4, 4, 5, 6])),
    )
    refused(
        "controls='shufle' is not known. Did you mean 'shuffle'? Choices: control-task, random-features, shuffle.",
        lambda: controls_named(["shufle"], 3),
        UnknownName,
    )


def test_tokens_are_those_at_the_rows():
    labels = Labels.per_prompt(STORE, {"c": [0, 1, 0]})
    assert torch.equal(torch.from_numpy(labels.tokens), torch.tensor([1, 4, 8]))


def test_tensors_are_labels_like_lists():

    labels = untyped(Labels.per_prompt.__func__)(
        Labels, STORE, {"b": torch.arange(3) % 2, "c": torch.tensor([True, False, True])}
    )
    assert [concept.loss for concept in labels.concepts] == ["logistic", "logistic"]


def test_tables_of_odd_columns_and_cells_are_refused(tmp_path):
    def table(text, name="l.csv"):
        (tmp_path / name).write_text(text)
        read = Labels.from_csv if name.endswith("csv") else Labels.from_jsonl
        return lambda: read(STORE, tmp_path / name)

    refused(
        "l.csv has a column without a name (an index? write it with index=False). Every column but prompt, pos, start and end "
        "is a concept.", table(",prompt,pos,c\n0,0,0,a\n1,1,0,b\n"),
    )  # fmt: skip
    refused(
        "l.csv has the column 'c' twice. Every column but prompt, pos, start and end is a concept.",
        table("prompt,pos,c,c\n0,0,a,a\n1,0,b,b\n"),
    )
    refused(
        "l.csv has both pos and start, end: give a position or a span, not both.",
        table("prompt,pos,start,end,c\n0,0,0,1,a\n"),
    )
    for cell in (
        '{"prompt":[0],"pos":0,"c":"a"}',
        '{"prompt":1e400,"pos":0,"c":"a"}',
        '{"prompt":0,"pos":1e400,"c":"a"}',
    ):
        with pytest.raises(ProbeError):
            table(cell + '\n{"prompt":1,"pos":0,"c":"b"}', "l.jsonl")()
    refused(
        "Concept 'c' has a list among its labels: bools, texts or numbers are needed.",
        table('{"prompt":0,"pos":0,"c":[1]}\n{"prompt":1,"pos":0,"c":[2]}', "l.jsonl"),
    )
    refused(
        "Concept 'c' has a number in row 0 that is too large: at most 1.8e+308, the largest float.",
        table(f'{{"prompt":0,"pos":0,"c":{10**400}}}\n{{"prompt":1,"pos":0,"c":2}}', "l.jsonl"),
    )
    table('{"prompt":0,"pos":0,"c":"\\ud800"}\n{"prompt":1,"pos":0,"c":"b"}', "l.jsonl")()
