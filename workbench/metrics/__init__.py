"""How an outcome is measured: numbers per example from the logits of a run.

`metric` holds `Metric` and the built-in ones, each with its formula, unit and direction. `continuations`
expands pairs into the runs that answers of several tokens need, and combines their measures; it stands on
`metric`. No model is run here. Begin with the docstring of `metric`.
"""
