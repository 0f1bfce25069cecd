"""A circuit as a picture: SVG, an interactive page, and files for papers and slides.

`view` (with `view_inputs`) reads from a circuit what is drawn and `lines` which of its edges; `layout` and
`position_layout` place the boxes, `curves` and `legend` draw the rest, and `svg` puts them together. `page`
makes text safe in HTML, `controls` and `scenes` are what an interactive circuit is made of, `html` joins them
with `circuit.js`, and `export` writes a file. Begin with `CircuitView` and `to_svg`.
"""

from workbench.render.circuit.html import to_html
from workbench.render.circuit.view import CircuitView

# A view draws itself in a notebook. Set here because `html` imports `view`: no circular import.
CircuitView.draw_in_notebook = to_html
