"""Studied circuits: a behaviour's circuit, an account of how it works, and the evidence for and against.

`study` (what is particular to a behaviour) builds on `circuit_experiment` (the circuit with its measurements
and edits), both on the words in `prediction`; `by_rule` has criteria choose the circuit. `measure` turns a
study and a model into `evidence`, the data that `study.json` holds; `readme`, `table` and `check` read
evidence only and run no model. `command` is the command line of every `circuits/*/study.py`. Begin with
`circuits/ioi/study.py`, then `study.py` and `evidence.py`.
"""
