"""A head that stands in for another is seen by ablating two at a time, and not by ablating one."""

import pytest

import workbench as wb


def test_pairs_show_the_backup_that_single_ablations_miss(tmp_path):
    planted = wb.planted("backup")
    spec = {"preset": "pairwise-ablation", "models": ["planted-backup"], "tasks": ["planted"], "n": 16}
    sweep = wb.run_sweep(spec, out=tmp_path / "a", progress=False, device="cpu")
    pair = {f"z[{planted.heads[role][1:]}]" for role in ("main", "backup")}
    single = sweep.rows[~sweep.rows["what"].str.contains("+", regex=False)]
    assert single["share"].abs().max() < 0.01  # alone, nothing matters
    found = sweep.synergy()
    strongest = found.loc[found["synergy"].abs().idxmax()]
    assert {strongest["site_a"], strongest["site_b"]} == pair
    assert strongest["synergy"] == pytest.approx(-float(single["m_base"].iloc[0]), rel=0.01)
    assert strongest["q"] < 0.05
    assert strongest["high"] < 0
    assert found.drop(strongest.name)["synergy"].abs().max() < 1e-3
    matrix = wb.plot(sweep)
    assert [label.get_text() for label in matrix.axes[0].get_yticklabels()] == [
        "a0.0",
        "a0.1",
        "a1.0",
        "a1.1",
        "a2.0",
        "a2.1",
    ]
