"""A circuit as a picture: SVG, an interactive page, and files for papers and slides.

`view` reads from a circuit what is drawn and `lines` which of its edges; `layout` and `position_layout` place
the boxes, `curves` and `legend` draw the rest, and `svg` puts them together. `html` makes an interactive page
of it with `circuit.js`, `export` a file. Each imports only from those before it. Begin with `CircuitView` and
`to_svg`.
"""

from workbench.render.circuit.html import to_html
from workbench.render.circuit.view import CircuitView

# A view draws itself in a notebook. Said here, because `html` imports `view` and a circle of imports is to be
# avoided.
CircuitView.draw_in_notebook = to_html
