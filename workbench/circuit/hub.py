"""Circuits on the Hugging Face Hub: `Circuit.push_to_hub` and `Circuit.from_hub`.

A repository holds `circuit.json` and `README.md`, the card that says what was found, with which numbers and how to
load it. Nothing is sent but by a call of `push_to_hub`; the token is that of huggingface_hub's own login
(`hf auth login`, or HF_TOKEN). The card is written here; no model is run.
"""

import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
import yaml

from workbench.arguments import checked
from workbench.errors import CannotWrite, CircuitError, OutputExists
from workbench.models.fingerprint import model_fingerprint
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.text import spelled

CIRCUIT, CARD = "circuit.json", "README.md"
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN."
STRONGEST = 10
"""Edges that a card lists."""
MEASURES = {
    "faithfulness": ("low", "high", "faithfulness: 1 is all of what the model does, 0 nothing"),
    "error": ("error_low", "error_high", "mean error per prompt, as a share of what there is to explain"),
    "prompts_near": ("prompts_near_low", "prompts_near_high", "share of prompts that it keeps nearly as they are"),
    "kl_recovered": ("kl_recovered_low", "kl_recovered_high", "share of the KL divergence that it recovers"),
    "same_choice": ("same_choice_low", "same_choice_high", "share of prompts with the model's first choice"),
    "complement": ("complement_low", "complement_high", "faithfulness of everything outside of it (low is good)"),
    "random": ("random_low", "random_high", "faithfulness of random circuits of its size (low is good)"),
    "incompleteness": ("incompleteness_low", "incompleteness_high", "largest difference after the same knock-outs"),
}  # fmt: skip
"""Numbers of an evaluation that a card lists → the ends of their intervals, and what they are."""


# Not `typing.Self`: beartype cannot check it in a method that is decorated by itself.
C = TypeVar("C", bound="OnHub")


class OnHub:
    """What a circuit has to do with the Hub."""

    attrs: Mapping[str, Any]

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        evaluation: xr.Dataset | None = None,
        description: str = "",
        license: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        all_scores: bool = False,
        overwrite: bool = False,
    ) -> str:
        """Upload the circuit and its card to a repository of the Hub, which is made if needed; returns its address.

        Args:
            repo_id: "owner/name".
            evaluation: of this circuit, from `wb.evaluate`: its numbers, with intervals, are listed on the card.
            description: what the circuit does, in Markdown, for the card.
            license: of the circuit, as the Hub spells it ("mit", "cc-by-4.0").
            private: whether a repository that is made is private; None leaves it to the Hub's settings of the owner.
            revision: a branch; None takes the main one.
            message: of the commit.
            all_scores: also the scores of edges outside the circuit, which `to_scores` then gives back.
            overwrite: replace a circuit, or a card, that is there.

        Raises:
            OutputExists: the repository has a circuit or a card.
            CircuitError: an evaluation of another circuit, or an id that is none.
            CannotWrite: not logged in, no permission, or the Hub cannot be reached.

        Source: huggingface_hub's `HfApi.upload_folder`.
        """
        if evaluation is not None:
            check_evaluation(self, evaluation)
        with tempfile.TemporaryDirectory() as folder, _writing(repo_id):
            self.save(Path(folder) / CIRCUIT, all_scores=all_scores)  # pyright: ignore[reportAttributeAccessIssue]
            text = card(self, repo_id, evaluation=evaluation, description=description, license=license)
            (Path(folder) / CARD).write_text(text, encoding="utf-8")
            api = _api()
            api.create_repo(repo_id, private=private, exist_ok=True)
            taken = {CIRCUIT, CARD} & set(api.list_repo_files(repo_id, revision=revision))
            if taken and not overwrite:
                raise OutputExists(
                    f"{repo_id!r} on the Hub has {' and '.join(sorted(taken))}: pass overwrite=True to replace them."
                )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or "Upload a circuit",
            )
        return str(getattr(commit, "commit_url", commit))

    @classmethod
    @checked
    def from_hub(
        cls: type[C], repo_id: str | Path, *, revision: str | None = None, model: Model | None = None
    ) -> C:
        """The circuit of a repository of the Hub, or of a folder with the same files.

        Args:
            repo_id: "owner/name", or a folder.
            revision: a branch, a tag or a commit. A commit (40 digits) is the same circuit forever.
            model: the model that it is meant for: a circuit of another one is refused.

        Raises:
            CircuitError: no such repository or revision, no circuit in it, a damaged file, a circuit of another
                model, or the Hub cannot be reached.
        """
        path = Path(repo_id) / CIRCUIT
        if not Path(repo_id).is_dir():
            with _reading(str(repo_id), revision):
                path = Path(_api().hf_hub_download(str(repo_id), CIRCUIT, revision=revision))
        elif not path.is_file():
            raise CircuitError(f"The folder {str(repo_id)!r} has no {CIRCUIT}: it is none of push_to_hub.")
        circuit = cls.load(path)  # pyright: ignore[reportAttributeAccessIssue]
        if model is not None:
            circuit.check_fits(model)
            _check_model(circuit, model, str(repo_id))
        return circuit


def _api() -> Any:
    # Imported here: it is slow, and circuits are used without it. By name of the module, so that tests replace it.
    import huggingface_hub

    return huggingface_hub.HfApi()


@contextmanager
def _writing(repo_id: str) -> Iterator[None]:
    """Around calls of the Hub that write: its errors as ours."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise CircuitError(f"{repo_id!r} is not the id of a repository, 'owner/name': {error}") from error
    except _network_errors() as error:
        raise CannotWrite(
            f"The circuit was not uploaded to {repo_id!r}: {_first_line(error)} {LOGIN}"
        ) from error


@contextmanager
def _reading(repo_id: str, revision: str | None) -> Iterator[None]:
    """Around calls of the Hub that read: its errors as ours."""
    from huggingface_hub import errors

    at = "" if revision is None else f" at {revision!r}"
    try:
        yield
    except errors.HFValidationError as error:
        raise CircuitError(
            f"{repo_id!r} is neither a folder nor the id of a repository, 'owner/name'."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CircuitError(f"The repository {repo_id!r} on the Hub has no revision {revision!r}.") from error
    except errors.GatedRepoError as error:
        raise CircuitError(f"The repository {repo_id!r} asks for consent on its page. {LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise CircuitError(
            f"There is no repository {repo_id!r} on the Hub, or it is private. {LOGIN}"
        ) from error
    # Before the next, of which it is one: nothing answered, and nothing is in the cache.
    except errors.LocalEntryNotFoundError as error:
        raise CircuitError(
            f"{repo_id!r}{at} is not in the cache, and the Hub cannot be reached (HF_HUB_OFFLINE=1 forbids it)."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CircuitError(
            f"The repository {repo_id!r}{at} has no {CIRCUIT}: it holds no circuit that push_to_hub wrote."
        ) from error
    except _network_errors() as error:
        raise CircuitError(f"{repo_id!r}{at} cannot be read from the Hub: {_first_line(error)}") from error


def _network_errors() -> tuple[type[Exception], ...]:
    """What a call of the Hub raises where it is refused or nothing answers, and files of this machine too."""
    # huggingface_hub 1.0 changed from requests, whose errors are OSErrors, to httpx, whose errors are not.
    try:
        from httpx import HTTPError
    except ImportError:
        return (OSError,)
    return (OSError, HTTPError)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return spelled(lines[0]).rstrip(".") + "."


def _check_model(circuit: OnHub, model: Model, source: str) -> None:
    """Raise `CircuitError` for a circuit whose weights are other ones, though its graph is the same."""
    fingerprint = circuit.attrs.get("model_fingerprint")
    if fingerprint and fingerprint != model_fingerprint(model):
        raise CircuitError(
            f"The circuit of {source!r} is of the model {spelled(str(circuit.attrs.get('model')))} "
            f"({str(fingerprint)[:8]}), not of {model_name(model)} ({model_fingerprint(model)[:8]}). Leave model= out to "
            "load it all the same."
        )


def check_evaluation(circuit: Any, evaluation: xr.Dataset) -> None:
    """Raise `CircuitError` for a Dataset that is no evaluation of this circuit."""
    if evaluation.attrs.get("kind") != "evaluation" or "faithfulness" not in evaluation:
        raise CircuitError(
            "push_to_hub: evaluation= is the result of wb.evaluate(circuit, model, pairs, ...)."
        )
    sizes = np.atleast_1d(evaluation["n_edges"].values)
    one_model = evaluation.attrs.get("model_fingerprint") == circuit.attrs.get(
        "model_fingerprint", evaluation.attrs.get("model_fingerprint")
    )
    if evaluation.sizes.get("circuit", 1) != 1 or not one_model or (sizes != circuit.n_edges).any():
        raise CircuitError(
            f"push_to_hub: evaluation= is of another circuit or model ({', '.join(map(str, sizes.ravel()))} edges); this "
            f"circuit has {circuit.n_edges}. Select its own: evaluation.isel(circuit=[i])."
        )


# ---- the card


def card(
    circuit: Any, repo_id: str, *, evaluation: xr.Dataset | None, description: str, license: str | None
) -> str:
    """The text of README.md: front matter, what it is, its numbers, its edges, where it is from, how to load it."""
    facts = circuit.attrs
    task, model = _cell(facts.get("task") or "a behaviour"), _cell(facts.get("model") or "a model")
    value = facts.get("value_name") or str(facts.get("value", "unknown")).replace("from_store", "corrupt")
    lines = [
        f"# A circuit of {task} in {model}", "",
        f"{circuit.n_edges:,} of {circuit.graph.n_edges:,} edges ({circuit.n_edges / circuit.graph.n_edges:.1%}), "
        f"{len(circuit.heads)} heads, {len(circuit.mlps)} MLPs; found by {_cell(facts.get('method', 'hand'))} with "
        f"{_cell(value)} values and the metric {_cell(facts.get('metric', 'unknown'))}.", "",
    ]  # fmt: skip
    if description:
        lines += [description.strip(), ""]
    lines += _numbers(evaluation)
    lines += _edges(circuit) + _load(repo_id) + _provenance(facts, circuit)
    return f"---\n{_front_matter(facts, license)}---\n\n" + "\n".join(lines).rstrip() + "\n"


def _front_matter(facts: Mapping[str, Any], license: str | None) -> str:
    """What the Hub itself reads."""
    header: dict[str, Any] = {
        "library_name": "interp-workbench",
        "tags": ["mechanistic-interpretability", "circuit", "transformer-lens"],
    }
    # Names without an owner are of models that are not on the Hub, such as `tiny`, or might be others there.
    model = str(facts.get("model", ""))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII):
        header["base_model"] = model
    if license is not None:
        header["license"] = license
    return yaml.safe_dump(header, sort_keys=False)


def _numbers(evaluation: xr.Dataset | None) -> list[str]:
    """The numbers of an evaluation, a row each, a column for each patched value."""
    if evaluation is None:
        return ["No numbers were uploaded with this circuit: measure it before you rely on it.", ""]
    one = evaluation.isel(circuit=0) if "circuit" in evaluation.dims else evaluation
    by_name = {str(evaluation.attrs.get("value", "")): one}
    if "ablation" in one.dims:
        by_name = {str(name): one.sel(ablation=name) for name in one["ablation"].values}
    n = one.sizes.get("example", 0)
    level = float(evaluation.attrs.get("level", 0.95))
    seen = float(np.max(one["in_sample"].values))
    lines = [
        f"Measured on {n} prompts ({seen:.0%} of them had part in finding it), with {level:.0%} intervals over "
        "prompts; outside of the circuit every edge carries the value at the top of the column.", "",
        *_table(["", *map(_cell, by_name)], [
            [what, *(_interval(column, name, low, high) for column in by_name.values())]
            for name, (low, high, what) in MEASURES.items() if name in one
        ]),
    ]  # fmt: skip
    return ["## Numbers", "", *lines, ""]


def _interval(column: xr.Dataset, name: str, low: str, high: str) -> str:
    number = float(column[name].values)
    if not math.isfinite(number):
        return "not known"
    ends = [float(column[end].values) for end in (low, high) if end in column]
    if len(ends) < 2 or not all(map(math.isfinite, ends)):
        return f"{number:.2f}"
    return f"{number:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def _edges(circuit: Any) -> list[str]:
    frame = circuit.to_frame().head(STRONGEST)
    if frame.empty:
        return []
    rows = [
        [f"`{edge}`", "" if math.isnan(score) else f"{score:+.3g}"]
        for edge, score in zip(frame["edge"], frame["score"], strict=True)
    ]
    head = ["edge", "score (positive supports the behaviour)"]
    return [f"## The {len(rows)} strongest edges", "", *_table(head, rows), ""]


def _load(repo_id: str) -> list[str]:
    return [
        "## How to load it", "", "```python", "import workbench as wb  # pip install interp-workbench", "",
        f'circuit = wb.Circuit.from_hub("{repo_id}")  # revision="..." for one commit', "circuit.edge_list", "```", "",
        "A circuit is the circuit of one difference: of these prompts, this metric and this patched value. Measure it on "
        "prompts of your own, and against other values, with `wb.evaluate`.", "",
    ]  # fmt: skip


def _provenance(facts: Mapping[str, Any], circuit: Any) -> list[str]:
    rows = [[_cell(name), _cell(fact)] for name, fact in sorted(facts.items()) if str(fact) != ""]
    rows.append(["prompts that it was found on", f"{len(circuit.prompt_ids):,}"])
    return ["## Where it is from", "", *_table(["fact", "value"], rows), ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(fact: object) -> str:
    """A text from a file or a model that is neither Markdown nor HTML on the card."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", spelled(str(fact))[:200])
