"""Draw the picture in the README: the circuit for indirect objects in `tiny`, as its example finds it.

python docs/picture.py
"""

from pathlib import Path

import workbench as wb
from workbench.render.circuit.svg import CircuitView, to_svg

if __name__ == "__main__":
    model = wb.load_model("tiny", device="cpu")
    find, select = wb.load_task("ioi", model, n=128).parts((1, 1))
    scores = wb.score_edges(model, find, value=wb.counterfactual_values(model, find), keep=("example",))
    circuit = wb.find_circuit(scores, criteria=wb.Criteria(), refine="prune", model=model, pairs=select)
    test = wb.load_task("ioi", model, n=128, split="heldout")
    result = wb.evaluate(circuit, model, test, value=wb.counterfactual_values(model, test), checks=())
    # The counterfactual that it reproduces least.
    least = result.isel(circuit=0, ablation=int(result["faithfulness"].isel(circuit=0).values.argmin()))
    faithfulness = (float(least["faithfulness"]), float(least["low"]), float(least["high"]))
    title = f"Indirect objects in tiny, against {least['ablation'].item()}"
    view = CircuitView.of(circuit, title=title, faithfulness=faithfulness)
    Path(__file__).with_name("ioi.svg").write_text(to_svg(view, kind="component"), encoding="utf-8")
