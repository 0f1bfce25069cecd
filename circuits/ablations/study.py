"""Ablate every head of `tiny` on every behaviour under three ablations; `README.md` lists the heads with the
largest effects.

python circuits/ablations/study.py [OUT]
"""

import sys
from pathlib import Path

import pandas as pd

import workbench as wb

HERE = Path(__file__).parent
HEAD = """# Which heads matter

`python circuits/ablations/study.py` ablates every head of `tiny` on 32 held-out prompts of every behaviour:
it replaces the head's output by zeros, by its mean, or by its output on another prompt, with three seeds. The
table shows, for each behaviour and ablation, the head with the largest effect, the mean effect on the task's
metric with its 95 % interval over prompts, and the effect as a share of the metric without ablation. Where
the three columns disagree, ask first what each ablation means, then which head matters. "Not measured": some
prompt has no other prompt of its length to take an activation from.

| behaviour | zero | mean | resample |
|---|---|---|---|
"""


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/heads")
    sweep = wb.run_sweep(HERE / "heads.yaml", out=out, command="python circuits/ablations/study.py")
    table, lines = sweep.means(), []
    for task in sweep.spec["tasks"]:
        of_task = table[table["task"] == task["name"]]
        cells = [cell(of_task[of_task["value"] == value]) for value in sweep.spec["values"]]
        lines.append(f"| {task['name']} | {' | '.join(cells)} |\n")
    (HERE / "README.md").write_text(HEAD + "".join(lines), encoding="utf-8")
    print(HERE / "README.md")


def cell(rows: pd.DataFrame) -> str:
    """The head whose ablation costs most, its effect with its interval, and the effect as a share."""
    if rows.empty:  # some prompt has no other of its length
        return "not measured"
    row = rows.loc[rows["mean"].idxmin()]
    return f"{row['what']} {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] ({row['share']:.0%})"


if __name__ == "__main__":
    main()
