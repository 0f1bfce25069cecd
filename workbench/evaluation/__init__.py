"""How far a circuit can be trusted: what it keeps of the behaviour, and what speaks against it.

    faithfulness = (m(circuit) - m(empty)) / (m(full) - m(empty))

m is the mean of a metric over prompts; outside the circuit every edge carries a patched value: 1 is all of
the model's behaviour, 0 none. `evaluate` measures it and makes the further `checks`; `curves` measures many
sizes (CPR, CMD) and stability; `hypothesis_tests` runs five statistical tests, each stated in `nulls`.
`controls` (circuits that ought to do worse), `rule_stability` (the whole rule on resampled prompts),
`agreement` (exact effects of single edges in both directions) and `specification` (which edges are found
whatever is chosen) say what speaks for and against a circuit that the criteria chose. `ground_truth` compares
scores with edges that are known to be true, `benchmark` does so for every method, `behaviours` for every
task. Begin with `evaluate.evaluate`.
"""
