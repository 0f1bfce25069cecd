"""Bars in notebooks: nothing is shown before the delay, and nothing is left when a bar ends early."""

from functools import partial

import IPython.display
import pytest

from workbench import progress


@pytest.fixture
def outputs(monkeypatch):
    """What the outputs of a cell have held, in order, as a notebook would be told."""
    held = []

    class Handle:
        def update(self, content, *, raw):
            held.append(content)

    def display(content, **options):
        held.append(content)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    # the tests' own setting hides all bars
    monkeypatch.setattr(progress, "_DelayedBar", partial(progress._DelayedBar, disable=False))
    return held


@pytest.mark.parametrize("delay", [0.0, 1e6])
def test_a_bar_that_ends_early_leaves_nothing(outputs, monkeypatch, delay):
    monkeypatch.setattr(progress, "DELAY", delay)
    with progress.progress_bar(12, "prune", "round", shown=True) as bar:
        bar.set_postfix_str("227 edges")  # tqdm draws this at once, before any delay
        bar.update()
    assert any(outputs) == (delay == 0.0)
    assert outputs[-1:] in ([], [{}])
