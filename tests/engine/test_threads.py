"""Waiting OpenMP threads sleep; where torch came first, small models get one thread."""

import os
import subprocess
import sys

import pytest
import torch

from workbench.engine import threads
from workbench.engine.threads import SMALL, few_threads

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def settings_after(code: str, **variables: str) -> str:
    """OMP_WAIT_POLICY and GOMP_SPINCOUNT of a fresh process, and whether torch is loaded, after some code."""
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | variables
    report = f"import os, sys; print(*(os.environ.get(name) for name in {SETTINGS}), 'torch' in sys.modules)"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_waiting_threads_sleep_unless_the_user_has_said_otherwise():
    assert settings_after("import workbench") == "PASSIVE None False"
    assert settings_after("import workbench", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE None False"
    assert settings_after("import workbench", GOMP_SPINCOUNT="500") == "None 500 False"
    # Too late to tell libgomp: a variable that has no effect would hide that threads spin.
    code = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import workbench"
    assert settings_after(code) == "None None True"


@pytest.mark.parametrize("name", [None, *SETTINGS])
def test_small_models_get_one_thread_only_where_threads_spin(monkeypatch, name):
    monkeypatch.setattr(threads.sys, "platform", "linux")
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    if name is not None:
        monkeypatch.setenv(name, "1")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with few_threads(SMALL):
            assert torch.get_num_threads() == (1 if name is None else 2)
        with few_threads(SMALL + 1):
            assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="in the middle"), few_threads(SMALL):
            raise RuntimeError("in the middle")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
