"""Stores: activations of a set of prompts, computed once, in memory or on disk.

`store` is what everything else reads (`ActivationStore`, `SiteView`); `index` knows where the rows of a
prompt lie. Stores on disk add `plan` (which shards and files), `format` (the bytes of one file, which
`writing` writes and `reading` reads) and `disk`, which opens and verifies them. Nothing in this
folder runs a model: `engine/capture.py` fills stores. Begin with `store`.
"""
