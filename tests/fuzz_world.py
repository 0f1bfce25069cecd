"""What the fuzzed calls, command lines and files are made of: one small model, its prompts, and results of it.

Everything is made once. `recipes` are calls that are right as they stand; `artefacts` is a folder with a file
of every sort that the workbench writes or reads.
"""

import csv
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from family_configs import plain_model, saved

import workbench as wb
from workbench.engine.bound import Value

ROWS = ([0, 45, 9, 83, 117, 22], [0, 77, 118, 30, 222, 17])
OTHER_ROWS = ([0, 45, 14, 83, 117, 22], [0, 77, 14, 30, 222, 17])


told: list[str] = []
"""The input that runs now, in words: what was altered, and how."""


class WrongResult(Exception):
    """A result that is not the right one, without a word."""


@dataclass(frozen=True)
class Recipe:
    """A call that is right as it stands.

    Attributes:
        arguments: every argument by name.
    """

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Any]

    def run(self, **changes: Any) -> Any:
        """The result of the call with some arguments changed."""
        return self.call(**(self.arguments | changes))


@cache
def folder() -> Path:
    """Where the files are made; it is deleted by the system."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


@cache
def plain() -> Any:
    """The model as transformers has it."""
    return plain_model("llama")


@cache
def model_folder() -> Path:
    """The model's directory."""
    return saved(plain(), folder() / "model")


@cache
def model() -> Any:
    """The model."""
    return wb.load_model(model_folder(), device="cpu")


@cache
def pairs() -> Any:
    """Two pairs of prompts."""
    answers, wrong = (torch.tensor(tokens)[:, None, None] for tokens in ((57, 109), (208, 11)))
    return wb.PromptPairs(wb.Prompts.of(list(ROWS)), wb.Prompts.of(list(OTHER_ROWS)), answers, wrong)


def many_pairs() -> Any:
    """Pairs of random tokens, as many as three sets of prompts need."""
    drawn = torch.randint(1, 200, (2, 16, len(ROWS[0])), generator=torch.Generator().manual_seed(0))
    answers = [[3 + i, 60 + i] for i in range(16)]
    right, wrong = zip(*answers, strict=True)
    return wb.PromptPairs.of(drawn[0].tolist(), drawn[1].tolist(), list(right), list(wrong))


@cache
def stores() -> tuple[Any, Any]:
    """The stores of both sides."""
    return wb.capture_pairs(model(), pairs(), progress=False)


@cache
def scores() -> xr.DataArray:
    """Edge scores."""
    return wb.score_edges(model(), pairs(), value=wb.from_store(stores()[1]), progress=False)


@cache
def effect_table() -> xr.DataArray:
    """The effect of every head, prompt by prompt."""
    sites = wb.grid("z", model())
    return wb.effects(model(), pairs(), sites=sites, value=wb.zero(), progress=False)


@cache
def circuit() -> Any:
    """A circuit of thirty edges."""
    return wb.find_circuit(scores(), n_edges=30)


@cache
def labels() -> Any:
    """Two concepts at the last token of forty prompts."""
    return wb.Labels.per_prompt(
        probe_store(), {"odd": [i % 2 for i in range(40)], "late": [i > 19 for i in range(40)]}
    )


@cache
def probe_store() -> Any:
    """Activations of forty prompts."""
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(3, 280, 5).tolist()] for _ in range(40)]
    return wb.capture(model(), rows, sites=["resid_post", "mlp_post"], progress=False)


@cache
def lens() -> Any:
    """A tuned lens, fitted for one epoch."""
    return wb.fit_tuned_lens(probe_store(), model(), epochs=1)


@cache
def recipes() -> list[Recipe]:
    """Calls of most of the public functions, each a few milliseconds long."""
    clean, corrupt = stores()
    quiet: dict[str, Any] = {"progress": False}
    common = {"model": model(), "pairs": pairs(), "value": wb.zero(), "metric": "logit_diff"}
    pick = {"targets": pairs().answers, "minus": pairs().wrong}
    spec = {"study": "effects", "models": [str(model_folder())], "tasks": [str(tables() / "pairs.csv")]}
    spec |= {"sites": ["z"], "values": ["zero"]}
    calls: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        (
            "run",
            wb.run,
            {"model": model(), "tokens": list(ROWS), "edits": {"z[0.1]": wb.zero()}, "record": ["z[0]"]},
        ),
        (
            "capture",
            wb.capture,
            quiet
            | {
                "model": model(),
                "tokens": list(ROWS),
                "sites": ["z", "resid_post"],
                "keep": "all",
                "budget": 2**28,
            },
        ),
        (
            "capture_pairs",
            wb.capture_pairs,
            quiet | {"model": model(), "pairs": pairs(), "sites": ["z"], "keep": "all"},
        ),
        (
            "capture_cost",
            wb.capture_cost,
            {"model": model(), "tokens": list(ROWS), "sites": ["z"], "keep": "all", "shard_bytes": 2**20},
        ),
        (
            "effects",
            wb.effects,
            quiet
            | common
            | {
                "sites": wb.grid("z", model()),
                "base": "clean",
                "method": "exact",
                "normalized": False,
                "budget": 2**28,
            },
        ),
        (
            "effects-at",
            wb.effects,
            quiet
            | common
            | {
                "sites": ["z[0.1]@END", "mlp_out[1]@2"],
                "value": wb.from_store(corrupt),
                "steps": 2,
                "method": "integrated",
            },
        ),
        (
            "path_effects",
            wb.path_effects,
            quiet
            | common
            | {
                "senders": ["a0.1", "m0"],
                "receivers": ["a1.0<q>", "logits"],
                "mlps": "frozen",
                "base": "clean",
            },
        ),
        ("paths", wb.path_effects, quiet | common | {"paths": ["input->a1.2->logits"], "mlps": "recomputed"}),
        ("explain", wb.explain, common | {"sites": wb.grid("z", model()), "base": "clean"}),
        (
            "score_edges",
            wb.score_edges,
            quiet
            | common
            | {"method": "eap", "steps": 2, "grid": "midpoint", "seed": 0, "keep": ("example",)},
        ),
        ("score_nodes", wb.score_nodes, quiet | common | {"method": "eap", "keep": ("example",), "seed": 0}),
        (
            "find_circuit",
            wb.find_circuit,
            {"scores": scores(), "n_edges": 20, "by": "signed", "strategy": "top"},
        ),
        (
            "acdc",
            wb.acdc,
            quiet | common | {"metric": "kl", "threshold": 10.0, "order": "late-first", "seed": 0},
        ),
        (
            "evaluate",
            wb.evaluate,
            quiet | common | {"circuit": circuit(), "checks": (), "level": 0.9, "seed": 0},
        ),
        (
            "curve",
            wb.faithfulness_curve,
            quiet | common | {"scores": scores(), "by": "signed", "sizes": [0.1, 0.5], "level": 0.9},
        ),
        (
            "logit_lens",
            wb.logit_lens,
            {"store": clean, "model": model(), "measure": "logit", "kind": "resid_post"} | pick,
        ),
        ("top_tokens", wb.top_tokens, {"store": clean, "model": model(), "k": 3}),
        (
            "direct_attribution",
            wb.direct_attribution,
            {"store": clean, "model": model(), "by": "head", "pos": "END"} | pick,
        ),
        ("head_scores", wb.head_scores, {"store": clean, "scores": ("previous",)}),
        ("attention_to", wb.attention_to, {"store": clean, "keys": [1], "query": "END"}),
        ("copying_scores", wb.copying_scores, {"store": clean, "model": model(), "top": 3}),
        ("norms", wb.norms, {"store": clean, "kind": "resid_post"}),
        (
            "summary",
            wb.summary,
            {"result": effect_table(), "over": "example", "level": 0.9, "draws": 20, "seed": 0},
        ),
        ("compare", wb.compare, {"a": circuit(), "b": wb.find_circuit(scores(), n_edges=10)}),
        ("difference", wb.difference, {"a": scores(), "b": scores()}),
        (
            "Prompts.of",
            wb.Prompts.of,
            {"rows": [list(row) for row in ROWS], "positions": [{"X": 1}, {}], "bos": False},
        ),
        (
            "PromptPairs",
            wb.PromptPairs,
            {
                "clean": pairs().clean,
                "corrupt": pairs().corrupt,
                "answers": pairs().answers,
                "wrong": pairs().wrong,
            },
        ),
        ("PromptPairs.select", pairs().select, {"indices": [1, 0]}),
        (
            "from_csv",
            wb.PromptPairs.from_csv,
            {"model": model(), "path": tables() / "pairs.csv", "joiner": ""},
        ),
        (
            "read_corpus",
            wb.read_corpus,
            {
                "model": model(),
                "source": ["the red cat", "one two"],
                "long": "split",
                "context": 8,
                "limit": 2,
            },
        ),
        (
            "grid",
            wb.grid,
            {"kind": "z", "model_or_shape": model(), "layer": [0, 1], "head": [1], "pos": "each"},
        ),
        ("Site.parse", wb.Site.parse, {"text": "z[1.2]@END"}),
        ("Edge.parse", wb.Edge.parse, {"text": "a0.1->a1.0<q>"}),
        ("Graph.of", wb.Graph.of, {"model_or_shape": model(), "positions": ["END", 2], "neurons": [1]}),
        (
            "Circuit.of",
            wb.Circuit.of,
            {"model_or_shape": circuit().graph, "edges": ["input->a0.1<v>", "a0.1->logits"]},
        ),
        (
            "Circuit.of_nodes",
            wb.Circuit.of_nodes,
            {"model_or_shape": circuit().graph, "nodes": ["a0.1", "m1"]},
        ),
        ("restricted", circuit().restricted, {"writers": ["input", "a0.1"]}),
        ("constant", wb.constant, {"content": 0.5}),
        ("add", wb.add, {"vector": torch.ones(8)}),
        ("scale", wb.scale, {"factor": 0.5}),
        ("mean", wb.mean, {"store": corrupt, "per": "dataset"}),
        ("resample", wb.resample, {"store": corrupt, "seed": 0}),
        ("from_store", wb.from_store, {"store": corrupt}),
        ("project", wb.project, {"basis": torch.eye(8)[:, :2], "value": wb.zero()}),
        ("metric", wb.metric, {"given": "prob_diff"}),
        ("planted", wb.planted, {"name": "induction", "size": 6, "seed": 0, "n": 4}),
        (
            "Labels.per_prompt",
            wb.Labels.per_prompt,
            {"store": probe_store(), "concepts": {"odd": [i % 2 for i in range(40)]}, "pos": "END"},
        ),
        (
            "fit_probes",
            wb.fit_probes,
            {
                "store": probe_store(),
                "labels": labels(),
                "sites": ["resid_post"],
                "layers": [1],
                "k": (1, 2),
                "controls": (),
                "resampled": 5,
                "test_share": 0.3,
                "seed": 0,
            },
        ),
        (
            "neuron_maps",
            wb.neuron_maps,
            {
                "store": probe_store(),
                "labels": labels(),
                "layers": [0],
                "l2": 0.01,
                "test_share": 0.3,
                "seed": 0,
            },
        ),
        (
            "run_sweep",
            wb.run_sweep,
            {
                "spec": spec,
                "out": folder() / "no-sweep",
                "dry_run": True,
                "limit": 2,
                "retries": 1,
                "progress": False,
            },
        ),
        ("load_model", wb.load_model, {"source": str(model_folder()), "device": "cpu", "dtype": "float32"}),
        ("plot", wb.plot, {"result": wb.norms(clean)}),
    ]
    known = []
    for name, call, arguments in calls:
        known.append(Recipe(name, call, arguments))
    return known


@cache
def prepare() -> None:
    """Make everything, and run every recipe as it stands: a limit of time is for odd inputs alone."""
    artefacts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for recipe in recipes():
            try:
                recipe.run()
            except wb.WorkbenchError as error:
                raise AssertionError(
                    f"the recipe {recipe.name} is not right as it stands: {error}"
                ) from error


@cache
def tables() -> Path:
    """Tables of pairs, and a corpus."""
    place = folder() / "tables"
    place.mkdir()
    rows = [
        ["the red cat sat", "the one cat sat", " on", " two"],
        ["one two three", "one red three", " four", " cat"],
    ]
    with (place / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["clean", "corrupt", "answer", "wrong"], *rows])
    lines = [json.dumps(dict(zip(("clean", "corrupt", "answer", "wrong"), row, strict=True))) for row in rows]
    (place / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (place / "corpus.jsonl").write_text('{"text": "the red cat"}\n{"text": "one two"}\n', encoding="utf-8")
    return place


@cache
def artefacts() -> Path:
    """A folder with what the workbench writes: a circuit, scores, a lens, a store, a sweep, a run."""
    place = folder() / "artefacts"
    place.mkdir()
    circuit().save(place / "circuit.json")
    wb.write_circuit(circuit(), place / "eap.json", format="eap-json")
    wb.save(scores(), place / "scores.nc")
    wb.save(
        wb.evaluate(circuit(), model(), pairs(), value=wb.zero(), checks=(), progress=False),
        place / "evaluation.nc",
    )
    lens().save(place / "lens.safetensors")
    wb.capture(model(), list(ROWS), sites=["z", "resid_post"], path=place / "store", progress=False)
    (place / "sweep.yaml").write_text(
        f"study: effects\nmodels: [{model_folder()}]\ntasks: [{tables() / 'pairs.csv'}]\n"
        "sites: ['z[0.1]', 'z[1.2]']\nvalues: [zero, corrupt]\nmetrics: [logit_diff]\nseeds: [0]\n"
    )
    wb.run_sweep(place / "sweep.yaml", out=place / "sweep", progress=False)
    wb.discover(model(), many_pairs(), out=place / "run", n_edges=20, quick=True, progress=False)
    return place


def content(result: Any) -> Any:
    """What a result says, as numbers and texts that can be compared."""
    if isinstance(result, xr.DataArray | xr.Dataset):
        return {str(name): _plain(values.values) for name, values in _variables(result).items()}
    if isinstance(result, wb.Circuit):
        return result.graph.to_dict(), _plain(result.edges), _plain(result.scores), dict(result.labels)
    if isinstance(result, wb.PromptPairs):
        return content(result.clean), content(result.corrupt), _plain(result.answers), _plain(result.wrong)
    if isinstance(result, wb.Prompts):
        return (
            _plain(result.tokens),
            _plain(result.lengths),
            {k: _plain(v) for k, v in result.positions.items()},
        )
    if isinstance(result, wb.ActivationStore):
        return {
            f"{kind}[{at}]": _plain(torch.cat(list(result[kind, at].blocks()))) for kind, at in result.keys
        }
    if hasattr(result, "logits") and hasattr(result, "recorded"):
        return _plain(result.logits), {str(key): _plain(value) for key, value in result.recorded.items()}
    if isinstance(result, tuple | list):
        return [content(one) for one in result]
    if torch.is_tensor(result) or isinstance(result, np.ndarray):
        return _plain(result)
    if hasattr(result, "to_string") and hasattr(result, "columns"):
        return result.to_string()
    if isinstance(result, Value):
        # What it writes: a number may be spelled in many ways.
        edits = {"z[0.1]": result}
        return content(wb.run(model(), pairs().clean, edits=edits, other=pairs().corrupt))
    if is_dataclass(result) and "seconds" in {field.name for field in fields(result)}:
        return repr(replace(result, seconds=0.0))  # pyright: ignore[reportArgumentType]  # seconds are measured
    return repr(type(result)) if "object at 0x" in repr(result) else repr(result)


def _variables(result: Any) -> dict[Any, Any]:
    if isinstance(result, xr.DataArray):
        return {"": result} | dict(result.coords)
    return dict(result.variables)


def _plain(values: Any) -> Any:
    if values is None:
        return None
    if torch.is_tensor(values):
        values = values.detach().cpu()
        values = values.float().numpy() if values.is_floating_point() else values.numpy()
    return values


def agree(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether two contents are the same, numbers up to rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(agree(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(agree(one, two, tolerance) for one, two in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.shape != b.shape:
            return False
        if a.dtype.kind in "fc" and b.dtype.kind in "fc":
            size = float(np.nanmax(np.abs(a), initial=1e-9))
            return bool(np.allclose(a, b, rtol=0, atol=tolerance * size, equal_nan=True))
        return bool((a == b).all())
    return bool(a == b)
