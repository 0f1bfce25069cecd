"""Tables of sweeps: worked by hand, against scipy, and from folders that are empty, torn or damaged."""

import math

import numpy as np
import pandas as pd
import pytest
from fake_sweeps import record, write_sweep
from scipy.stats import false_discovery_control

from workbench.errors import SweepError, UnknownName
from workbench.statistics import bootstrap, mean_interval
from workbench.sweeps.log import FLAGS
from workbench.sweeps.places import place_of
from workbench.sweeps.table import compare_sweeps, load_sweep


def heads(layers=2, n_heads=3, n=4, seed=0, **more):
    rng = np.random.default_rng(seed)
    return [
        record(f"z[{layer}.{head}]", rng.normal(-layer, 1, n).tolist(), n=n, seed=seed, **more)
        for layer in range(layers)
        for head in range(n_heads)
    ]


def test_a_row_by_hand(tmp_path):
    sweep = load_sweep(
        write_sweep(tmp_path / "s", [record("z[1.2]@END", [1.0, 2.0, 3.0], m_base=[4.0, 4.0, 4.0], n=3)])
    )
    assert repr(sweep).replace("\n ", "") == (
        f"Sweep({str(tmp_path / 's')!r}: 1 jobs: 1 done, 0 remaining; study effects, model tiny, task ioi, split train, seed 0, "
        "base clean, metric logit_diff, value zero)"
    )
    row = sweep.rows.iloc[0]
    assert [row[name] for name in ("kind", "layer", "head", "pos")] == ["z", 1, 2, "END"]
    assert pd.isna(row["neuron"])
    # The mean of 1, 2, 3 lies 1 / sqrt(3) from the truth; 2 of the 8 patterns of signs are as large.
    assert (row["n_examples"], row["mean"], row["p"], row["q"], row["share"]) == (3, 2.0, 0.25, 0.25, 0.5)
    assert row["se"] == pytest.approx(1 / math.sqrt(3))
    assert row["low"] == 1.0 and row["high"] == 3.0  # noqa: PT018
    assert list(sweep.rows.columns[:14]) == ["job", "status", *FLAGS]


def test_the_interval_of_means_is_that_of_the_bootstrap():
    values = np.random.default_rng(3).normal(size=(9, 5, 2))
    assert np.allclose(
        mean_interval(values, seed=4), bootstrap(values, lambda sample: sample.mean(0), seed=4)
    )
    values[2:5, 0, 0] = np.nan
    assert np.allclose(
        mean_interval(values, seed=4), bootstrap(values, lambda sample: np.nanmean(sample, 0), seed=4)
    )
    assert np.isnan(mean_interval(np.ones((1, 2)))).all()
    assert np.isnan(mean_interval(np.full((4, 1), np.nan))).all()


def test_families_are_corrected_one_by_one(tmp_path):
    records = heads(seed=0) + heads(seed=1) + heads(value="mean")
    rows = load_sweep(write_sweep(tmp_path / "s", records)).rows
    for _, family in rows.groupby(["seed", "value"]):
        assert np.allclose(family["q"], false_discovery_control(family["p"]))
    assert rows["q"].ge(rows["p"]).all()


def test_samples_of_different_sizes_do_not_mix(tmp_path):
    alone = load_sweep(write_sweep(tmp_path / "a", [record("z[0.0]", [1.0, 2.0, 5.0])])).rows
    mixed = load_sweep(
        write_sweep(tmp_path / "b", [record("z[0.1]", [1.0] * 9, n=9), record("z[0.0]", [1.0, 2.0, 5.0])])
    ).rows
    numbers = ["n_examples", "mean", "se", "low", "high", "p"]
    assert mixed[numbers].iloc[1].tolist() == alone[numbers].iloc[0].tolist()


@pytest.mark.parametrize(
    ("study", "what", "found"),
    [
        ("effects", "resid_pre[4]@3", {"kind": "resid_pre", "layer": 4, "pos": 3}),
        ("effects", "mlp_post[2:113]", {"kind": "mlp_post", "layer": 2, "neuron": 113}),
        ("pairs", "z[1.2]+z[3.2]", {"kind": "z", "head": 2}),
        ("steering", "resid_post[2]*1.5", {"kind": "resid_post", "layer": 2, "strength": 1.5}),
        ("paths", "a1.2->a3.7<v>@END", {"writer": "a1.2", "reader": "a3.7<v>", "pos": "END"}),
        ("paths", "input->a1.2->logits", {"writer": "input", "reader": "logits"}),
        ("methods", "eap-ig@200", {"method": "eap-ig", "n_edges": 200}),
        ("effects", "<script>alert(1)</script>", {}),
        ("steering", "nonsense*", {}),
    ],
)
def test_places(study, what, found):
    assert place_of(study, what) == found


def test_arrays_have_the_flags_that_vary_and_nan_where_nothing_was_measured(tmp_path):
    records = [
        *heads(value="zero"),
        *heads(value="mean")[1:],
        record("z[1.2]", status="failed", value="resample", error="E: x"),
    ]
    found = load_sweep(write_sweep(tmp_path / "s", records)).arrays()
    assert found["effect"].dims == ("value", "layer", "head", "example")
    assert found["mean"].sizes == {"value": 2, "layer": 2, "head": 3}
    assert found.attrs["model"] == "tiny"
    assert np.isnan(found["effect"].sel(value="mean", layer=0, head=0)).all()
    assert int(found["mean"].isnull().sum()) == 1
    assert found["effect"].sel(value="zero", layer=1, head=2).values.tolist() == records[5]["values"]


def test_arrays_of_mixed_kinds_are_over_what(tmp_path):
    records = [record("mlp_out[0]", [1.0]), record("attn_out[0]", [2.0, 3.0], model="tiny@1000")]
    found = load_sweep(write_sweep(tmp_path / "s", records)).arrays()
    assert found["effect"].dims == ("model", "what", "example")
    assert np.isnan(found["effect"].sel(model="tiny", what="mlp_out[0]")).values.tolist() == [False, True]


def test_means_are_over_seeds_and_draw_prompts(tmp_path):
    records = [
        record("z[0.0]", [1.0, 3.0], seed=0),
        record("z[0.0]", [5.0, 7.0], seed=1),
        record("z[0.1]", [0.0, 2.0], seed=0),
    ]
    sweep = load_sweep(write_sweep(tmp_path / "s", records))
    found = sweep.means()
    assert found[
        ["what", "layer", "head", "n_jobs", "n_seeds", "n_examples", "mean"]
    ].to_numpy().tolist() == [
        ["z[0.0]", 0, 0, 2, 2, 4, 4.0],
        ["z[0.1]", 0, 1, 1, 1, 2, 1.0],
    ]
    by_layer = sweep.means(["layer"]).iloc[0]
    # Both heads were measured on the same two prompts of seed 0: (1 + 0) / 2 and (3 + 2) / 2.
    assert (by_layer["n_jobs"], by_layer["n_examples"], by_layer["mean"]) == (3, 4, (0.5 + 2.5 + 5 + 7) / 4)
    with pytest.raises(UnknownName, match=r"by='layers' is not known. Did you mean 'layer'"):
        sweep.means(["layers"])
    short = sweep.summary()
    assert list(short) == ["what", "n_seeds", "n_examples", "mean", "low", "high", "q"]
    assert short["mean"].tolist() == [4.0, 1.0]
    assert "All with task ioi, value zero, model tiny, split train, " in short.attrs["caption"]


def backup():
    """a1.0 moves the answer, a2.0 takes over when it is gone: alone -0.5 and 0, together -2."""
    return [
        record("z[1.0]", [-0.5, -0.5, -0.6, -0.4], study="pairs"),
        record("z[2.0]", [0.0, 0.0, 0.1, -0.1], study="pairs"),
        record("z[1.0]+z[2.0]", [-2.0, -2.0, -2.2, -1.8], study="pairs"),
        record("z[1.0]+z[2.1]", [-0.5] * 4, study="pairs"),
    ]


def test_synergy_of_a_backup_pair_by_hand(tmp_path):
    found = load_sweep(write_sweep(tmp_path / "s", backup())).synergy()
    first, second = found.iloc[0], found.iloc[1]
    assert first[["site_a", "site_b"]].tolist() == ["z[1.0]", "z[2.0]"]
    assert first[["effect_a", "effect_b", "effect_both", "synergy"]].tolist() == pytest.approx(
        [-0.5, 0.0, -2.0, -1.5]
    )
    # Example by example: -1.5, -1.5, -1.7, -1.3; all of one sign, so 2 of 16 patterns are as large.
    assert (first["p"], first["q"]) == (2 / 16, 2 / 16)
    assert -1.7 <= first["low"] < -1.5 < first["high"] <= -1.3
    assert np.isnan(second["synergy"]) and np.isnan(second["effect_b"]) and second["effect_a"] == -0.5  # noqa: PT018
    with pytest.raises(SweepError, match=r"There are no pairs: synergy needs a sweep of study 'pairs'"):
        load_sweep(write_sweep(tmp_path / "t", heads())).synergy()


def test_steps_of_a_cumulative_job(tmp_path):
    extra = {"order": ["z[1.0]", "z[0.2]"], "mean": [-1.0, -3.0], "low": [-1.5, -4.0], "high": [-0.5, -2.0]}
    records = [record("z", [-2.0, -4.0], study="cumulative", extra=extra, seed=seed) for seed in (0, 1)]
    sweep = load_sweep(
        write_sweep(tmp_path / "s", [*records, record("z", study="cumulative", status="failed", seed=2)])
    )
    shown = sweep.rows[["step", "added", "layer", "head", "mean", "low", "high"]]
    assert shown.iloc[:2].to_numpy().tolist() == [
        [1, "z[1.0]", 1, 0, -1, -1.5, -0.5],
        [2, "z[0.2]", 0, 2, -3, -4, -2],
    ]
    assert sweep.rows["p"].isna().tolist() == [True, False, True, False, True]
    assert len(sweep.rows) == 5
    assert sweep.arrays()["mean"].sizes == {"seed": 2, "step": 2}
    assert sweep.means()["mean"].tolist() == [-1, -3]


def test_circuits_and_their_stability(tmp_path):
    edges = [["a", "b", "c"], ["b", "c", "d"], ["b"]]
    records = [
        record("eap@3", study="stability", seed=i, extra={"edges": found, "faithfulness": 0.5})
        for i, found in enumerate(edges)
    ]
    sweep = load_sweep(write_sweep(tmp_path / "s", records))
    found = sweep.stability().iloc[0]
    assert found["jaccard"] == pytest.approx((2 / 4 + 1 / 3 + 1 / 3) / 3)
    assert found[["least", "most"]].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert found[["seeds", "edges_least", "edges_most", "faithfulness", "method"]].tolist() == [
        3,
        1,
        3,
        0.5,
        "eap",
    ]
    assert sweep.rows["mean"].tolist() == [0.5] * 3
    with pytest.raises(SweepError, match=r"There are no circuits"):
        load_sweep(write_sweep(tmp_path / "t", heads())).stability()


def test_the_difference_of_two_sweeps_is_paired_where_the_examples_agree(tmp_path):
    a = write_sweep(tmp_path / "a", [record("z[0.0]", [1.0, 2.0, 3.0]), record("z[0.1]", [0.0] * 3)])
    b = write_sweep(
        tmp_path / "b",
        [record("z[0.0]", [2.0, 3.0, 4.0], model="tiny@1000"), record("z[9.9]", [0.0], model="tiny@1000")],
    )
    found = compare_sweeps(a, b)
    assert found[["what", "a", "b", "difference", "low", "high", "p"]].to_numpy().tolist() == [
        ["z[0.0]", 2, 3, 1, 1, 1, 0.25]
    ]
    assert found.attrs["apart"] == {"model": ("tiny", "tiny@1000")}
    other = compare_sweeps(a, write_sweep(tmp_path / "c", [record("z[0.0]", [2.0, 3.0, 4.0], seed=1)]))
    assert other["difference"].tolist() == [1]
    assert np.isnan(other["low"]).all()
    with pytest.raises(SweepError) as error:
        compare_sweeps(load_sweep(a), write_sweep(tmp_path / "d", [record("mlp_out[0]", [1.0])]))
    assert str(error.value) == (
        "The two sweeps have no job in common. what: z[0.0], z[0.1] in the first, mlp_out[0] in the second. Compare sweeps that share what they edit."
    )


def test_a_torn_last_line_is_ignored_and_a_damaged_one_in_the_middle_named(tmp_path):
    records = heads()
    torn = load_sweep(write_sweep(tmp_path / "s", records, jobs=7, tail='{"job": "0123", "sta'))
    assert (len(torn.rows), torn.status().remaining) == (6, 1)
    path = write_sweep(tmp_path / "t", records) / "jobs.jsonl"
    lines = path.read_text().splitlines()
    for damage in ('{"job": "01', "[]", '{"job": "a", "status": "well"}', "\x00\x00", ""):
        path.write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
        with pytest.raises(
            SweepError, match=f"^Line 3 of '{path}' is damaged: .* Delete that line; `workbench sweep resume`"
        ):
            load_sweep(path.parent)
    path.write_bytes(path.read_bytes() + '{"job": "é'.encode()[:-1])
    with pytest.raises(SweepError, match=r"Line 3"):
        load_sweep(path.parent)


def test_folders_that_are_no_sweep(tmp_path):
    with pytest.raises(SweepError, match=r"There is no folder '.*nowhere'. Give the folder of a sweep"):
        load_sweep(tmp_path / "nowhere")
    with pytest.raises(
        SweepError,
        match=r"is not the folder of a sweep: it has no spec.json. It holds: nothing. Start one with",
    ):
        load_sweep(tmp_path)
    for text, why in (("{", "cannot be read: Expecting"), ('{"spec": 3}', "it has no object 'spec'")):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises(SweepError, match=why):
            load_sweep(tmp_path)


def test_a_sweep_without_a_finished_job_says_so(tmp_path):
    empty = load_sweep(write_sweep(tmp_path / "s", [], jobs=9))
    (tmp_path / "s" / "jobs.jsonl").unlink()
    assert str(load_sweep(tmp_path / "s").status()) == "9 jobs: none has ended, 9 remaining"
    assert list(empty.rows.columns[:3]) == ["job", "status", "study"]
    assert "q" in empty.rows
    for ask in (empty.arrays, empty.summary):
        with pytest.raises(
            SweepError, match=r"No job of '.*' was measured \(9 jobs: none has ended, 9 remaining\)"
        ):
            ask()


def test_failures_are_told_and_nan_is_never_0(tmp_path):
    bad = [
        record("z[0.0]", status="failed", error="ValueError: no"),
        record("z[0.1]", [None, 2.0], status="nan"),
        record("z[0.2]", status="memory", error="MemoryError"),
        record("z[0.3]", [None, None], status="nan"),
    ]
    sweep = load_sweep(write_sweep(tmp_path / "s", bad, jobs=5))
    status = sweep.status()
    assert (status.ok, status.remaining, status.counts) == (
        False,
        1,
        {"done": 0, "nan": 2, "failed": 1, "memory": 1},
    )
    assert status.failed["error"].tolist()[0] == "ValueError: no"
    assert status.to_dict()["failures"][1]["what"] == "z[0.1]"
    rows = sweep.rows
    assert np.isnan(rows["mean"]).tolist() == [True, False, True, True]
    assert rows["n_examples"].tolist() == [0, 1, 0, 0]
    assert rows["mean"][1] == 2.0
    assert np.isnan(rows["q"]).tolist() == [True, False, True, True]


def test_of_several_tries_the_measured_one_counts(tmp_path):
    tries = [
        record("z[0.0]", status="failed", error="E: 1"),
        record("z[0.0]", [1.0]),
        record("z[0.0]", status="failed", error="E: 3"),
    ]
    assert load_sweep(write_sweep(tmp_path / "s", tries, jobs=1)).status().counts["done"] == 1
    again = load_sweep(write_sweep(tmp_path / "t", [tries[0], tries[2]], jobs=1))
    assert again.status().failed["error"].tolist() == ["E: 3"]


def test_lines_of_earlier_versions_have_the_value_by_its_one_name(tmp_path):
    records = [record("z[0.0]", [1.0], value="other"), record("z[0.1]", [1.0], value="other", base="corrupt")]
    sweep = load_sweep(write_sweep(tmp_path / "s", records))
    assert sweep.rows["value"].tolist() == ["corrupt", "clean"]
    assert len(sweep.select(value="other").rows) == 2
    assert len(sweep.select(value="corrupt").rows) == 1


def test_select(tmp_path):
    sweep = load_sweep(write_sweep(tmp_path / "s", heads(seed=0) + heads(seed=1) + heads(seed=2)))
    assert len(sweep.select(seed=[0, 2], what="z[0.0]").rows) == 2
    with pytest.raises(SweepError, match=r"No job of '.*' has seed=7. There are: 0, 1, 2"):
        sweep.select(seed=7)
    with pytest.raises(UnknownName, match=r"flag='seeds' is not known. Did you mean 'seed'"):
        sweep.select(seeds=1)
