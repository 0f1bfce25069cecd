"""Copy the final weights and the chosen checkpoints of a training run into this folder.

    python data/models/tiny/keep.py runs/tiny --steps 0 500 1000 1250 1500 1750 1850 1900 2000 2250 2500 4000

The checkpoints are chosen around the steps at which behaviours appear (`log.jsonl`, copied too).
"""

import argparse
import shutil
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    args = parser.parse_args()
    for name in FILES:
        shutil.copyfile(args.run / "final" / name, HERE / name)
    shutil.copyfile(args.run / "log.jsonl", HERE / "log.jsonl")
    (HERE / "checkpoints").mkdir(exist_ok=True)
    for step in args.steps:
        shutil.copyfile(
            args.run / f"step-{step}.safetensors", HERE / "checkpoints" / f"step-{step}.safetensors"
        )
