"""A mechanistic interpretability workbench around TransformerLens models. This file is the table of contents.

The names are imported on first use (`__init__.pyi` says from where), so that `workbench --help` is quick.
"""

import os
import sys

import lazy_loader

# On a busy machine two OpenMP threads are 10 to 25 times slower than one thread, because each spins while it
# waits for the other. With PASSIVE they sleep: `evaluate` on `tiny` took 8.6 s instead of 26.9 s, and 4.3 s
# of processor time instead of 18 (torch's libgomp on a busy machine; GOMP_SPINCOUNT=0 does the same). libgomp
# reads the variable once, when torch is imported, so it has to be set here, before that.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys() and "torch" not in sys.modules:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(_names)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.2.0"

# In a notebook results show themselves. The module is small: it imports what it shows when that is shown.
if "IPython" in sys.modules:
    from workbench.render import notebook

    notebook.register()
