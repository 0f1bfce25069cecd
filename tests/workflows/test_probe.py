"""`workbench probe`: what tiny encodes of number, gender, indirect object and country, where, and its page."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import PromptError, UnknownName
from workbench.probes.labels import Labels
from workbench.tasks.concepts import values_of
from workbench.workflows.probe import best_table, neuron_table, probe


@functools.cache
def tiny():
    return wb.load_model("tiny")


def command(line: str, *arguments: object) -> tuple[int, str]:
    """The exit code and what is printed, errors included."""
    outcome = CliRunner().invoke(app, [*line.split(), *map(str, arguments)])
    return outcome.exit_code, f"{outcome.output}{outcome.exception or ''}"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Prompts of agreement on disk."""
    folder = tmp_path_factory.mktemp("stores") / "agreement"
    pairs = wb.load_task("agreement", tiny(), n=120)
    return wb.capture(tiny(), pairs.clean, sites=["resid_post", "mlp_post"], path=folder, progress=False)


@pytest.mark.parametrize(
    ("task", "concept", "position", "n", "n_classes"),
    [
        ("agreement", "number", "SUBJECT", 150, 2),
        ("pronoun", "gender", "NAME", 240, 2),
        ("capitals", "country", "COUNTRY", 360, 24),
    ],
)
def test_tiny_encodes_the_concept_where_it_is_named_and_where_it_is_needed(
    task: str, concept: str, position: str, n: int, n_classes: int
):
    prompts = wb.load_task(task, tiny(), n=n).clean
    store = wb.capture(tiny(), prompts, sites=["resid_post", "mlp_post"], progress=False)
    labels = Labels.of_concepts(store, [concept], pos=[position, "END"])
    assert len(labels.concept(concept).classes) == n_classes
    probed = probe(
        store,
        labels,
        k=[16],
        pos=[position, "END"],
        draws=1,
        controls=["shuffle"],
        resampled=50,
        sites=["resid_post"],
    )
    table = probed.probes.results.isel(k=0, selector=0, concept=0)
    accuracy, shuffled = (table["accuracy"].sel(control=name).max("layer") for name in ("none", "shuffle-0"))
    assert (accuracy > 0.9).all()
    assert (accuracy > shuffled + 0.3).all()
    assert float(table["accuracy_low"].sel(control="none").max()) > float(shuffled.max())
    neurons = neuron_table(probed.neurons)
    assert float(neurons["roc_auc"].max()) > 0.85
    assert neurons["neuron"].str.match(r"mlp_post\[\d:\d+\]@\w+").all()


def test_the_indirect_object_can_be_read_at_the_end():
    prompts = wb.load_task("ioi", tiny(), n=400).clean
    store = wb.capture(tiny(), prompts, sites=["resid_post"], progress=False)
    labels = Labels.of_concepts(store, ["indirect-object"], pos="END")
    probes = wb.fit_probes(store, labels, k=[32], layers=[0, 3], controls=["shuffle"], draws=1, resampled=0)
    accuracy = probes.results["accuracy"].squeeze()
    assert float(accuracy.sel(layer=3, control="none")) > 0.8
    assert float(accuracy.sel(layer=0, control="none")) < 0.3
    assert float(accuracy.sel(layer=3, control="shuffle-0")) < 0.2


def test_the_command_writes_tables_and_a_page(store, tmp_path):
    line = "probe --concepts number --at END --k 1,4 --draws 1 --baselines mass-mean --out"
    code, text = command(line, tmp_path / "out", store.path)
    assert code == 0, text
    assert text.splitlines()[-1].endswith("probes.html")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"probes.nc", "neurons.nc", "probes.html"}
    table = wb.load(tmp_path / "out" / "probes.nc")
    assert table["accuracy"].dims == ("kind", "layer", "pos", "concept", "k", "selector", "control")
    page = (tmp_path / "out" / "probes.html").read_text()
    assert "By layer: resid_post, END, welch" in page
    assert "shuffle" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    code, text = command("probe --concepts number --out", tmp_path / "out", store.path)
    assert code != 0
    assert "holds another run" in text


def test_labels_of_a_file_may_have_hostile_names(store, tmp_path):
    hostile = "<script>alert(1)</script>"
    rows = [
        {"prompt": i, "pos": "END", hostile: i % 2 == 0, "score": float(i % 7)} for i in range(len(store))
    ]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = "probe --k 1 --sites resid_post --controls none --layers 1 --labels"
    code, text = command(line, tmp_path / "labels.jsonl", "--out", tmp_path / "out", store.path)
    assert code == 0, text
    assert hostile not in (tmp_path / "out" / "probes.html").read_text()
    assert "r2" in text


REFUSED = {
    "": "Give --labels, a .csv or .jsonl file, or --concepts",
    "--labels none.csv": "There is no file 'none.csv'",
    "--labels labels.txt": "labels are read from .csv and .jsonl files",
    "--concepts tense": "concept='tense' is not known",
    "--concepts gender": "The concept 'gender' is read at NAME, which these prompts do not name",
    "--concepts number --k one": "--k 'one': integers with commas are needed",
    "--concepts number --selectors best": "selectors='best' is not known",
    "--concepts number --layers 9": "resid_post",
}


def test_what_cannot_be_probed_is_refused_and_leaves_nothing(store, tmp_path):
    for options, message in REFUSED.items():
        code, text = command(f"probe {options}", store.path, "--out", tmp_path / "out")
        assert code != 0, options
        assert message in text, options
        assert not (tmp_path / "out").exists(), options


def test_concepts_of_words():
    prompts = wb.Prompts.of(
        [[1, 2], [3, 2]], strings=[[" dogs", "x"], ["wug", "x"]], positions=[{"SUBJECT": 0}, {"SUBJECT": 0}]
    )
    with pytest.raises(
        PromptError, match="Prompt 1 has 'wug' at SUBJECT, of which the concept 'number' knows nothing"
    ):
        values_of(prompts, "number")
    assert values_of(prompts, "SUBJECT") == ["dogs", "wug"]
    with pytest.raises(UnknownName, match="concept='NAME' is not known"):
        values_of(prompts, "NAME")


def test_the_best_site_is_the_one_with_the_highest_score(store):
    labels = Labels.of_concepts(store, ["number"], pos="SUBJECT")
    probes = wb.fit_probes(store, labels, k=[1, 2], draws=2, resampled=0)
    table = best_table(probes)
    rows = [["resid_post", 1], ["resid_post", 2], ["mlp_post", 1], ["mlp_post", 2]]
    assert table[["kind", "k"]].values.tolist() == rows
    for row in table.to_dict("records"):
        cells = probes.results["accuracy"].sel(
            kind=row["kind"], k=row["k"], concept="number", selector="welch"
        )
        assert row["value"] == round(float(cells.sel(control="none").max()), 3)
        assert row["interval"] == "[no interval]"
        shuffled = cells.sel(layer=int(row["layer"]))[cells["control_kind"].values == "shuffle"]
        assert row["shuffle"] == round(float(shuffled.mean()), 3)
    assert np.isfinite(table["value"]).all()
    assert isinstance(store.path, str | Path)
