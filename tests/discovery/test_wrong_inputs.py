"""Inputs of the wrong kind, without a type checker: each is refused with a message, none with a raw error or nonsense."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_every_wrong_input_is_refused_with_a_message():
    script = Path(__file__).with_name("wrong_inputs.py")
    environment = os.environ | {
        "TQDM_DISABLE": "1",
        "PYTHONPATH": os.pathsep.join((str(script.parents[2]), os.environ.get("PYTHONPATH", ""))),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 250
    wrong = {call: outcome for call, outcome in found.items() if not outcome.startswith("refused: ")}
    assert wrong == {}
    for call, outcome in found.items():
        assert len(outcome.removeprefix("refused: ")) > 20, call
