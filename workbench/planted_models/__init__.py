"""Planted models: transformers with weights set by hand, whose true edges are known.

A `drawing` holds heads and neurons by named subspaces; a `blueprint` is drawn step by step, and `weights`
turns it into parameters. A `recipe` is a blueprint with its prompts: they stand in `recipes`, `compositions`
and `redundancy`. `planted` lists the variants and builds one; `pairs` gives its prompts as `PromptPairs`.
They are the ground truth that discovery and evaluation are tested on. Begin with `planted.planted` and its
table of variants.
"""
