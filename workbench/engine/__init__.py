"""Running a model with edits: from a value that is written at sites to a number for each edited run.

1. `values.py` says what is written (`zero()`, `from_store(...)`); `named_values.py` finds a value by its
   name.
2. `value.bind(...)` checks it against a model and prompts: a `Bound` (`bound.py`) maps the activation of a
   site to the new one. `continuations.py` says which tokens of an answer it covers; `precomputed.py` holds
   activations worked out beforehand.
3. `select.py` chooses the engine: the fast one (`fast/`), which runs only the tokens and layers that an edit
   can change, where it knows the model and agrees with hooks; else full forward passes with hooks
   (`hooked/`), which define what is true.
4. `runs.py` holds what both share: the pairs, the side that is edited, the metric of base and edited runs,
   their cost. A sweep of either engine returns the table [example, element] of m(edited) - m(base). Circuits
   are measured by `circuits.py` and `edge_mixing.py` in the same way, once `circuit_check.py` has tried them
   on the model. `read_out.py` reads the last stream in another precision.

`capture.py` stores activations, `run.py` is a single edited forward pass, `gradients/` attributes;
`first_not_finite.py` finds the layer where a run ceases to be finite;
`bridge.py` and `nodes.py` read modules and names of nodes. Begin with `run.py`, then `bound.py`,
`hooked/forward.py` and `fast/staircase.py`.
"""
