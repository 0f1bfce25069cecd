"""Finding circuits: from prompts and a model to the edges that a behaviour needs.

`scores` gives every edge a number: exactly (`exact`) or from gradients (`gradient_scores`), as a labelled
array (`score_table`). `search` cuts a circuit out of scores, which `score_arrays` reads. `acdc` and `masks`
find one without scores. `methods` puts all of them behind one call, `find_by`. How well a circuit does is
`evaluation`'s matter. Begin with `scores.score_edges` and `search.find_circuit`.
"""
