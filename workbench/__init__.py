"""A mechanistic interpretability workbench around TransformerLens models. This file is the table of contents.

The names are imported on first use (`__init__.pyi` says from where), so that `workbench --help` is quick.
"""

import lazy_loader

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(_names)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.2.0"
