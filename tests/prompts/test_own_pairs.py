"""A stranger's table: as spreadsheets and people write it, it gives the right pairs or says which row and what to do."""

import json

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import ArgumentError, PromptError

HEADER = "clean,corrupt,answer,wrong"
NOUNS = ("dog", "bird", "boy", "girl")
PLACES = ("ship", "church", "river", "house", "tree")
ROWS = [
    {
        "clean": f"The {noun} near the {other}s beside the {place}", "corrupt": f"The {noun}s near the {other}s beside the {place}",
        "answer": "is|was", "wrong": "are|were",
    }
    for noun in NOUNS for other in NOUNS for place in PLACES
][:40]  # fmt: skip
FRAME = pd.DataFrame(ROWS)


@pytest.fixture(scope="module")
def model():
    return wb.load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def right(model):
    return wb.PromptPairs.from_dataframe(model, FRAME)


def written(tmp_path, name: str):
    """The forty pairs as a file of that name."""
    path = tmp_path / name
    text = FRAME.to_csv(index=False)
    contents = {
        "bom.csv": ("\ufeff" + text).encode(),
        "crlf.csv": text.replace("\n", "\r\n").encode(),
        "semicolons.csv": FRAME.to_csv(index=False, sep=";").encode(),
        "tabs.tsv": FRAME.to_csv(index=False, sep="\t").encode(),
        "quotes.csv": FRAME.to_csv(index=False, quoting=1).encode(),
        "capitals.csv": text.replace(HEADER, "Clean, CORRUPT ,Answer,Wrong").encode(),
        "more.csv": FRAME.assign(note="x", pos_of="").rename(columns={"pos_of": "pos"}).to_csv(index=False).encode(),
        "blank.csv": text.replace("\n", "\n\n").encode(),
        "list.json": json.dumps(ROWS).encode(),
        "columns.json": (FRAME.to_json() or "").encode(),
        "lines.json": (FRAME.to_json(orient="records", lines=True) or "").encode(),
        "lists.jsonl": "\n".join(
            json.dumps(row | {name: row[name].split("|") for name in ("answer", "wrong")}) for row in ROWS
        ).encode(),
        "spaced.csv": text.replace("is|was", "is | was ").replace("are|were", "are|were").encode(),
    }  # fmt: skip
    if name == "table.parquet":
        FRAME.to_parquet(path)
    else:
        path.write_bytes(contents[name])
    return path


@pytest.mark.parametrize(
    "name",
    ["bom.csv", "crlf.csv", "semicolons.csv", "tabs.tsv", "quotes.csv", "capitals.csv", "more.csv", "blank.csv", "list.json",
     "columns.json", "lines.json", "lists.jsonl", "spaced.csv", "table.parquet"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*was read as")
def test_forty_pairs_are_the_same_however_they_are_written(model, right, tmp_path, name):
    path = written(tmp_path, name)
    assert wb.load_task(path, model).fingerprint == right.fingerprint
    # In either order.
    assert wb.PromptPairs.from_file(path, model).fingerprint == right.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": " " + ROWS[1]["clean"]}, "row 2: clean begins with a space and corrupt does not, which changes its tokens"),
        ({"corrupt": ROWS[1]["corrupt"] + " "}, "row 2: corrupt ends with a space and clean does not"),
        ({"answer": float("nan")}, "row 2: the column 'answer' is empty. Fill it, or leave the row out."),
        ({"wrong": None}, "row 2: the column 'wrong' is empty"),
        ({"answer": 7}, "row 2: the column 'answer' is int, not text. Put it in quotes"),
        ({"answer": ["is", 7]}, "row 2: the column 'answer' is list, not text"),
        ({"answer": "is| is"}, "row 2: the column 'answer' has an answer twice. Give each once."),
        ({"pos_S": "horse"}, "row 2, pos_S: 'horse' is not in 'The dog near the dogs beside the church'"),
        ({"pos_S": "the"}, "row 2, pos_S: 'the' stands 2 times in"),
        ({"pos_S": "the#3"}, "row 2, pos_S: 'the#3' is not in"),
        ({"pos_S": 9}, "row 2, pos_S: index 9; the prompt has the tokens 0 to 8."),
        ({"pos_S": 2.5}, "row 2, pos_S: '2.5' is not in"),
        ({"pos_two words": 2}, "the column 'pos_two words' names a position 'two words'"),
        ({"pos_S@corupt": 2}, "the column 'pos_S@corupt' is of 'corupt'; this table has clean and corrupt."),
        ({"clean": "The [[S:dog]] near the [[S:boys]]"}, "row 2, clean: [[S:...]] is there twice"),
        ({"clean": "The [[S:dog]] near the dogs beside the church", "pos_S": "near"}, "row 2: the position S is marked in clean and"),
        ({"clean": "The [[S:dog]] beside the church"}, "clean has 6 tokens and corrupt 9, so that the position S is not at the same"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_row_and_the_cure(model, change, message):
    rows = [dict(row) for row in ROWS]
    rows[1] |= change
    with pytest.raises(PromptError) as error:
        wb.load_task(pd.DataFrame(rows, dtype=object), model)
    assert message in str(error.value)


def test_files_of_other_kinds_and_other_arguments_are_refused(model, tmp_path):
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(
        PromptError, match=r"table.xlsx' is none of \.csv, \.tsv, \.jsonl, \.json and \.parquet: save"
    ):
        wb.PromptPairs.from_file(tmp_path / "table.xlsx", model)
    (tmp_path / "table.parquet").write_bytes(b"PK")
    (tmp_path / "object.json").write_text('{"clean": "a"}')
    with pytest.raises(PromptError, match="cannot be read as parquet"):
        wb.PromptPairs.from_file(tmp_path / "table.parquet", model)
    with pytest.raises(PromptError, match=r"is no table of pairs: a JSON file is a list of objects"):
        wb.PromptPairs.from_file(tmp_path / "object.json", model)
    with pytest.raises(ArgumentError, match="takes a model and a path, in either order; given: 'a', 'b'"):
        wb.PromptPairs.from_csv("a", "b")
    with pytest.raises(ArgumentError, match="takes a model and a table, in either order"):
        wb.PromptPairs.from_dataframe(FRAME, FRAME)


def test_columns_and_marks_name_the_same_places(model):
    row = ROWS[0]
    columns = row | {"pos_S": "dog", "pos_NEAR": "near the#1", "pos_FIRST": 1, "pos_NONE": None}
    frame = pd.DataFrame([columns, ROWS[1] | {"pos_S": None}], dtype=object)
    pairs = wb.load_task(frame, model)
    for side in (pairs.clean, pairs.corrupt):
        # <bos> The dog near the ...: of a phrase the last token; an empty cell is no place.
        assert {name: at.tolist() for name, at in side.positions.items()} == {
            "S": [2, -1],
            "NEAR": [4, -1],
            "FIRST": [1, -1],
            "END": [8, 8],
        }
    marked = row | {"clean": row["clean"].replace("dog", "[[S:dog]]", 1)}
    by_marks = wb.load_task(pd.DataFrame([marked]), model)
    assert by_marks.clean.ids == pairs.clean.select([0]).ids
    assert by_marks.corrupt.at("S").tolist() == [2]
    # Where the place is elsewhere in the corrupt prompt, a column or a mark of its own says so.
    other = row | {"pos_S": "dog", "pos_S@corrupt": "near"}
    assert wb.load_task(pd.DataFrame([other]), model).corrupt.at("S").tolist() == [3]
    wiki = row | {"clean": "The dog [[Category:near]] the dogs"}
    with pytest.raises(PromptError, match="the vocabulary has no"):  # it is text, and no mark
        wb.load_task(pd.DataFrame([wiki]), model)
    # Effects at the named place of each prompt.
    effects = wb.effects(model, pairs, sites="resid_pre@S", value="corrupt", progress=False)
    assert effects["pos"].values.tolist() == ["S"]
    assert effects.isel(example=1).isnull().all()
