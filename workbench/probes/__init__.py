"""Sparse probes over stores: which features tell a concept, how well, and whether the model uses them.

`labels` (with `concepts` and `label_tables`) names rows of a store; `data` pairs them with activations,
`controls` adds columns of control labels. `selectors` (with `stepwise` and `l1_path`) choose features, `fits`
(on `solver`) fits probes to them, `selected` does both, `baselines` fits all features, and `tables` (with
`metrics` and `judge`) holds the results. `fit.fit_probes` ties them together by `fit_request` and
`site_probes`; `neurons` maps every neuron by itself; `causal` edits a model along a probe's direction.

Begin with `labels.Labels`, then `fit.fit_probes`.
"""
