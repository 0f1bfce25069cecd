"""The fast exact engine: many edited runs in one walk through the layers, on plain matrices instead of hooks.

`decoder` is the model as arithmetic, which `families` read from a bridge. `cohorts` says which tokens an
edited run needs, `base_run` holds what all runs share, `departure` and `joining` how one leaves it, and
`staircase` walks them, packed by `packed_runs`. On top stand `budget` and `sweep` (many runs under a memory
budget), `readout` (metrics), `direct_edges` and `paths` (path patching). `circuits` is a walk of its own,
from `patched_values` with the `contributions` of writers. Begin with `staircase`. Every result is checked
against `engine.hooked`.
"""
