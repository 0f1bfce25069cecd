"""A sweep is the same however it is written, and what does not fit is refused by name."""

import json

import pytest
import yaml

from workbench.cli.sweep import spec_of
from workbench.errors import SweepError, UnknownName
from workbench.sweeps.jobs import JobInputs, plan
from workbench.sweeps.spec import PRESETS, SweepSpec, read_spec

FIELDS = {
    "preset": "head-ablation",
    "tasks": ["ioi", {"name": "agreement", "n": 4}],
    "n": 3,
    "values": ["zero", "constant:0.5"],
}


@pytest.fixture(scope="module")
def lab():
    return JobInputs("cpu")


def keys(spec, lab) -> list[str]:
    return [job.key for job in plan(spec, lab).jobs]


def test_python_yaml_and_json_give_the_same_jobs(tmp_path, lab):
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
    assert len({tuple(keys(spec, lab)) for spec in made}) == 1
    assert len(keys(made[0], lab)) == len(set(keys(made[0], lab))) == 2 * 2 * 32


def test_the_command_line_gives_the_same_jobs(tmp_path, lab):
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
    expected = keys(read_spec(fields), lab)
    assert keys(spec_of(None, options), lab) == expected
    assert keys(spec_of(tmp_path / "a.yaml", {"seeds": "0,1"}), lab) == expected


@pytest.mark.parametrize(
    "change",
    [{"n": 4}, {"values": ["mean"]}, {"seeds": [1]}, {"base": "corrupt"}, {"split": "heldout"}, {"metrics": ["prob_diff"]},
     {"checkpoints": [500]}, {"metrics": ["sweeps.bad_metrics:fair"]}],
    ids=str,
)  # fmt: skip
def test_whatever_changes_a_result_changes_the_key(change, lab):
    plain = {"preset": "head-ablation", "tasks": ["ioi"], "n": 3}
    assert not set(keys(read_spec(plain), lab)) & set(keys(read_spec({**plain, **change}), lab))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_jobs(preset, lab):
    spec = read_spec(
        {
            "preset": preset,
            "tasks": ["ioi"],
            "n": 2,
            **({"circuits": [__file__]} if "evaluation" in preset else {}),
        }
    )
    assert len(plan(spec, lab)) > 0


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {**FIELDS, "vales": ["zero"]},
            UnknownName,
            r"field='vales' is not known. Did you mean 'values'?",
        ),
        (
            {**FIELDS, "preset": "head-ablations"},
            UnknownName,
            r"no preset of sweeps 'head-ablations'. Did you mean 'head-ablation'",
        ),
        ({**FIELDS, "values": ["zro"]}, UnknownName, r"no value of sweeps 'zro'. Did you mean 'zero'"),
        (
            {"tasks": [{"nam": "ioi"}], "preset": "head-ablation"},
            UnknownName,
            "no field of a sweep's task 'nam'. Did you mean 'name'",
        ),
        ({"preset": "head-ablation"}, SweepError, "The sweep's tasks: it is missing."),
        ({**FIELDS, "n": "many"}, SweepError, "n: Input should be a valid integer.*not 'many'"),
        ({**FIELDS, "seeds": [1, 1]}, SweepError, "seeds has entries that are there twice"),
        ({"study": "paths", "tasks": ["ioi"]}, SweepError, "the study 'paths' needs senders"),
        (
            {**FIELDS, "preset": "path-sweep", "values": ["optimal"]},
            SweepError,
            "'optimal' is fitted to sites, which the study 'paths'",
        ),
        ([], SweepError, "A sweep is a mapping of fields"),
        ("nowhere.yaml", SweepError, "'nowhere.yaml' cannot be read: No such file or directory"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_refused(fields, error, message):
    with pytest.raises(error, match=message):
        read_spec(fields)


def test_a_spec_is_never_executed(tmp_path):
    (tmp_path / "a.yaml").write_text("tasks: !!python/object/apply:os.system ['touch gone']")
    with pytest.raises(SweepError, match="is no YAML"):
        read_spec(tmp_path / "a.yaml")
