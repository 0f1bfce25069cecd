"""Gradients of a metric at every reader, and the edge scores that come from them.

`gradient_run` is one forward and backward pass, `reader_gradients` the gradient at each reader's input;
`edge_gradients` multiplies them with the `writer_differences`; `runs` says which passes a method needs;
`atp_star` stands on all of them. Begin with `edge_gradients.EdgeTable`. The methods by name are
`discovery.scores`.
"""
