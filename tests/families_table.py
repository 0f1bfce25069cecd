"""Every model family: does the workbench give plain transformers' numbers, or refuse with its own error?

    python tests/families_table.py [NAME ...] [--write docs/model_families.md]

A cell is the largest difference from plain transformers (`plain_runs.py`), as a share of what is
compared; `refused`, where the workbench says that it does not do this; or FAULT: another library's error,
a wrong number, or a number that nothing here can judge.
"""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, inf, log10
from pathlib import Path
from typing import Any

import numpy as np
import torch
from family_configs import FAMILIES, plain_model, saved
from plain_parts import Unclear
from plain_runs import Plain

import workbench as wb

# Prompts of two lengths, longer than the sliding windows; sides of a pair differ at one token.
ROWS = ([0, 45, 9, 83, 117, 22, 64, 90, 31], [0, 77, 118, 30, 222, 17])
OTHER_ROWS = ([0, 45, 14, 83, 117, 22, 64, 90, 31], [0, 77, 14, 30, 222, 17])
RIGHT, WRONG = (57, 109), (208, 11)
TOLERANCE = 1e-4
COLUMNS = {
    "logits": "logits of prompts of two lengths, run together",
    "ablation": "effect of a head's zero ablation on the logit difference",
    "direct": "path from that head straight to the logits",
    "full": "circuit of every edge",
    "random": "circuits of random edges, and one in which nothing reads that head",
    "gradient": "scores of all edges by EAP, against gradients by autograd",
    "attribution": "sum of the direct attribution, by component and by head",
    "lens": "logit lens after the last block",
}


@dataclass(frozen=True)
class Cell:
    """An error, or why there is none.

    Attributes:
        error: the difference as a share of what is compared; inf where the call failed, NaN where refused.
        text: the refusal, or what went wrong.
    """

    error: float
    text: str = ""

    @property
    def state(self) -> str:
        """`right`, `refused` or `FAULT`."""
        if np.isnan(self.error):
            return "refused"
        return "right" if self.error <= TOLERANCE else "FAULT"

    def __str__(self) -> str:
        if self.state == "refused":
            return "refused"
        if self.error == inf:
            return f"FAULT {self.text[:40]}"
        # Rounded up to a power of ten: the digits themselves depend on the processor.
        size = "0" if self.error == 0 else f"1e{max(-7, ceil(log10(self.error)))}"
        return size if self.state == "right" else f"FAULT {self.error:.1e}"


@dataclass
class Row:
    """What one family gives, column by column; `loads` holds the refusal or the fault where it does not load."""

    name: str
    loads: Cell
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, str]:
        """The columns that are wrong, with what they say."""
        of_all = {"loads": self.loads} | self.cells
        return {name: f"{cell} {cell.text}" for name, cell in of_all.items() if cell.state == "FAULT"}

    def __str__(self) -> str:
        texts = [f"{self.name:<22}", f"{'yes' if self.loads.state == 'right' else self.loads!s:<8}"]
        texts += [f"{self.cells[column]!s:<9}" if column in self.cells else f"{'-':<9}" for column in COLUMNS]
        return " ".join(texts)


def row_of(name: str) -> Row:
    """Build the family, save it, load it with the workbench, and compare everything."""
    plain = plain_model(name)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, name)  # refusals name it
        folder.mkdir()
        saved(plain, folder)
        loaded: list[Any] = []
        loads = _cell(lambda: loaded.append(wb.load_model(folder, device="cpu")) or 0.0)
        if not loaded:
            return Row(name, loads)
        judged = _Judged(plain, loaded[0])
        return Row(name, loads, {column: _cell(getattr(judged, column)) for column in COLUMNS})


def _cell(measured: Callable[[], float]) -> Cell:
    """A measurement as a cell. Every exception is caught: which of them are right is what the table says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Cell(float(measured()))
    except wb.WorkbenchError as error:
        return Cell(float("nan"), f"{type(error).__name__}: {error}")
    except Unclear as reason:
        return Cell(inf, f"nothing to judge it by: {reason}")
    except Exception as error:
        return Cell(inf, f"{type(error).__name__}: {str(error)[:300]}")


class _Judged:
    """One loaded model beside the plain one; each column is a method that gives its error."""

    def __init__(self, model: Any, loaded: Any) -> None:
        self.hf, self.model = model, loaded

    @cached_property
    def plain(self) -> Plain:
        return Plain(self.hf)

    @cached_property
    def pairs(self) -> Any:
        answers, wrong = torch.tensor(RIGHT)[:, None, None], torch.tensor(WRONG)[:, None, None]
        return wb.PromptPairs(wb.Prompts.of(list(ROWS)), wb.Prompts.of(list(OTHER_ROWS)), answers, wrong)

    @cached_property
    def ends(self) -> list[Any]:
        """The plain model's logits after each prompt."""
        with torch.no_grad():
            return [self.hf(torch.tensor([row])).logits[0, -1] for row in ROWS]

    @property
    def scale(self) -> float:
        """The largest logit that the metric reads: effects are differences of such, and round at their size."""
        return max(
            float(end[list(tokens)].abs().max()) for end, tokens in zip(self.ends, _tokens(), strict=True)
        )

    @cached_property
    def base(self) -> np.ndarray:
        return self.difference(self.ends)

    def difference(self, ends: list[Any]) -> np.ndarray:
        """[example]: right minus wrong."""
        return np.array(
            [float(end[a] - end[b]) for end, (a, b) in zip(ends, _tokens(), strict=True)], dtype=np.float64
        )

    def error(self, ours: Any, right: np.ndarray) -> float:
        """The largest difference from the right metric or effect."""
        ours = np.asarray(ours, dtype=np.float64).reshape(right.shape)
        if not np.isfinite(ours).all():
            return inf
        return float(np.abs(ours - right).max()) / self.scale

    @property
    def head(self) -> tuple[int, int]:
        """A head of the lowest layer that has heads."""
        if not self.plain.with_heads:
            raise Unclear("no heads were found")
        return self.plain.with_heads[0], 1

    def logits(self) -> float:
        """Prompts of two lengths together, against each by itself."""
        logits = wb.run(self.model, [list(row) for row in ROWS]).logits
        errors = []
        for ours, row in zip(logits, ROWS, strict=True):
            with torch.no_grad():
                right = self.hf(torch.tensor([row])).logits[0]
            errors.append(float((ours[: len(row)] - right).abs().max() / right.abs().max()))
        return max(errors)

    def ablation(self) -> float:
        """Zeroing a head."""
        sites = [f"z[{_first_layer(self.model)}.1]"]
        ours = wb.effects(self.model, self.pairs, sites=sites, value=wb.zero(), progress=False)
        layer, head = self.head
        right = self.difference([self.plain.zeroed(row, layer, head)[-1] for row in ROWS])
        return self.error(ours, right - self.base)

    def direct(self) -> float:
        """A head's direct effect on the logits."""
        sender = f"a{_first_layer(self.model)}.1"
        ours = wb.path_effects(
            self.model, self.pairs, senders=[sender], receivers="logits", value=wb.zero(), mlps="frozen",
            progress=False,
        )  # fmt: skip
        layer, head = self.head
        right = self.difference([self.plain.direct(row, layer, head)[-1] for row in ROWS])
        return self.error(ours, right - self.base)

    def measured(self, circuits: list[Any]) -> Any:
        """[circuit, example]: the metric of circuits whose missing edges carry zero."""
        return wb.evaluate(
            circuits, self.model, self.pairs, value=wb.zero(), checks=(), progress=False
        ).m_circuit.values

    def full(self) -> float:
        """The circuit of all edges is the model."""
        return self.error(self.measured([wb.Circuit.full(self.model)])[0], self.base)

    def random(self) -> float:
        """Circuits with edges missing."""
        full = wb.Circuit.full(self.model)
        self.measured([full])  # the refusal, where circuits of such models are refused
        graph = full.graph
        unread = full.edges.copy()
        unread[graph.writer_index[f"a{_first_layer(self.model)}.1"]] = False
        rng = np.random.default_rng(0)
        circuits = [unread]
        circuits += [graph.exists & (rng.random(graph.exists.shape) < share) for share in (0.8, 0.5)]
        ours = self.measured([wb.Circuit(graph, edges) for edges in circuits])
        layer, head = self.head
        right = self.difference([self.plain.zeroed(row, layer, head)[-1] for row in ROWS])
        errors = [self.error(ours[0], right)]
        self.plain.check_clear()
        for one, edges in zip(ours[1:], circuits[1:], strict=True):
            right = self.difference([self.plain.circuit(row, graph, edges)[-1] for row in ROWS])
            errors.append(self.error(one, right))
        return max(errors)

    def gradient(self) -> float:
        """EAP with zero values, against gradients of the plain model."""
        ours = wb.score_edges(
            self.model, self.pairs, value=wb.zero(), method="eap", keep=("example",), progress=False
        ).values
        self.plain.check_clear()
        graph = wb.Circuit.full(self.model).graph
        errors = []
        for one, row, (a, b) in zip(ours, ROWS, _tokens(), strict=True):
            right = self.plain.edge_scores(row, graph, a, b).numpy()[graph.exists]
            errors.append(float(np.abs(one[graph.exists] - right).max() / np.abs(right).max()))
        return max(errors)

    def attribution(self) -> float:
        """The parts sum to the logit difference."""
        store = wb.capture(self.model, [list(row) for row in ROWS], progress=False)
        right = self.difference([self.plain.before_cap(row)[-1] for row in ROWS])
        errors = []
        for by in ("component", "head"):
            parts = wb.direct_attribution(
                store, self.model, targets=self.pairs.answers, minus=self.pairs.wrong, by=by
            )
            errors.append(self.error(parts.sum("component"), right))
        return max(errors)

    def lens(self) -> float:
        """The last layer's lens is the model's output."""
        store = wb.capture(self.model, [list(row) for row in ROWS], sites=["resid_post"], progress=False)
        lens = wb.logit_lens(store, self.model, targets=self.pairs.answers, minus=self.pairs.wrong)
        ours = [float(lens[i, -1, len(row) - 1]) for i, row in enumerate(ROWS)]
        return self.error(ours, self.base)


def _tokens() -> list[tuple[int, int]]:
    return list(zip(RIGHT, WRONG, strict=True))


def _first_layer(model: Any) -> int:
    """The lowest layer with attention."""
    for layer in range(model.cfg.n_layers):
        if "attn" in dict(model.blocks[layer].named_children()):
            return layer
    return 0


# ---- the table


def page(rows: list[Row]) -> str:
    """The table as a page of the documentation."""
    lines = ["# Model families", ""]
    lines += [
        f"{len(rows)} shapes of models, built small from their configurations with random weights, loaded from",
        "a directory and compared with plain transformers (`python tests/families_table.py --write",
        "docs/model_families.md`, or `make families`). A cell is the largest difference as a share of what is",
        "compared, rounded up to a power of ten; *refused* means that the call ends in an error that says what",
        "is not supported; – that the model does not load. Nothing is computed wrongly without a word.",
        "",
    ]
    lines += [f"- **{column}**: {meaning}." for column, meaning in COLUMNS.items()]
    lines += ["", f"| family | shape | {' | '.join(COLUMNS)} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = [str(row.cells.get(column, "–")) for column in COLUMNS]
        lines.append(f"| {row.name} | {FAMILIES[row.name].about} | {' | '.join(cells)} |")
    lines += ["", "## What is refused, and why", ""]
    for row in rows:
        refused = {} if row.loads.state == "right" else {"loading": row.loads}
        refused |= {name: cell for name, cell in row.cells.items() if cell.state == "refused"}
        reasons: dict[str, list[str]] = {}
        for name, cell in refused.items():
            reasons.setdefault(_first_sentence(cell.text), []).append(name)
        lines += [f"- **{row.name}** ({', '.join(names)}): {text}" for text, names in reasons.items()]
    return "\n".join(lines) + "\n"


def _first_sentence(text: str) -> str:
    """Without the name of the error, and without a folder that is another one in every run."""
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/", "", text.partition(": ")[2])
    # The dot of a product, as in "z . W_O", ends no sentence.
    sentence = re.split(r"(?<=\S)\. ", text)[0].rstrip(".")
    sentence += ")" * (sentence.count("(") - sentence.count(")"))
    return " ".join(sentence.replace("|", "/").split()) + "."


def written_states(path: Path) -> dict[str, dict[str, str]]:
    """family → column → `right`, `refused` or `–`, as the page says."""
    states = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in FAMILIES and len(cells) == len(COLUMNS) + 2:
            found = ["right" if cell[0].isdigit() else cell.split()[0] for cell in cells[2:]]
            states[cells[0]] = dict(zip(COLUMNS, found, strict=True))
    return states


def main(arguments: list[str]) -> int:
    """Print the table; 1 if there is a fault."""
    path = None
    if "--write" in arguments:
        at = arguments.index("--write")
        path = Path(arguments[at + 1])
        del arguments[at : at + 2]
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    rows = []
    print(f"{'family':<22} {'loads':<8} {' '.join(f'{column:<9}' for column in COLUMNS)}")
    for name in arguments or list(FAMILIES):
        rows.append(row_of(name))
        print(rows[-1], flush=True)
    faults = {row.name: row.faults for row in rows if row.faults}
    for name, texts in faults.items():
        for column, text in texts.items():
            print(f"FAULT {name} {column}: {text}")
    if path is not None:
        path.write_text(page(rows), encoding="utf-8")
    print(f"{len(rows)} families, {len(faults)} with faults.")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
