"""Pages of runs that are shown again or compared, from their files alone."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import workbench as wb
from workbench.circuit.circuit import Circuit
from workbench.cli.app import app
from workbench.errors import OutputExists, WorkbenchError
from workbench.sites import Shape
from workbench.workflows.runs import report_difference, report_run


@pytest.fixture
def runs(tmp_path):
    """Two folders with a circuit, an array, a dataset and a table each, which differ."""
    whole = Circuit.full(Shape(2, 2, 2, 8, 4, 16, 50, 16))
    for name, circuit, shift in (("a", whole, 0.0), ("b", whole.restricted(writers=["input", "heads"]), 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        circuit.save(folder / "circuit.json")
        grid = xr.DataArray(np.arange(6.0).reshape(2, 3) + shift, dims=("layer", "head"), name="effect")
        wb.save(grid, folder / "effects.nc")
        wb.save(
            xr.Dataset({"faithfulness": ("size", [0.2, 0.9 + shift]), "n_edges": ("size", [5, 50])}),
            folder / "curve.nc",
        )
        wb.save(
            xr.DataArray(np.zeros((2, 2, 2, 2)), dims=("a", "b", "c", "d"), name="deep"), folder / "deep.nc"
        )
        wb.save(
            xr.Dataset({name: (("a", "b", "c"), np.zeros((2, 2, 2))) for name in "xy"}), folder / "wide.nc"
        )
        pd.DataFrame({"edge": ["<b>x</b>"] * 70, "score": np.arange(70.0)}).to_parquet(
            folder / "edges.parquet"
        )
    return tmp_path


def test_a_run_is_shown_again_without_its_model(runs):
    text = report_run(runs / "a", runs / "page.html").read_text()
    for heading in ("Circuit", "Effects", "Curve", "Deep", "Wide", "Edges"):
        assert f">{heading}</h2>" in text
    assert "File: effects.nc" in text
    assert '<section class="lead"' in text
    assert "The first 60 of 70 rows." in text
    assert "<b>x</b>" not in text
    assert "too many to draw" in text
    with pytest.raises(OutputExists):
        report_run(runs / "a", runs / "page.html")


def test_two_runs_are_compared_edge_by_edge_and_cell_by_cell(runs):
    text = report_difference(runs / "a", runs / "b", runs / "diff.html").read_text()
    assert "are in both (Jaccard of edges" in text
    assert "b minus a." in text
    assert "The same in every cell." in text, "deep.nc"
    (runs / "b" / "curve.nc").unlink()
    text = report_difference(runs / "a", runs / "b", runs / "diff.html", overwrite=True).read_text()
    assert "Only in one" in text


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(WorkbenchError, match="There is no folder"):
        report_run(tmp_path / "none", tmp_path / "p.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkbenchError, match="holds nothing to show"):
        report_run(tmp_path / "empty", tmp_path / "p.html")
    (tmp_path / "other").mkdir()
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other" / "x.parquet")
    with pytest.raises(WorkbenchError, match="have no file in common"):
        report_difference(runs / "a", tmp_path / "other", tmp_path / "p.html")
    (tmp_path / "other" / "x.parquet").write_bytes(b"")
    with pytest.raises(
        WorkbenchError, match=r"^Nothing in .*other' can be read. .*x\.parquet' cannot be read as a table: "
    ):
        report_run(tmp_path / "other", tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def folders(path, **pairs):
    """Two folders of results or tables, NAME=(one, other)."""
    for i, folder in enumerate("ab"):
        (path / folder).mkdir()
        for name, pair in pairs.items():
            if isinstance(pair[i], pd.DataFrame):
                pair[i].to_parquet(path / folder / f"{name}.parquet")
            else:
                wb.save(pair[i], path / folder / f"{name}.nc")
    return path / "a", path / "b", path / "diff.html"


def grid(values, dims=("layer", "head"), **coords):
    return xr.DataArray(np.asarray(values), dims=dims, coords=coords, name="effect")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (
            (np.ones((2, 2)), np.full((2, 2), np.nan)),
            "No cell is measured in both. 4 cells are measured in a alone, 0 in b alone.",
        ),
        ((np.full((2, 2), np.nan), np.full((2, 2), np.nan)), "No cell is measured in both."),
        (
            ([[1, np.nan], [1, 1]], [[1.0, 1], [1, 1]]),
            "The same in every cell that both have. 0 cells are measured in a alone, 1 in b alone.",
        ),
        ((np.full((2, 2), np.inf), np.full((2, 2), np.inf)), "The same in every cell."),
        ((np.ones((2, 2)), 2 * np.ones((2, 2))), "The largest difference is 1."),
        (
            (np.ones((2, 2)), grid(np.ones((2, 2)), ("layer", "pos"))),
            "The axes differ: layer (2), head (2) in a, layer (2), pos (2) in b.",
        ),
        (
            (np.ones((2, 2)), np.ones((2, 3))),
            "The axes differ: layer (2), head (2) in a, layer (2), head (3) in b.",
        ),
        ((grid([0, 1], ["x"], x=[0, 1]), grid([0, 1], ["x"], x=[1, 0])), "The largest difference is 1."),
        ((grid([0, 1], ["x"], x=[0, 1]), grid([1, 0], ["x"], x=[1, 0])), "The same in every cell."),
        ((grid([0, 1], ["example"]), grid([1, 0], ["example"])), "The largest difference is 1."),
        ((grid(["u", "v"], ["x"]), grid(["u", "w"], ["x"])), "Different in 1 of 2 cells."),
    ],
)
def test_the_same_is_said_only_of_what_is_the_same(pair, told, tmp_path):
    arrays = [value if isinstance(value, xr.DataArray) else grid(value) for value in pair]
    sets = [value.to_dataset(name="v") for value in arrays]
    text = report_difference(*folders(tmp_path, array=arrays, set=sets)).read_text()
    shown = text[text.index(">Array</h2>") :]
    assert told in shown
    assert f"<td>{told}</td>" in shown, "the same is said of the variable of a Dataset"
    assert ("The same in every cell." in shown) == (told == "The same in every cell.")


def test_tables_are_compared_row_by_row(tmp_path):
    table = pd.DataFrame({"x": [1, 2, 2], "y": ["a", "b", "b"]})
    pairs = {
        "order": (table, table.iloc[[2, 0, 1]].reset_index(drop=True)),
        "swapped": (table, table.assign(y=["b", "a", "b"])),
        "empty": (table, table.iloc[:0]),
        "void": (pd.DataFrame(), pd.DataFrame()),
        "columns": (table, table[["x"]]),
        "same": (table, table),
    }
    text = report_difference(*folders(tmp_path, **pairs)).read_text()
    for told in (
        "The same 3 rows in another order.",
        "1 rows are in both, 2 in a alone and 2 in b alone.",
        "0 rows are in both, 3 in a alone and 0 in b alone.",
        "The same 0 rows.",
        "The columns differ: x, y in a, x in b.",
        "The same 3 rows.",
    ):
        assert told in text, told


def test_rows_that_have_names_are_matched_by_them_and_not_by_their_numbers(tmp_path):
    scores = pd.DataFrame(
        {"edge": ["a->b", "b->c", "c->d"], "score": [1.0, 2.0, 3.0], "in circuit": [True, True, False]}
    )
    changed = scores.assign(score=[1.5, 2.0, 2.9]).iloc[[2, 0, 1]].reset_index(drop=True)
    fewer = changed.assign(**{"in circuit": [True, True, True]}).iloc[:2]
    text = report_difference(*folders(tmp_path, moved=(scores, changed), fewer=(scores, fewer))).read_text()
    for told in (
        "3 rows are in both, 0 in a alone, 0 in b alone.",
        "score: the largest difference is 0.5; the rank correlation of both is 1.000.",
        "in circuit: the same.",
        "2 rows are in both, 1 in a alone, 0 in b alone.",
        "in circuit: different in 1 of 2 rows.",
        "Rows are matched by edge",
    ):
        assert told in text, told


def test_a_file_that_cannot_be_shown_leaves_the_others(runs, tmp_path):
    (runs / "a" / "edges.parquet").write_bytes((runs / "a" / "edges.parquet").read_bytes()[:40])
    wb.save(xr.DataArray(3.25, name="loss"), runs / "a" / "loss.nc")
    text = report_run(runs / "a", runs / "page.html").read_text()
    assert "edges.parquet&#39; cannot be read as a table: " in text
    assert '<td class="num">3.25</td>' in text
    array = xr.DataArray([1.0, 2.0], dims="layer", name="effect")
    wb.save(array, runs / "a" / "kind.nc")
    wb.save(array.to_dataset(), runs / "b" / "kind.nc")
    Circuit.full(Shape(1, 1, 1, 8, 8, 16, 50, 16)).save(runs / "b" / "circuit.json", overwrite=True)
    text = report_difference(runs / "a", runs / "b", runs / "diff.html").read_text()
    assert "They cannot be compared. compare: the circuits are for different graphs." in text
    assert "edges.parquet&#39; cannot be read as a table: " in text
    assert "It holds a DataArray in a and a Dataset in b." in text
    assert "b minus a. The largest difference is 0.5." in text


def test_the_commands(runs, monkeypatch):
    monkeypatch.chdir(runs)
    for arguments, page in ((["report", "a"], "a/run.html"), (["diff", "a", "b"], "a-b.html")):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert result.output.split() == [page]
        assert (runs / page).is_file()
