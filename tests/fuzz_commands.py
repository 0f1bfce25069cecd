"""Command lines out of valid and odd words, run within this process.

Each must end in 0 or in a message and another exit code, without a traceback, and print no control character
that came in with a word or a file.
"""

import os
import random
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_world
from fuzz_world import WrongResult, told
from typer.main import get_command
from typer.testing import CliRunner

import workbench as wb
import workbench.sweeps.inputs
from workbench.cli.app import app
from workbench.cli.messages import message, options_of

# {name} is a slot. Options in brackets are there half of the time.
_LINES = (
    "ls {listing}",
    "effects {task} --model {model} [--kind {kind}] [--value {value}] [--base {base}] [--pos {pos}] [-n {n}] [--metric {metric}] [--method {method}] [--dry-run] [--budget {n}] [--out {out}]",
    "effects {task} --model {model} -n {n} [--kind {kind}] [--seed {n}] [--variant {odd}] [--device {odd}]",
    "paths {task} --model {model} [--senders {nodes}] [--receivers {nodes}] [--mlps {mlps}] [--value {value}] [-n {n}] [--dry-run]",
    "paths {task} --model {model} --path {path} [--mlps {mlps}] [-n {n}]",
    "discover {task} --model {model} -n {n} [--method {score}] [--edges {n}] [--value {value}] [--metric {metric}] --out {out} [--overwrite] [--variant {odd}] [--seed {n}]",
    "evaluate {circuit} --task {task} --model {model} [--value {value}] [-n {n}] [--seed {n}] [--json] [--positive {positive}]",
    "compare {circuit} {circuit} [--json] [--positive {positive}]",
    "convert {circuit} {out} [--format {format}] [--positive {positive}] [--shape-of {circuit}] [--overwrite]",
    "store build {corpus} {out} --model {model} [--sites {kind}] [--keep {pos}] [--dtype {dtype}] [-n {n}] [--long {long}] [--dry-run]",
    "store inspect {store}",
    "store verify {store}",
    "store repair {store} [--model {model}]",
    "probe {store} [--labels {table}] [--concepts {odd}] [--sites {kind}] [--layers {numbers}] [--k {numbers}] [--out {out}]",
    "report {run} [--out {out}] [--overwrite]",
    "diff {run} {run} [--out {out}]",
    "sweep run {spec} [--out {out}] [--models {model}] [--tasks {task}] [--values {value}] [--seeds {numbers}] [-n {n}] [--dry-run] [--limit {n}]",
    "sweep run --preset {preset} --models {model} --tasks {task} --out {out} [--values {value}] --dry-run",
    "sweep status {sweep} [--json]",
    "sweep table {sweep} [--csv {out}] [--json]",
    "sweep report {sweep} [--out {out}]",
    "sweep validate {spec}",
    "sweep resume {sweep} [--retries {n}]",
    "bench circuits --model {odd} --quick",
    "course list [--json]",
    "course check {odd}",
    "{odd} {odd}",
)  # fmt: skip
_ODD = (
    "", " ", "-1", "--", "-", "0", "1e9", "nan", "999999999999999999999", "/proc/nowhere", "nowhere.csv", "a,b",
    "é", "\x1b[31mred", "\u202egnp.exe", "\x9b31m", "\udcff", "%s", "{0}", "'", '"', "$(id)", "--help", "z[0.1]", "@END",
    "task=ioi", "*", "http://127.0.0.1:9/x", "ftp://x/y", "file:///etc/hosts", "a" * 300, "NUL", "ioi\n", "1,,2",
)  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@cache
def _words() -> dict[str, tuple[str, ...]]:
    """Words for the slots that are right."""
    made, tables, model = fuzz_world.artefacts(), fuzz_world.tables(), str(fuzz_world.model_folder())
    return {
        "listing": ("tasks", "models", "methods", "circuits"),
        "task": (str(tables / "pairs.csv"), str(tables / "pairs.jsonl"), str(tables / "pairs.csv")),
        "model": (model, model, model, "planted-induction"),
        "kind": ("z", "resid_pre", "mlp_out", "pattern", "mlp_post", "q", "k"),
        "value": ("zero", "corrupt", "mean", "resample", "clean", "constant:0.5", "scale:2", "optimal"),
        "base": ("clean", "corrupt"),
        "pos": ("all", "each", "END", "2", "1,END"),
        "n": ("1", "2", "3"),
        "numbers": ("0", "0,1", "1"),
        "metric": ("logit_diff", "prob_diff", "kl", "nll", "rank", "accuracy", "sequence_logprob_diff"),
        "method": ("exact", "gradient", "integrated", "atp-star"),
        "score": ("eap", "random", "exact", "eap-ig-inputs", "clean-corrupt"),
        "nodes": ("heads", "mlps", "a0.1,m0", "logits", "a1.0<q>", "a0.1+a0.2"),
        "mlps": ("frozen", "recomputed"),
        "path": ("input->a0.1->logits", "a0.1->m1->logits"),
        "circuit": (str(made / "circuit.json"), str(made / "circuit.json"), str(made / "eap.json"), "ioi"),
        "positive": ("supports", "opposes"),
        "format": ("workbench", "eap-json"),
        "corpus": (str(tables / "corpus.jsonl"), str(tables / "pairs.csv")),
        "dtype": ("float32", "bfloat16", "float16"),
        "long": ("split", "truncate", "error"),
        "store": (str(made / "store"),),
        "table": (str(tables / "pairs.csv"),),
        "run": (str(made / "run"),),
        "spec": (str(made / "sweep.yaml"),),
        "sweep": (str(made / "sweep"),),
        "preset": ("head-ablation", "layer-ablation", "cumulative-ablation", "circuit-evaluation"),
        "out": ("out", "new/out.json", "circuit.json", "out.csv"),
        "odd": _ODD,
    }


@cache
def _share_models() -> None:
    """Load each model once: what is tried here is what is said to it."""
    load = wb.load_model
    kept: dict[str, Any] = {}

    def load_once(source: Any, *, device: Any = None, dtype: Any = None, bos: Any = None) -> Any:
        if device not in (None, "cpu") or dtype is not None or bos is not None:
            return load(source, device=device, dtype=dtype, bos=bos)
        if str(source) not in kept:
            kept[str(source)] = load(source, device="cpu")
        return kept[str(source)]

    wb.load_model = load_once
    workbench.sweeps.inputs.load_model = load_once


def line(rng: random.Random) -> list[str]:
    """The words of a command line."""
    words: list[str] = []
    template = rng.choice(_LINES)
    for part in re.findall(r"\[[^\]]*\]|\S+", template):
        if part.startswith("["):
            if rng.random() < 0.5:
                continue
            part = part[1:-1]
        for word in part.split():
            slot = re.fullmatch(r"\{(\w+)\}", word)
            if slot is None:
                words.append(word)
            elif rng.random() < 0.15:
                words.append(rng.choice(_ODD))
            else:
                words.append(rng.choice(_words()[slot[1]]))
    if rng.random() < 0.1:
        words.insert(rng.randrange(len(words) + 1), rng.choice(("--nope", "-z", *_ODD)))
    if rng.random() < 0.1:
        del words[rng.randrange(len(words))]
    return words


def one(rng: random.Random) -> str:
    """One command line."""
    _share_models()
    words = line(rng)
    place, before, argv = Path(tempfile.mkdtemp(dir=fuzz_world.folder())), Path.cwd(), sys.argv
    copies = {}
    for name in ("store", "sweep", "run"):
        original = str(fuzz_world.artefacts() / name)
        if original in words:
            copies[original] = str(shutil.copytree(original, place / name))
    shutil.copy(fuzz_world.artefacts() / "circuit.json", place)
    words = [copies.get(word, word) for word in words]
    told.append(f"workbench {' '.join(map(repr, words))}")
    os.chdir(place)
    sys.argv = ["workbench", *words]
    try:
        result = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
        sys.argv = argv
        shutil.rmtree(place, ignore_errors=True)
    text, error = result.output, result.exception
    if error is not None and not isinstance(error, SystemExit):
        if not isinstance(error, wb.WorkbenchError | OSError):
            raise error
        text += message(error, options_of(get_command(app), words))
        if not str(error).strip():
            raise WrongResult("an error without a message")
    elif result.exit_code and not text.strip():
        raise WrongResult(f"exit code {result.exit_code} without a message")
    control = _CONTROL.search(text)
    if control:
        at = max(0, control.start() - 40)
        raise WrongResult(f"a control character is printed: {text[at : control.end() + 20]!r}")
    return f"exit code {result.exit_code}"
