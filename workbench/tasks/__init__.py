"""Tasks: behaviours with a clean and a corrupt prompt, their answers, and named positions.

Each behaviour is a module (`ioi`, `induction`, ...) whose `draw` gives a clean and a corrupt sentence of
words in `grammar`. `registry` lists them and makes prompt pairs for a model, whose vocabulary `vocabularies`
looks into; `concepts` labels named positions, and `measure` scores a model on every task. Begin with
`registry.load_task`.
"""
