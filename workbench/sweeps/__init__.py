"""Sweeps: one study over models, tasks, values, metrics and seeds, kept in a folder and read back as a table.

`spec` says what to do; `jobs` (with `inputs`, `elements`) turns it into jobs with keys; `runner` gives those
that are not done to a `pool`, whose workers call `execute` and `measure` (with `circuit_studies`, on a
`job_context`). Results are lines of `log` in a `folder` under a `lock`. `table` reads them
back, with `status`, `rows`, `pooling`, `places` and `contrasts`; it runs nothing.

Begin with `spec.SweepSpec`, then `runner.run_sweep`, then `table.Sweep`.
"""
