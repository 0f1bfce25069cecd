"""A sweep is the same however it is written, and what does not fit is refused by name."""

import json
import re

import pytest
import yaml

from workbench.cli.sweep import spec_of
from workbench.errors import SweepError, UnknownName
from workbench.sweeps.inputs import JobInputs
from workbench.sweeps.jobs import plan
from workbench.sweeps.spec import PRESETS, SweepSpec, read_spec

FIELDS = {
    "preset": "head-ablation",
    "tasks": ["ioi", {"name": "agreement", "n": 4}],
    "n": 3,
    "values": ["zero", "constant:0.5"],
}


@pytest.fixture(scope="module")
def inputs():
    return JobInputs("cpu")


def keys(spec, inputs) -> list[str]:
    return [job.key for job in plan(spec, inputs).jobs]


def test_python_yaml_and_json_give_the_same_jobs(tmp_path, inputs):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(FIELDS))
    (tmp_path / "a.json").write_text(json.dumps(FIELDS))
    written = SweepSpec(
        study="effects",
        sites=["z"],
        tasks=[{"name": "ioi"}, {"name": "agreement", "n": 4}],
        n=3,
        values=["zero", "constant:0.5"],
    )
    made = [
        read_spec(FIELDS),
        read_spec(tmp_path / "a.yaml"),
        read_spec(str(tmp_path / "a.json")),
        read_spec(written),
        written,
    ]
    assert all(spec == made[0] for spec in made)
    assert len({tuple(keys(spec, inputs)) for spec in made}) == 1
    assert len(keys(made[0], inputs)) == len(set(keys(made[0], inputs))) == 2 * 2 * 32


def test_the_command_line_gives_the_same_jobs(tmp_path, inputs):
    fields = {
        "preset": "head-ablation",
        "tasks": ["ioi"],
        "n": 3,
        "values": ["zero", "constant:0.5"],
        "seeds": [0, 1],
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**fields, "seeds": [5]}))
    options = {
        "preset": "head-ablation",
        "tasks": "ioi",
        "n": 3,
        "values": "zero,constant:0.5",
        "seeds": "0,1",
    }
    expected = keys(read_spec(fields), inputs)
    assert keys(spec_of(None, options), inputs) == expected
    assert keys(spec_of(tmp_path / "a.yaml", {"seeds": "0,1"}), inputs) == expected


CHANGES = [
    {"n": 4}, {"values": ["mean"]}, {"seeds": [1]}, {"base": "corrupt"}, {"split": "heldout"}, {"metrics": ["prob_diff"]},
    {"checkpoints": [500]}, {"metrics": ["sweeps.bad_metrics:fair"]},
]  # fmt: skip


def test_whatever_changes_a_result_changes_the_key(inputs):
    plain = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3}
    plain_keys = set(keys(read_spec(plain), inputs))
    for change in CHANGES:
        assert not plain_keys & set(keys(read_spec({**plain, **change}), inputs)), change


def test_every_preset_has_jobs(inputs):
    for preset in PRESETS:
        circuits = {"circuits": [__file__]} if preset == "circuit-evaluation" else {}
        spec = read_spec({"preset": preset, "tasks": ["ioi"], "n": 2} | circuits)
        assert len(plan(spec, inputs)) > 0, preset


REFUSED = [
    ({**FIELDS, "vales": ["zero"]}, UnknownName, r"field='vales' is not known. Did you mean 'values'"),
    ({**FIELDS, "preset": "head-ablations"}, UnknownName, r"preset='head-ablations' is not known. Did you mean 'head-ablation'"),
    ({**FIELDS, "preset": []}, UnknownName, r"preset=\[\] is not known"),
    ({**FIELDS, "values": ["zro"]}, UnknownName, r"values='zro' is not known. Did you mean 'zero'"),
    ({"tasks": [{"nam": "ioi"}], "preset": "head-ablation"}, UnknownName,
     "field of a task='nam' is not known. Did you mean 'name'"),
    ({"preset": "head-ablation"}, SweepError, "The sweep's tasks: it is missing."),
    ({**FIELDS, "preset": None}, SweepError, "study: it is missing"),
    ({**FIELDS, "n": "many"}, SweepError, "n: Input should be a valid integer.*not 'many'"),
    ({**FIELDS, "seeds": [1, 1]}, SweepError, "seeds has an entry twice"),
    ({**FIELDS, "values": ["other", "corrupt"]}, SweepError, "values has an entry twice"),
    ({**FIELDS, "values": ["clean"]}, SweepError, r"values='clean' is the run that is edited \(base='clean'\)"),
    ({**FIELDS, "values": ["constant:nan"]}, SweepError, "The sweep's values: values='constant:nan': after the colon comes"),
    ({**FIELDS, "values": ["scale:inf"]}, SweepError, "The sweep's values: values='scale:inf': after the colon comes"),
    ({**FIELDS, "sites": ["z[1.1]", []]}, SweepError, "The sweep's sites.1"),
    ({**FIELDS, "seeds": [-1]}, SweepError, "seeds.0: Input should be greater than or equal to 0"),
    ({**FIELDS, "seeds": [2**70]}, SweepError, "seeds.0: Input should be less than"),
    ({"preset": "steering", "tasks": ["ioi"], "strengths": [1.0, float("nan")]}, SweepError,
     "strengths.1: Input should be a finite number, not 'nan'"),
    ({"preset": "method-comparison", "tasks": ["ioi"], "n_edges": [-3]}, SweepError,
     "n_edges.0: Input should be greater than or equal to 0"),
    ({"preset": "method-comparison", "tasks": ["ioi"], "base": "corrupt"}, SweepError,
     "the study 'methods' runs clean prompts; leave out base"),
    ({"study": "paths", "tasks": ["ioi"]}, SweepError, "the study 'paths' needs senders"),
    ({**FIELDS, "preset": "path-sweep", "values": ["optimal"]}, SweepError,
     "'optimal' is fitted to sites, and the study 'paths' has none; it goes with the studies effects, pairs, cumulative"),
    ([], SweepError, "A sweep is a mapping of fields"),
    ("nowhere.yaml", SweepError, "'nowhere.yaml' cannot be read: No such file or directory"),
]  # fmt: skip


def test_what_does_not_fit_is_refused_by_name():
    for fields, error, message in REFUSED:
        with pytest.raises(error) as raised:
            read_spec(fields)
        assert re.search(message, str(raised.value)), f"{fields}: {raised.value}"


def test_the_other_run_has_one_name_and_its_jobs_the_old_keys(inputs):
    """Every spelling of the run that is not edited is one value; keys hold the spelling of earlier versions."""
    plain = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3}
    for base, name in (("clean", "corrupt"), ("corrupt", "clean")):
        specs = [
            read_spec({**plain, "base": base, "values": [value]}) for value in ("other", "from_store", name)
        ]
        assert {spec.values for spec in specs} == {(name,)}
        assert len({tuple(keys(spec, inputs)) for spec in specs}) == 1
    assert read_spec({"preset": "position-sweep", "tasks": ["ioi"], "base": "corrupt"}).values == ("clean",)


def test_a_spec_is_never_executed(tmp_path):
    (tmp_path / "a.yaml").write_text("tasks: !!python/object/apply:os.system ['touch gone']")
    with pytest.raises(SweepError, match="is not YAML"):
        read_spec(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["1: 2", "~: 2", "1.5: 2", "true: 1", "2020-01-01: 1"])
def test_fields_whose_names_are_no_text_are_refused_by_name(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"preset: head-ablation\ntasks: [ioi]\n{text}\n")
    with pytest.raises(UnknownName, match=r"^field=.* is not known\. Choices: base, bos, checkpoints"):
        read_spec(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "fields", ["n: true", "seeds: [true]", "n_edges: [false]", "checkpoints: [true]", "strengths: [true]"]
)
def test_truth_values_are_no_numbers(tmp_path, fields):
    (tmp_path / "a.yaml").write_text(f"preset: steering\ntasks: [ioi]\n{fields}\n")
    with pytest.raises(SweepError, match=r"The sweep's \w+.*: (True|False) is not a number"):
        read_spec(tmp_path / "a.yaml")
