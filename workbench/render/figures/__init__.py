"""Figures of matplotlib, without pyplot and without a global theme.

`canvas` has what all of them share: style, palettes, axes with tokens, titles. `grids` (cells of colour) and
`line_plots` (lines and bars) draw one result each from it, and `circuit_plots`, `probe_plots` and
`sweep_plots` combine these for one kind of study. Begin with `line_plots.bars`; users call `plot`, which
chooses.
"""
