"""What a model can do of the tasks here: a page with a table, without and with the BOS token in front.

    python tests/benchmarks/behaviours_of.py MODEL [--n 48] [--name NAME] [--write docs/what_smollm2_can_do.md]

Held-out prompts of each task. A task that the model can do has right above wrong on at least 85 % of them and
a right answer as first choice on at least 60 %.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.errors import UnsuitableTask
from workbench.prompts.encoder import bos_token
from workbench.prompts.prompts import Prompts
from workbench.statistics import interval_text
from workbench.tasks.measure import CleanRun, Estimate, clean_run
from workbench.tasks.task import TASKS

RIGHT, FIRST = 0.85, 0.6


@dataclass(frozen=True)
class Row:
    """A task and its clean runs, by what stands in front of the prompts ("nothing", "BOS")."""

    task: str
    example: str
    runs: dict[str, CleanRun]

    def shares(self, front: str) -> dict[str, Estimate]:
        """Right above wrong, and first choice."""
        run = self.runs[front]
        shares = {"right above wrong": run.values > 0, "first choice": run.is_first > 0}
        return {name: Estimate.of_share(share) for name, share in shares.items()}

    @property
    def suits(self) -> bool:
        """Whether the model can do the task, with nothing in front of the prompts."""
        right, first = (share.mean for share in self.shares("nothing").values())
        return right >= RIGHT and first >= FIRST

    def line(self, front: str) -> str:
        shares = [
            f"{share.mean:.2f} {interval_text(share.low, share.high, '.2f')}"
            for share in self.shares(front).values()
        ]
        return f"| {self.task} | {len(self.runs[front].values)} | {front} | {' | '.join(shares)} |"


def behind(prompts: Prompts, bos: int | None) -> Prompts:
    """The prompts behind BOS, or without it."""
    first = int(prompts.bos)
    lengths = prompts.lengths.tolist()
    rows = [row[first:length] for row, length in zip(prompts.tokens.tolist(), lengths, strict=True)]
    front = [] if bos is None else [bos]
    return Prompts.of([front + row for row in rows], bos=bos is not None, tokenizer=prompts.tokenizer)


def row_of(model: Any, task: str, n: int, n_several: int) -> Row | str:
    """The clean runs of a task, or why it cannot be measured."""
    try:
        pairs = wb.load_task(task, model, n=n, split="heldout")
    except UnsuitableTask as error:
        return str(error)
    if pairs.metric == "sequence_logprob_diff":
        pairs = pairs.select(range(min(n, n_several)))
    words = "".join(pairs.clean.strings[0][int(pairs.clean.bos) :]).strip()
    answer = model.tokenizer.decode([token for token in pairs.answers[0, 0].tolist() if token >= 0]).strip()
    runs = {}
    for front, bos in {"nothing": None, "BOS": bos_token(model)}.items():
        if front == "nothing" or bos is not None:
            sides = {"clean": behind(pairs.clean, bos), "corrupt": behind(pairs.corrupt, bos)}
            runs[front] = clean_run(model, replace(pairs, **sides, further={}))
    return Row(task, f"{words} → {answer}", runs)


def page(name: str, rows: list[Row], refused: dict[str, str]) -> str:
    lines = [
        f"# What {name} can do", "",
        "Held-out prompts of each task, with 95 % intervals (Wilson; `python tests/benchmarks/behaviours_of.py MODEL",
        "--write docs/what_smollm2_can_do.md`). A circuit can explain only what the model does: a task suits a model that has",
        f"right above wrong on at least {RIGHT:.0%} of the prompts and a right answer as first choice of the whole vocabulary on",
        f"at least {FIRST:.0%}. `wb.measure(model, pairs)` gives these numbers for prompts of your own.",
        "", "| task | n | in front | right above wrong | first choice |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        lines += map(row.line, row.runs)
    lines += ["", "Examples:", "", *(f"* {row.task}: {row.example}" for row in rows), ""]
    cannot = ", ".join(row.task for row in rows if not row.suits) or "none of these"
    lines += [f"By these bars, with nothing in front, it cannot do: {cannot}.", ""]
    lines += [f"Not measured: {task}. {reason}" for task, reason in refused.items()]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument(
        "--n-several", type=int, default=12, help="of tasks whose answers are several tokens, a run for each"
    )
    parser.add_argument("--name", default="SmolLM2-135M-Instruct (Q4_1)")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--write", type=Path)
    options = parser.parse_args(arguments)
    model = wb.load_model(options.model)
    rows, refused = [], {}
    for task in options.tasks:
        row = row_of(model, task, options.n, options.n_several)
        if isinstance(row, str):
            refused[task] = row
            continue
        rows.append(row)
        for front in row.runs:
            print(row.line(front), flush=True)
    text = page(options.name, rows, refused)
    print(text)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
