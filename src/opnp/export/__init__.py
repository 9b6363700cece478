"""A fitted detector for other programs: as a module with its model, as a file, and as a model card."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
