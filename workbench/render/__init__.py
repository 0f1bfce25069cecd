"""Results as pictures and pages: circuits, figures, interactive panels, reports.

* `circuit/`: a circuit as SVG, as an interactive page, and as a file.
* `figures/`: matplotlib figures; `plots.plot` chooses the one that fits a result.
* `panels` makes the interactive figures of circuitsvis (`panel`), each with a still picture (`panel_svg`).
* `report` puts all of these on one self-contained page.

`writing` measures and cuts text for SVG. Begin with `plots.plot` and `report.report`.
"""
