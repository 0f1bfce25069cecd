"""`load_task` reads a file or a table of one's own, wherever a task's name would stand."""

import pandas as pd
import pytest

import workbench as wb
from workbench.errors import PromptError

ROWS = pd.DataFrame(
    {
        "clean": ["The dog near the cats", "The cats near the dog"],
        "corrupt": ["The dogs near the cats", "The cat near the dog"],
        "corrupt2": ["The cats near the dog", "The dogs near the cats"],
        "answer": ["is", "are"],
        "wrong": ["are", "is"],
    }
)


def test_a_path_and_a_table_are_read_like_a_task(tmp_path):
    model = wb.load_model("tiny", device="cpu")
    ROWS.to_csv(tmp_path / "mine.csv", index=False)
    for source in (ROWS, tmp_path / "mine.csv", str(tmp_path / "mine.csv")):
        pairs = wb.load_task(source, model)
        assert len(pairs) == 2
        assert list(pairs.counterfactuals) == ["corrupt", "corrupt2"]
        assert pairs.clean.ids == wb.PromptPairs.from_dataframe(model, ROWS).clean.ids
        assert len(wb.load_task(source, model, n=1)) == 1
        second = wb.load_task(source, model, variant="corrupt2")
        assert second.corrupt.ids == pairs.further["corrupt2"].ids
        for wrong, message in (
            ({"split": "heldout"}, "no split"),
            ({"seed": 1}, "no seed"),
            ({"n": 3}, "there are 2 pairs"),
        ):
            with pytest.raises(PromptError, match=message):
                wb.load_task(source, model, **wrong)
    assert len(wb.load_task("ioi", model)) == 64
