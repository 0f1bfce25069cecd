"""Tables and corpora as they occur: other encodings, separators and blank lines are recognised, the rest is refused."""

import json
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import PromptError
from workbench.prompts import tables
from workbench.prompts.tables import read_rows, text_lines

ROWS = [
    ("clean", "corrupt", "answer", "wrong"),
    ("Anna met Tom and Tom saw", "Anna met Tom and Anna saw", "Anna", "Tom"),
    ("Tom met Anna and Anna saw", "Tom met Anna and Tom saw", "Tom", "Anna"),
]


def table(separator: str, between: str = "\n") -> str:
    return between.join(separator.join(row) for row in ROWS) + "\n"


@cache
def tiny():
    """The packaged model: not to be changed."""
    return wb.load_model("tiny")


def read(path: Path) -> wb.PromptPairs:
    return wb.PromptPairs.from_csv(tiny(), path)


@pytest.fixture
def right(tmp_path) -> str:
    path = tmp_path / "right.csv"
    path.write_text(table(","), encoding="utf-8")
    return read(path).fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table(";").encode(), "a table with a semicolon between its cells"),
        (table("\t").encode(), "a table with a tab between its cells"),
        (table(",").encode("utf-16"), "UTF-16"),
        (table("\t").encode("utf-16-le"), "UTF-16-LE, a table with a tab between its cells"),
        (table(";").encode("utf-32"), "UTF-32, a table with a semicolon between its cells"),
        (("sep=;\r\n" + table(";", "\r\n")).encode(), "a table with a semicolon between its cells"),
    ],
)
def test_spreadsheets_tables_are_recognised_and_the_warning_says_as_what(tmp_path, right, content, words):
    path = tmp_path / "theirs.csv"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="was read as") as warned:
        assert read(path).fingerprint == right
    assert [str(warning.message) for warning in warned] == [f"theirs.csv was read as {words}."]


@pytest.mark.parametrize(
    "content",
    [
        table(",", "\n\n"), "\n \n" + table(","), table(",", "\r\n") + "\r\n\r\n", "\ufeff" + table(","),
    ],
)  # fmt: skip
def test_blank_lines_and_marks_are_left_out(tmp_path, right, content):
    path = tmp_path / "theirs.csv"
    path.write_bytes(content.encode())
    assert read(path).fingerprint == right


def test_text_that_is_not_utf_8_is_read_as_that_of_windows(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("café\n“Anna”\n".encode("cp1252"))
    with pytest.warns(UserWarning, match=r"words.txt was read as cp1252 \(Windows\)\."):
        assert list(text_lines(path, PromptError)) == ["café", "“Anna”"]
    path.write_bytes(b"caf\xe9 \x81\n")
    with pytest.raises(PromptError, match=r"is not text in utf-8 or cp1252. Save it as UTF-8."):
        wb.read_corpus(tiny(), path)


def test_doubled_columns_and_keys_are_refused(tmp_path):
    model = tiny()
    frame = pd.DataFrame([[*ROWS[1], "dog"]], columns=[*ROWS[0], "wrong"])
    with pytest.raises(
        PromptError, match=r"table has the column 'wrong' 2 times. Give each column its own name."
    ):
        wb.PromptPairs.from_dataframe(model, frame)
    path = tmp_path / "twice.csv"
    path.write_text("clean,corrupt,answer,wrong,wrong\na,b,c,d,e\n")
    with pytest.raises(PromptError, match=r"twice.csv has the column 'wrong' 2 times"):
        read(path)
    path = tmp_path / "twice.jsonl"
    path.write_text('{"clean": "Anna", "clean": "Tom"}\n')
    with pytest.raises(
        PromptError, match=r"twice.jsonl' cannot be read as jsonl: row 1: 'clean' is there twice"
    ):
        wb.PromptPairs.from_jsonl(model, path)


HALF = "Anna met Tom \ud83d"


def test_half_an_emoji_is_refused_with_its_row_and_column(tmp_path):
    model = tiny()
    row = dict(zip(ROWS[0], ROWS[1], strict=True))
    for column in ROWS[0]:
        path = tmp_path / "pairs.jsonl"
        path.write_text(json.dumps(row) + "\n" + json.dumps(row | {column: HALF}))
        with pytest.raises(
            PromptError, match=f"pairs.jsonl, row 2, {column} holds .ud83d, half of a character"
        ):
            wb.PromptPairs.from_jsonl(model, path)
    path = tmp_path / "corpus.jsonl"
    path.write_text(json.dumps({"text": "Anna"}) + "\n" + json.dumps({"text": HALF}))
    for source, place in ((path, "corpus.jsonl, line 2"), (["Anna", HALF], "Prompt 1")):
        with pytest.raises(PromptError, match=f"{place} holds"):
            wb.read_corpus(model, source)
    for call in (wb.run, wb.capture):
        with pytest.raises(PromptError, match="Prompt 1 holds"):
            call(model, ["Anna", HALF])


def test_deep_json_is_refused(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text("[" * 100_000)
    for read_file in (wb.read_corpus, wb.PromptPairs.from_jsonl):
        with pytest.raises(PromptError, match=r"deep.jsonl.*it is nested more than 64 deep"):
            read_file(tiny(), path)


def test_a_table_as_long_as_the_sample_of_a_corpus_is_read_to_its_last_byte(tmp_path, monkeypatch):
    path = tmp_path / "cut.csv"
    # The last byte begins a character of two in UTF-8 that does not go on, and is a whole one in cp1252.
    path.write_bytes("a,b\n1,caf\u00c3".encode("cp1252"))
    monkeypatch.setattr(tables, "_SAMPLE", path.stat().st_size)
    with pytest.warns(UserWarning, match="cut.csv was read as cp1252"):
        assert read_rows(path, "csv", PromptError) == [["a", "b"], ["1", "caf\u00c3"]]


def test_a_file_that_opens_and_cannot_be_read_is_named():
    """Beginnings of the memory of a process cannot be read, and other drives fail in the same way."""
    model, path = tiny(), Path("/proc/self/mem")
    with pytest.raises(PromptError, match="'/proc/self/mem' cannot be read"):
        wb.PromptPairs.from_csv(model, path)
    with pytest.raises(PromptError, match="'/proc/self/mem' cannot be read"):
        wb.read_corpus(model, path)


def test_token_ids_that_no_tokenizer_counts_and_columns_of_several_levels_are_refused():
    model = wb.load_model("tiny")
    for token in (-1, 2**40):
        with pytest.raises(wb.WorkbenchError):
            wb.run(model, wb.read_corpus(model, [[0, token]]))
    frame = pd.DataFrame([ROWS[1]], columns=pd.MultiIndex.from_product([ROWS[0], ["x"]]))
    with pytest.raises(PromptError, match="table has columns of 2 levels"):
        wb.PromptPairs.from_dataframe(model, frame)
