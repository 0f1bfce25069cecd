"""The circuits that `discover` recommends in a model, for several tasks and draws of the prompts.

    python tests/benchmarks/seeds_of_discover.py MODEL ioi greater_than pronoun --seeds 5 --out runs/seeds

The steps of `discover` that decide: scores, size, refining; and the circuit on test prompts, which chose nothing.
Each task and seed is a line of `seeds.jsonl` and is not computed again, so the same command resumes a run that
was stopped. At the end a table is printed: the circuits, whether they pass their own criteria on the test
prompts, and the Jaccard index of their edges between seeds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.evaluation.curves import mean_jaccard
from workbench.models.model import Model
from workbench.workflows.discovery_job import DiscoveryJob
from workbench.workflows.prompt_sets import PromptSets

METHOD = "eap-ig-inputs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, default=64, help="pairs to find with")
    parser.add_argument(
        "--no-bos", action="store_true", help="nothing in front of the prompts, and no warning"
    )
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "seeds.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {(row["task"], row["seed"]) for row in rows}
    model = wb.load_model(given.model, bos=False if given.no_bos else None)
    for seed in range(given.seeds):
        for task in given.tasks:
            if (task, seed) in done:
                continue
            row = one(model, task, seed, given.n, given.out)
            rows.append(row)
            with lines.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))
    for task in given.tasks:
        print(f"{task}: {between_seeds([row for row in rows if row['task'] == task], given.out)}")


def one(model: Model, task: str, seed: int, n: int, out: Path) -> dict[str, Any]:
    """The recommended circuit of a task, or the best trade-off, and its measures on test prompts."""
    start, cpu = time.perf_counter(), time.process_time()
    sets = PromptSets.of(model, task, n=n, seed=seed)
    job = DiscoveryJob(sets, wb.Criteria(), "corrupt", METHOD, None, "prune", seed=seed, progress=False)
    scores, _ = job.scores()
    _, circuit, recommended = job.recommended(scores, sets.select.circuit_runs())
    circuit.save(out / f"{task}-{seed}.json", overwrite=True)
    measured = job.measured({"circuit": circuit}, sets.test, sets.test.counterfactuals).isel(circuit=0)
    against = {}
    for name in map(str, measured["ablation"].values):
        cell = measured.sel(ablation=name)
        numbers = ("faithfulness", "low", "high", "error", "r", "kl_recovered", "answers_kept", "same_choice")
        against[name] = {number: round(float(cell[number]), 4) for number in numbers}
        against[name]["holds"] = "".join(letter for letter in "abcd" if bool(cell[f"holds_{letter}"]))
    return {
        "task": task, "seed": seed, "recommended": recommended, "edges": circuit.n_edges,
        "edges_of_graph": circuit.graph.n_edges, "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - cpu), "test": against,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each task and seed, in Markdown."""
    lines = ["| task | seed | circuit | against | f | error | r | KL recovered | fails |", "|---" * 9 + "|"]
    for row in sorted(rows, key=lambda row: (row["task"], row["seed"])):
        share = row["edges"] / row["edges_of_graph"]
        circuit = f"{row['edges']:,} ({share:.1%})"
        if not row["recommended"]:
            circuit = f"none; best trade-off {circuit}"
        for name, measures in row["test"].items():
            failing = [letter for letter in "abcd" if letter not in measures["holds"]]
            lines.append(
                f"| {row['task']} | {row['seed']} | {circuit} | {name} | {measures['faithfulness']:.2f} "
                f"| {measures['error']:.2f} | {measures['r']:.2f} | {measures['kl_recovered']:.2f} "
                f"| {''.join(failing) or '-'} |"
            )
    return "\n".join(lines)


def between_seeds(rows: list[dict[str, Any]], out: Path) -> str:
    """How many recommendations pass on test prompts, and how far the circuits agree."""
    recommended = [row for row in rows if row["recommended"]]
    passing = [row for row in recommended if all(one["holds"] == "abcd" for one in row["test"].values())]
    text = f"{len(recommended)} of {len(rows)} seeds recommend a circuit, {len(passing)} pass on test prompts"
    if len(recommended) < 2:
        return text
    edges = [wb.Circuit.load(out / f"{row['task']}-{row['seed']}.json").edges for row in recommended]
    agreement, _, _ = mean_jaccard(edges, 0.95)
    sizes = [row["edges"] for row in recommended]
    return f"{text}; {min(sizes):,} to {max(sizes):,} edges; Jaccard between seeds {agreement:.2f}"


if __name__ == "__main__":
    main()
