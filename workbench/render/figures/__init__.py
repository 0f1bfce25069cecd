"""Figures of matplotlib, without pyplot and without a global theme.

`canvas` (style, palettes), `notes`, `headings` and `axis_labels` have what all of them share. `bar_plots`,
`line_plots`, `grids` and `tables` (both of `cells`) draw one result each from it. `circuit_plots`,
`criteria_plots`, `trust_plots`, `probe_plots`, `bench_tables` and `sweep_plots` (of `sweep_panels` on
`sheets`) combine these for one kind of study; `array_plots` (with `array_axes`) and `dataset_plots` choose by
axes and by variables. Each imports only from those before it.
Begin with `bar_plots.bars`; users call `plot`, which chooses.
"""
