"""The engine of hooks: full forward passes of any model.

It is slow and general, and it defines what every other engine must give.

`forward.py` is one pass with edits, the only module of the package that installs hooks; begin there.
`sweep.py` runs many edited runs with it, `block.py` reads what a block's readers do, `circuits.py` runs
circuits and `paths.py` patched paths. `shared_rows.py` runs a circuit in another way, to check the others.
The fast engine is checked against this folder; this folder takes from it only the types of an edited run
(`Element`) and of a path (`Route`).
"""
