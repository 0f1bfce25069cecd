"""Circuits as data: the graph of a decoder's edges, and sets of those edges. No model is run here.

`graph` says which edges exist. `circuit.Circuit` is a set of them; it uses `selection` and `collapse` for its
subsets, `tables` for its other forms and `document` for its own files. `components` names what edges connect.
On top of it stand `formats` (files of other tools, by `foreign` and `foreign_files`), `compare`, `published`
(circuits of papers) and `random` (circuits to beat). Begin with the docstring of `graph`, then `Circuit`.
"""
