"""Folders of sweeps as `run_sweep` leaves them, written by hand."""

import json
import zlib
from pathlib import Path
from typing import Any

SETTING: dict[str, Any] = {
    "study": "effects", "model": "tiny", "checkpoint": None, "task": "ioi", "split": "train", "variant": None, "n": 4, "seed": 0,
    "base": "clean", "metric": "logit_diff", "value": "zero",
}  # fmt: skip


def record(what: str, values: Any = (), **more: Any) -> dict[str, Any]:
    """A line of a log; its key is made of its flags."""
    made = SETTING | {
        "what": what,
        "values": list(values),
        "m_base": [2.0] * len(values),
        "status": "done",
        "try": 1,
        "seconds": 0.1,
    }
    made |= {"error": None, "traceback": None, "extra": {}} | more
    return {"job": f"{zlib.crc32(repr([made[flag] for flag in (*SETTING, 'what')]).encode()):016x}"} | made


def write_sweep(
    folder: Path, records: Any, *, jobs: int | None = None, spec: Any = None, tail: str = ""
) -> Path:
    """A folder with spec.json and jobs.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = (
        {"study": records[0]["study"] if records else "effects", "models": ["tiny"], "tasks": ["ioi"]}
        if spec is None
        else spec
    )
    header = {
        "spec": spec,
        "jobs": len(records) if jobs is None else jobs,
        "made": "2025-01-01T00:00:00",
        "versions": {},
    }
    (folder / "spec.json").write_text(json.dumps(header))
    (folder / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records) + tail)
    return folder
