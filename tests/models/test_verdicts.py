"""Verdicts on disk: what was right is not tried again, and nothing else is taken from there."""

import json
import types
from typing import Any

import pytest
import torch
from families import build, make_pairs

import workbench as wb
from workbench.cache import cache_folder
from workbench.checksums import signed
from workbench.engine import circuit_check, select
from workbench.errors import ModelError
from workbench.models import verdicts
from workbench.models.verdicts import FOLDER, is_right, keep_right

CHECK = "a check"


def files() -> list[Any]:
    return sorted((cache_folder() / FOLDER).glob("*"))


def used(model: Any) -> None:
    """The fast engine and circuits, with the checks that come first."""
    pairs = make_pairs((5,))
    circuit = wb.Circuit.full(model)
    wb.evaluate(circuit, model, pairs, value=wb.zero(), checks=(), progress=False)


@pytest.fixture
def checks(monkeypatch):
    """The names of the checks that were made, in order; a new process is one with empty sets."""
    made: list[str] = []
    compare, circuits = select._disagreement, circuit_check._Check.of

    def counted(name, function):
        return lambda *given: made.append(name) or function(*given)

    monkeypatch.setattr(select, "_disagreement", counted("engines", compare))
    monkeypatch.setattr(circuit_check._Check, "of", counted("circuits", circuits))
    monkeypatch.setattr(circuit_check, "_found_right", set())
    return made


def test_the_second_process_checks_nothing(checks, monkeypatch):
    used(build("gpt2"))
    assert checks == ["engines", "circuits"]
    assert len(files()) == 1
    monkeypatch.setattr(circuit_check, "_found_right", set())
    used(build("gpt2"))
    assert checks == ["engines", "circuits"]
    # Another precision of the same weights is another model to the engines.
    used(build("gpt2", dtype=torch.float64))
    assert checks == ["engines", "circuits"] * 2


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "unsigned", "renamed", "no object", "empty", "nested", "folder"]
)
def test_a_damaged_verdict_is_none_and_is_written_anew(damage):
    model = build("gpt2")
    keep_right(model, CHECK)
    assert is_right(model, CHECK)
    (path,) = files()
    text = path.read_text()
    written = json.loads(text)
    others = signed({**written, "model": {**written["model"], "fingerprint": "another"}})
    unsigned = {name: value for name, value in written.items() if name != "checksum"}
    damaged = {
        "cut": text[: len(text) // 2],
        "changed": text.replace(CHECK, "b check"),
        "unsigned": json.dumps(unsigned),
        "renamed": json.dumps(others),
        "no object": "[]",
        "empty": "",
        "nested": "[" * 100_000,
    }
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_text(damaged[damage])
    assert not is_right(model, CHECK)
    assert not is_right(model, "b check")
    keep_right(model, CHECK)
    assert is_right(model, CHECK) == (damage != "folder")


def test_whatever_may_change_the_verdict_is_a_reason_to_check_again(monkeypatch):
    model = build("gpt2")
    keep_right(model, CHECK)
    keep_right(model, "another check")
    assert is_right(model, CHECK)
    assert is_right(build("gpt2"), CHECK)
    assert not is_right(build("gpt2", seed=1), CHECK)
    assert not is_right(build("gpt2", dtype=torch.float64), CHECK)
    for name, other in (("_package_hash", "other code"), ("versions", {"version_torch": "1.0"})):
        with monkeypatch.context() as patch:
            patch.setattr(verdicts, name, lambda other=other: other)
            assert not is_right(model, CHECK)
    attention = model.blocks[0].attn.original_component
    with monkeypatch.context() as patch:
        patch.setattr(attention, "forward", types.MethodType(lambda self, *given: given, attention))
        assert not is_right(model, CHECK)
    with monkeypatch.context() as patch:
        patch.setattr(type(attention), "forward", lambda self, *given: given)
        assert not is_right(model, CHECK)
    hook = attention.register_forward_hook(lambda module, given, result: None)
    assert not is_right(model, CHECK)
    hook.remove()
    assert is_right(model, CHECK)


def test_without_a_cache_that_can_be_written_everything_works(checks, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    used(build("gpt2"))
    monkeypatch.setattr(circuit_check, "_found_right", set())
    used(build("gpt2"))
    assert checks == ["engines", "circuits"] * 2

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(verdicts, "cache_folder", homeless)
    keep_right(build("gpt2"), CHECK)
    assert not is_right(build("gpt2"), CHECK)
    assert (tmp_path / "file").read_text() == "no folder"


def test_only_right_is_kept(monkeypatch):
    monkeypatch.setattr(select, "_disagreement", lambda *_: "They disagree.")
    monkeypatch.setattr(circuit_check, "_found_right", set())
    monkeypatch.setattr(circuit_check, "_TOLERANCE", -1.0)
    for _ in range(2):
        with (
            pytest.warns(UserWarning, match="They disagree"),
            pytest.raises(ModelError, match="not supported"),
        ):
            used(build("llama"))
    kept = {name for path in files() for name in json.loads(path.read_text())["right"]}
    assert not any(name.startswith(("the llama family", "circuits")) for name in kept)


def test_the_newest_files_are_kept(monkeypatch):
    monkeypatch.setattr(verdicts, "MOST_FILES", 2)
    models = [build("gpt2", seed=seed) for seed in range(3)]
    for model in models:
        keep_right(model, CHECK)
    assert len(files()) == 2
    assert is_right(models[-1], CHECK)
