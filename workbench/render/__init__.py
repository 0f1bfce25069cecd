"""Results as pictures and pages: circuits, figures, interactive panels, reports.

* `circuit/`: a circuit as SVG, as an interactive page, and as a file.
* `figures/`: matplotlib figures; `plots.plot` chooses the one that fits a result.
* `panels` lists the interactive figures. `attention_panels`, `token_panels`, `lens_panels` and
  `neuron_panels` make each a `panel` (its script: `circuitsvis`; its checks: `panel_inputs`,
  `panel_components`) with a still picture (`attention_svg`, `token_svg`, on `panel_svg`).
* `cards/`: what a result shows of itself: a headline, a small table and its figure; `notebook` gives them to IPython.
* `report` puts all of these on one self-contained page.

`writing` measures and cuts text for SVG. Begin with `plots.plot` and `report.report`.
"""
