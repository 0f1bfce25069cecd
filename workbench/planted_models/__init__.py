"""Planted models: transformers with weights set by hand, whose true edges are known.

`blueprint` turns named subspaces, heads and neurons into weights; `recipes` draws a circuit with each;
`planted` lists the variants and builds one; `pairs` gives its prompts as `PromptPairs`. They are the ground
truth that discovery and evaluation are tested on. Begin with `planted.planted` and its table of variants.
"""
