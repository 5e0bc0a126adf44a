"""misr: multi-image super-resolution for ultra-low-dose 4D-STEM.

Public names load on first use, so that ``import misr`` costs next to nothing (SPEC 1).
"""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__version__ = "0.1.0"
