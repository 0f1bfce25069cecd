"""Pages of runs that are shown again or compared, from their files alone."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app
from workbench.errors import OutputExists, WorkbenchError
from workbench.run_pages import report_difference, report_run


@pytest.fixture
def runs(tmp_path):
    """Two folders with a circuit, an array, a dataset and a table each, which differ."""
    whole = wb.reference_circuit("ioi")
    for name, circuit, shift in (("a", whole, 0.0), ("b", whole.restricted(writers=["input", "heads"]), 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        circuit.save(folder / "circuit.json")
        grid = xr.DataArray(np.arange(6.0).reshape(2, 3) + shift, dims=("layer", "head"), name="effect")
        wb.save(grid, folder / "effects.nc")
        wb.save(xr.Dataset({"faithfulness": ("size", [0.2, 0.9 + shift]), "n_edges": ("size", [5, 50])}), folder / "curve.nc")
        wb.save(xr.DataArray(np.zeros((2, 2, 2, 2)), dims=("a", "b", "c", "d"), name="deep"), folder / "deep.nc")
        wb.save(xr.Dataset({name: (("a", "b", "c"), np.zeros((2, 2, 2))) for name in "xy"}), folder / "wide.nc")
        pd.DataFrame({"edge": ["<b>x</b>"] * 70, "score": np.arange(70.0)}).to_parquet(folder / "edges.parquet")
    return tmp_path


def test_a_run_is_shown_again_without_its_model(runs):
    text = report_run(runs / "a", runs / "page.html").read_text()
    for heading in ("circuit.json", "effects.nc", "curve.nc", "deep.nc", "wide.nc", "edges.parquet"):
        assert f"<h2>{heading}</h2>" in text
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
    (tmp_path / "other" / "circuit.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"circuit\.json"):
        report_run(tmp_path / "other", tmp_path / "p.html")
    assert not (tmp_path / "p.html").exists()


def test_the_commands(runs, monkeypatch):
    monkeypatch.chdir(runs)
    for arguments, page in ((["report", "a"], "a/run.html"), (["diff", "a", "b"], "a-b.html")):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert result.output.split() == [page]
        assert (runs / page).is_file()
