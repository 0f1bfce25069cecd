"""Gradients of a metric at every reader, and the edge scores that come from them.

`reader_gradients` has one forward and backward pass and the gradient at each reader's input; `edge_gradients`
multiplies them with what writers would change; `runs` says which passes a method needs; `atp_star` stands on
all three. Begin with `edge_gradients.EdgeTable`. The methods by name are `discovery.scores`.
"""
