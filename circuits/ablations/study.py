"""Ablate every head of `tiny` in every behaviour, three ways: `README.md` holds the heads that matter most.

python circuits/ablations/study.py [OUT]
"""

import sys
from pathlib import Path

import workbench as wb

HERE = Path(__file__).parent
HEAD = """# Heads that matter

`python circuits/ablations/study.py` ablates every head of `tiny` on 32 held-out prompts of every behaviour, writing zeros, the mean
and another prompt's activation in its place, with three seeds. For each behaviour: the head that is missed most under each
ablation, the mean effect on the task's metric with its 95 % interval over prompts, and its share of the unablated metric. Where the
three columns disagree, the first question is what an ablation means, not which head matters. Not measured: some prompt has no other
of its length to take an activation from.

| behaviour | zero | mean | resample |
|---|---|---|---|
"""


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/heads")
    sweep = wb.run_sweep(HERE / "heads.yaml", out=out, command="python circuits/ablations/study.py")
    table, lines = sweep.summary(), []
    for task in sweep.spec["tasks"]:
        cells = [task["name"]]
        for value in sweep.spec["values"]:
            part = table[(table["task"] == task["name"]) & (table["value"] == value)]
            if part.empty:  # some prompt has no other of its length
                cells.append("not measured")
                continue
            row = part.loc[part["mean"].idxmin()]
            cells.append(
                f"{row['what']} {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] ({row['share']:.0%})"
            )
        lines.append("| " + " | ".join(cells) + " |\n")
    (HERE / "README.md").write_text(HEAD + "".join(lines), encoding="utf-8")
    print(HERE / "README.md")


if __name__ == "__main__":
    main()
