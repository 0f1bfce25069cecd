"""Odd inputs at random: does every one of them give the right result, or an error of the workbench?

    python tests/fuzz.py [--n 1500] [--seed 0] [--kind api] [--only 17] [--write PATH]

Five kinds: calls of the public functions, command lines, files that were damaged, JSON and YAML that were
edited, and threads that share a model. An input fails when it ends in anything but a WorkbenchError (in the
shell: a message and an exit code), hangs, or gives a result that is not the right one, where that is known.
Input number i of a kind is the same for a seed, whatever else is run: `--kind api --only 17` repeats it.
"""

import argparse
import contextlib
import io
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_calls
import fuzz_commands
import fuzz_files
import fuzz_threads
import fuzz_world
import torch

SECONDS = 120  # a call of this size that takes longer hangs, on a busy machine too

KINDS: dict[str, tuple[float, Callable[[random.Random], str]]] = {
    # Its share of the inputs, and what runs one: a word that says what it gave, or an exception.
    "api": (0.5, fuzz_calls.one),
    "cli": (0.15, fuzz_commands.one),
    "files": (0.12, fuzz_files.damaged),
    "edited": (0.15, fuzz_files.edited),
    "threads": (0.08, fuzz_threads.one),
}


@dataclass(frozen=True)
class Outcome:
    """What one input gave.

    Attributes:
        what: the input, in words.
        failure: why it failed; "" where it survived.
        silent: whether the failure is a wrong result without a word.
    """

    kind: str
    number: int
    what: str
    failure: str
    silent: bool = False


def outcome(kind: str, number: int, seed: int) -> Outcome:
    """Run one input."""
    with _quiet():
        fuzz_world.prepare()
    rng = random.Random(f"{seed} {kind} {number}")
    fuzz_world.told.clear()
    failure, silent = "", False
    try:
        with _limited(SECONDS), warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            KINDS[kind][1](rng)
    except fuzz_world.WrongResult as error:
        failure, silent = f"wrong without a word: {error}", True
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        failure = f"{type(error).__name__}: {str(error)[:300]} ({_place(error)})"
    finally:
        torch.set_grad_enabled(True)
    return Outcome(kind, number, " ".join(fuzz_world.told), failure, silent)


def _place(error: BaseException) -> str:
    """The last line of the workbench that the error passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/workbench/" in frame.filename.replace("\\", "/")]
    frame = (ours or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"


@contextlib.contextmanager
def _limited(seconds: int):
    """Raise `TimeoutError` in code that takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def inputs(n: int) -> list[tuple[str, int]]:
    """(kind, number) of `n` inputs, shared among the kinds."""
    shared = []
    for kind, (share, _) in KINDS.items():
        shared += [(kind, number) for number in range(max(1, round(n * share)))]
    return shared


def report(outcomes: list[Outcome]) -> str:
    """Survived and failed, kind by kind."""
    lines = [f"{'kind':<9} {'inputs':>6} {'failed':>6} {'wrong':>6} {'survived':>9}"]
    for kind in KINDS:
        of_kind = [one for one in outcomes if one.kind == kind]
        if not of_kind:
            continue
        failed = sum(bool(one.failure) for one in of_kind)
        silent = sum(one.silent for one in of_kind)
        share = 1 - failed / len(of_kind)
        lines.append(f"{kind:<9} {len(of_kind):>6} {failed:>6} {silent:>6} {share:>9.2%}")
    return "\n".join(lines)


def failures(outcomes: list[Outcome], seed: int) -> str:
    """The failures, those of one cause together, with the line that repeats one."""
    causes: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.failure:
            cause = one.failure.rpartition(" (")[2] if not one.silent else one.failure[:60]
            causes.setdefault(f"{one.kind} {one.failure.partition(':')[0]} {cause}", []).append(one)
    lines = []
    for cause, of_cause in sorted(causes.items(), key=lambda item: -len(item[1])):
        lines.append(f"## {cause.rstrip(')')}: {len(of_cause)}")
        for one in of_cause[:3]:
            lines.append(
                f"- `python tests/fuzz.py --seed {seed} --kind {one.kind} --only {one.number}`: {one.what[:300]}"
            )
            lines.append(f"  → {one.failure}")
    return "\n".join(lines)


def main() -> int:
    """Run the inputs and print the report; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS))
    parser.add_argument("--only", type=int)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [one for one in inputs(given.n) if given.kind in (None, one[0])]
    if given.only is not None:
        chosen = [(given.kind or "api", given.only)]
    start, outcomes, seconds = time.perf_counter(), [], Counter()
    for kind, number in chosen:
        began = time.perf_counter()
        outcomes.append(outcome(kind, number, given.seed))
        seconds[kind] += time.perf_counter() - began
        if given.only is not None:
            print(outcomes[-1].what, "\n→", outcomes[-1].failure or "survived")
    print(report(outcomes))
    took = ", ".join(f"{kind} {spent:.0f} s" for kind, spent in seconds.items())
    print(f"{time.perf_counter() - start:.0f} s: {took}")
    listed = failures(outcomes, given.seed)
    if given.write is not None:
        given.write.write_text(f"{report(outcomes)}\n\n{listed}\n", encoding="utf-8")
    elif given.only is None:
        print(listed)
    return int(any(one.failure for one in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
