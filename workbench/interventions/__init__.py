"""Interventions: how a metric changes when activations are edited, site by site or path by path.

`effects.py` has `effects`, the effect of every site (patching, ablation, steering); begin there.
`gradients.py` estimates the same effects from gradients. `paths.py` has `path_effects`, path patching;
`site_values.py` fits the value "optimal"; `explain.py` says what either call will run and cost. All of them
turn arguments into edited runs and hand these to `engine`; none installs a hook.
"""
