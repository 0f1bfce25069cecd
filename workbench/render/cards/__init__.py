"""What a result shows of itself: a headline, a small table and a picture, the numbers behind a fold.

`strongest` finds the cells of an array that are worth a row and names them; `headlines` has the sentence of each
kind of result; `card` puts both together with the picture of `plot`; `objects` does the same for prompts, stores,
labels, probes and sweeps. Each imports only from those before it. `render/notebook` shows cards in notebooks.
Begin with `card.card_of`.
"""
