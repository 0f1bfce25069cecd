"""Prompts: token sequences with named positions, and pairs of a clean and a corrupt run.

`prompts` is padded token sequences; `encoder` makes them from text, `token_tables` from what other libraries
hold token ids in, and `tables` reads rows of files. `pairs` adds the corrupt side and the `answers`; `corpus`
reads prompts without answers. Nothing here runs a model: of a model, only the tokenizer and the context
length are read. Begin with `pairs.PromptPairs`.
"""
