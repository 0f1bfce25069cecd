"""Bits that rot: a file whose byte was changed is refused, or says what it said. What has no checksum loads as before."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from fake_sweeps import record
from random_graphs import FULL, random_circuit
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import workbench as wb
from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.cli.app import app
from workbench.errors import CircuitError, SweepError, WorkbenchError
from workbench.lenses.tuned_lens import TunedLens
from workbench.sweeps.folder import SPEC, begin, read_header
from workbench.sweeps.log import LOG, Log, read_log
from workbench.sweeps.spec import read_spec

CIRCUIT = random_circuit(Graph(FULL), seed=3, share=0.4, scored=True)
RESULT = results.effect_array(
    np.linspace(-1, 1, 60).reshape(3, 20), ("layer", "pos"), {"pos": [f"é{i}\x00" for i in range(20)]}, name="x",
    attrs={"metric": "logit_diff", "seed": 3},
)  # fmt: skip
HELDOUT = xr.Dataset({"gain": ("layer", [0.5, 0.25])}, coords={"layer": [0, 1]}, attrs={"n_rows": 7})
LENS = TunedLens((0, 1), torch.randn(2, 5, 5), torch.randn(2, 5), "resid_post", "abc", "tiny", HELDOUT)


def circuit_file(path: Path) -> Path:
    return CIRCUIT.save(path / "c.json")


def circuit_content(path: Path) -> Any:
    circuit = Circuit.load(path)
    return circuit.graph, circuit.to_frame().to_dict(), circuit.n_requested, circuit.attrs, circuit.prompt_ids


def lens_content(path: Path) -> Any:
    lens = TunedLens.load(path)
    heldout = {name: np.asarray(values).tolist() for name, values in lens.heldout.items()}
    facts = lens.layers, lens.kind, lens.model, lens.model_name, heldout, dict(lens.heldout.attrs)
    return facts, lens.weight.tolist(), lens.bias.tolist()


def log_file(path: Path) -> Path:
    Log(path).append(
        [record(f"z[0.{i}]", [0.5, i / 7, float("nan")], extra={"faithfulness": 0.5}) for i in range(3)]
    )
    return path / LOG


def log_content(path: Path) -> Any:
    return [{name: row.get(name) for name in record("z[0.0]")} for row in read_log(path.parent)]


def spec_content(path: Path) -> Any:
    header = read_header(path.parent)
    return header["spec"], header["jobs"]


def spec_file(path: Path) -> Path:
    begin(path, read_spec({"preset": "head-ablation", "tasks": ["ioi"]}), {"jobs": 32}, extend=False)
    return path / SPEC


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "circuit": (circuit_file, circuit_content),
    "lens": (lambda path: LENS.save(path / "lens.safetensors"), lens_content),
    "netCDF": (lambda path: results.save(RESULT, path / "r.nc"), lambda path: results.load(path).to_dict()),
    "log": (log_file, log_content),
    "spec": (spec_file, spec_content),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_refused_or_harmless(kind, tmp_path):
    save, load = KINDS[kind]
    path = save(tmp_path)
    whole, content, rng = path.read_bytes(), repr(load(path)), random.Random(0)
    n_refused = 0
    for place in sorted(rng.sample(range(len(whole)), min(len(whole), 150))):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            loaded = load(path)
        except WorkbenchError:
            n_refused += 1
            continue
        if kind == "log" and (place == len(whole) - 1 or 0 in changed):
            continue  # as a torn line, whose job is run again
        # Of the checksum's own name, or of what no reader looks at.
        assert repr(loaded) == content, place
    assert n_refused > 100


def test_files_without_a_checksum_load_as_before(tmp_path):
    for kind, (save, load) in KINDS.items():
        folder = tmp_path / kind
        folder.mkdir()
        path = save(folder)
        content, whole = repr(load(path)), path.read_bytes()
        if kind == "lens":
            with safe_open(path, "pt") as file:
                meta = {name: text for name, text in file.metadata().items() if name != "checksum"}
                tensors = {name: file.get_tensor(name) for name in ("weight", "bias")}
            save_file(tensors, path, metadata=meta)
        elif kind == "netCDF":
            assert whole[-60:].count(b"\nworkbench xxh3_128 ") == 1
            path.write_bytes(whole[: whole.rindex(b"\nworkbench")])
        elif kind == "log":
            path.write_bytes(re.sub(rb',"sum":"[0-9a-f]{16}"', b"", whole))
        else:
            fields = json.loads(whole)
            del fields["checksum"]
            path.write_text(json.dumps(fields))
        assert path.read_bytes() != whole
        assert repr(load(path)) == content, kind


def test_a_sealed_netcdf_file_is_read_by_other_tools(tmp_path):
    path = results.save(RESULT, tmp_path / "r.nc")
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        assert np.array_equal(opened["x"].values, RESULT.values)
    # A tool that writes into it leaves a file without a seal, which is taken as it is.
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "r+") as file:
        file["x"][0, 0] = 5.0
    assert float(results.load(path)[0, 0]) == 5.0


def edited(tmp_path: Path) -> Path:
    """A circuit in which somebody changed a score and took out an edge."""
    path = circuit_file(tmp_path)
    fields = json.loads(path.read_text())
    first, second, *_ = fields["edges"]
    fields["edges"][first] = 9.0
    del fields["edges"][second]
    path.write_text(json.dumps(fields))
    return path


def test_a_circuit_that_was_edited_is_signed_anew_by_convert(tmp_path):
    path = edited(tmp_path)
    with pytest.raises(CircuitError) as refused:
        Circuit.load(path)
    command = f"workbench convert {path} {path} --overwrite"
    n = CIRCUIT.n_edges
    assert str(refused.value) == (
        f"{str(path)!r} was edited or cut: it promises {n} edges and holds {n - 1}. If you edited it yourself, "
        f"sign it again: {command}"
    )
    for read in (
        wb.read_circuit,
        lambda name: CliRunner().invoke(app, ["compare", str(name), "ioi"], catch_exceptions=False),
    ):
        with pytest.raises(CircuitError, match="was edited or cut"):
            read(path)
    outcome = CliRunner().invoke(app, command.split()[1:], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert f"note: {path} was edited or cut: it promises {n} edges" in outcome.output
    circuit = Circuit.load(path)
    assert (circuit.n_edges, max(circuit.to_frame()["score"])) == (n - 1, 9.0)
    again = CliRunner().invoke(app, command.split()[1:], catch_exceptions=False)
    assert "note:" not in again.output


def test_a_score_that_was_changed_is_seen(tmp_path):
    path = circuit_file(tmp_path)
    text = path.read_text()
    (line,) = (line for line in text.splitlines() if line.strip().startswith(f'"{CIRCUIT.edge_list[0]}"'))
    path.write_text(text.replace(line, re.sub(r": -?\d", ": 7", line)))
    with pytest.raises(CircuitError, match="was edited or cut: its content does not fit its checksum"):
        Circuit.load(path)
    assert Circuit.load(path, edited=True) == CIRCUIT


def test_a_rotten_line_is_named_also_where_it_is_the_last(tmp_path):
    path = log_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (0, 2):
        rotten = [*lines]
        rotten[number] = rotten[number].replace(b"0.5", b"0.7", 1)
        path.write_bytes(b"".join(rotten))
        message = rf"Line {number + 1} of .* is damaged: it was changed since it was written \(checksum\)\. Delete that line"
        with pytest.raises(SweepError, match=message):
            read_log(tmp_path)
    path.write_bytes(b"".join(lines)[:-9])
    assert len(read_log(tmp_path)) == 2, "a torn line is no rotten one"


@pytest.mark.parametrize("column", ["study", "model", "value", "checkpoint"])
def test_a_line_that_another_program_wrote_again_is_refused_whatever_it_lacks(tmp_path, column):
    path = log_file(tmp_path)
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    # `json` puts spaces behind commas and colons, so the checksum no longer ends the line as it was written.
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    with pytest.raises(SweepError, match=r"Line 1 of .* was written anew by another program \(checksum\)"):
        read_log(tmp_path)
    # As lines of version 0.2, which have no checksum, and every column.
    del row["sum"]
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    assert len(read_log(tmp_path)) == 3
    del row[column]
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    with pytest.raises(SweepError, match=f"Line 1 of .* is damaged: it has no '{column}'"):
        read_log(tmp_path)
