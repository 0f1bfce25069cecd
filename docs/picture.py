"""Draw the picture in the README: the circuit for indirect objects in `tiny`, as its example finds it.

python docs/picture.py
"""

from pathlib import Path

import workbench as wb
from workbench.render.circuit.svg import CircuitView, to_svg

if __name__ == "__main__":
    model = wb.load_model("tiny", device="cpu")
    pairs = wb.load_task("ioi", model, n=64)
    heldout = wb.load_task("ioi", model, n=64, split="heldout")
    _, corrupt = wb.capture_pairs(model, pairs)
    _, held_corrupt = wb.capture_pairs(model, heldout)
    circuit = wb.find_circuit(wb.score_edges(model, pairs, value=wb.from_store(corrupt)), n_edges=30)
    result = wb.evaluate(circuit, model, heldout, value=wb.from_store(held_corrupt))
    faithfulness = (float(result.faithfulness[0]), float(result.low[0]), float(result.high[0]))
    view = CircuitView.of(circuit, title="Indirect objects in tiny", faithfulness=faithfulness)
    Path(__file__).with_name("ioi.svg").write_text(to_svg(view, kind="component"), encoding="utf-8")
