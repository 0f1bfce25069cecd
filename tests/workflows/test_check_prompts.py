"""A file of pairs is looked at row by row: every row that cannot be used is named, with what to do."""

import json

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import PromptError
from workbench.workflows.check_prompts import check_prompts

GOOD = "The dog near the cats by the ship,The dogs near the cats by the ship,is,are\n"
BAD = (
    "The dog near the cats,The dogs near the ship by the cats,is,are\n"  # three more tokens
    "The dog near the cats,,is,are\n"
    "The zyzzyva near the cats,The dogs near the cats,is,are\n"
)
HEADER = "clean,corrupt,answer,wrong\n"


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny", device="cpu")


@pytest.fixture
def mixed(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text(HEADER + GOOD + BAD + GOOD.replace("ship", "car"))
    return path


def test_every_row_is_looked_at_and_the_good_ones_are_measured(tiny, mixed):
    found = check_prompts(tiny, mixed)
    assert [problem.row for problem in found.problems] == [2, 3, 4]
    unequal, empty, unknown = (problem.problem for problem in found.problems)
    assert unequal.startswith("clean has 6 tokens and corrupt 9: nothing against ")
    assert "Take words of as many tokens" in unequal
    assert empty == "the column 'corrupt' is empty. Fill it, or leave the row out."
    assert unknown.startswith("clean: ")
    assert "zyzzyva" in unknown
    # Rows of unequal length can be read, and the model can be asked for them.
    assert found.pairs is not None
    assert len(found.pairs) == found.competence.n == 3
    text = str(found)
    assert text.splitlines()[0] == "mixed.csv: 5 rows, read by tiny"
    assert "Problems in 3 of 5 rows:" in text
    assert "answers of one token; measured by logit_diff" in text
    assert "The model puts the right answer above the wrong one on" in text


def test_a_file_that_is_no_table_of_pairs_is_refused_as_a_whole(tiny, tmp_path):
    for contents, told in (("clean,answer\na,b\n", "has no column corrupt, wrong"), (HEADER, "has no rows")):
        path = tmp_path / "table.csv"
        path.write_text(contents)
        with pytest.raises(PromptError, match=told):
            check_prompts(tiny, path)
    with pytest.raises(PromptError, match=r"is none of \.csv, \.tsv"):
        check_prompts(tiny, tmp_path / "table.txt")


def test_repeated_rows_and_named_positions_are_told(tiny, tmp_path):
    path = tmp_path / "places.csv"
    rows = [GOOD, GOOD, GOOD.replace("ship", "river")]
    path.write_text(
        HEADER.replace("\n", ",pos_NOUN\n") + "".join(row.replace("\n", ",dog\n") for row in rows)
    )
    found = check_prompts(tiny, path)
    assert [problem.row for problem in found.problems] == [2]
    assert found.problems[0].problem.startswith("the same prompts as in row 1. Leave one out")
    assert "named positions: NOUN (in 3 of 3 rows)" in str(found)


def test_the_command_exits_with_1_where_a_row_has_a_problem(mixed, tmp_path):
    result = CliRunner().invoke(app, ["check", str(mixed), "--model", "tiny", "--json"])
    assert result.exit_code == 1
    assert [problem["row"] for problem in json.loads(result.stdout)["problems"]] == [2, 3, 4]
    good = tmp_path / "good.csv"
    good.write_text(HEADER + GOOD + GOOD.replace("ship", "car"))
    result = CliRunner().invoke(app, ["check", str(good), "--model", "tiny"])
    assert result.exit_code == 0, result.output
    assert "No problems: clean and corrupt prompts line up in every row." in result.stdout
