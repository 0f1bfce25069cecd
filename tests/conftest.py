"""What every test shares: no progress bars, one thread, an empty cache folder, the kernels at the head of a run.

Models this small lose time with more threads; WORKBENCH_TEST_THREADS=2 shows that the results do not depend on it.
"""

import gc
import itertools
import os
import tempfile
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
THREADS = int(os.environ.get("WORKBENCH_TEST_THREADS", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for the processes that tests start
# As `import workbench` sets it, which comes after torch here: threads that spin are slow beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nothing of a run stays in the home folder: what is kept while tests are collected goes with the process.
_CACHES = tempfile.TemporaryDirectory(prefix="workbench-cache-")
# Tests of real models need the one that `tests/real/run.py` has brought.
_REAL = os.environ.get("WORKBENCH_TEST_CACHE")
os.environ["WORKBENCH_CACHE"] = _REAL or str(Path(_CACHES.name) / "collected")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# Hypothesis fails a test whose example takes longer than 200 ms: on a busy machine any may.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

torch.set_num_threads(THREADS)
gc.set_threshold(20_000, 10, 10)
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without a cache, so that none depends on what another has left there."""
    if _REAL:
        return
    monkeypatch.setenv("WORKBENCH_CACHE", str(Path(_CACHES.name) / str(next(_numbers))))


def pytest_collection_finish() -> None:
    """What imports have made is never garbage: it is not gone through again and again, which takes seconds."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Which kernels the numbers of this run come from: results may differ between them in the last digits."""
    onednn = os.environ.get("ONEDNN_MAX_CPU_ISA", "default")
    return (
        f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()} kernels, oneDNN {onednn}, "
        f"{torch.get_num_threads()} thread(s)"
    )
