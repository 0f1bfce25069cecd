"""What objects print of themselves fits a screen: at most 40 lines of 120 columns, of large objects too."""

import pytest
from fake_sweeps import record, write_sweep

import workbench as wb

COLUMNS, LINES = 120, 40


def assert_fits(thing: object) -> None:
    for text in (repr(thing), str(thing)):
        lines = text.splitlines()
        assert len(lines) <= LINES, f"{type(thing).__name__} prints {len(lines)} lines"
        assert max(map(len, lines)) <= COLUMNS, (
            f"{type(thing).__name__} prints {max(map(len, lines))} columns"
        )


@pytest.fixture(scope="module")
def model():
    return wb.load_model("tiny")


@pytest.fixture(scope="module")
def pairs(model):
    return wb.load_task("ioi", model, n=8)


@pytest.mark.parametrize(
    "make",
    [
        lambda model, pairs: pairs,
        lambda model, pairs: pairs.clean,
        lambda model, pairs: wb.Graph.of(model, positions=["IO", "S1", "S2", "END", *range(10)]),
        lambda model, pairs: wb.Circuit.full(model),
        lambda model, pairs: wb.compare(wb.Circuit.full(model), wb.Circuit.full(model)),
        lambda model, pairs: wb.Criteria(),
        lambda model, pairs: wb.grid("z", model),
        lambda model, pairs: wb.planted("induction"),
        lambda model, pairs: wb.explain(model, pairs, sites="heads", value="zero"),
        lambda model, pairs: wb.measure(model, pairs)[0],
        lambda model, pairs: wb.metric(lambda logits, pairs: logits[:, 0], positions="END"),
        lambda model, pairs: wb.capture(model, pairs.clean, sites=["z"], progress=False),
    ],
    ids=[
        "pairs", "prompts", "graph", "circuit", "comparison", "criteria", "grid", "planted", "plan", "score", "metric",
        "store",
    ],
)  # fmt: skip
def test_an_object_fits_a_screen(make, model, pairs):
    assert_fits(make(model, pairs))


def test_a_sweep_fits_a_screen(tmp_path):
    records = [record(f"z[0.{i}]", [1.0, 2.0], task=f"a task with a long name {i}") for i in range(8)]
    assert_fits(wb.load_sweep(write_sweep(tmp_path / "s", records)))
