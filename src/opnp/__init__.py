"""opnp: a trained classifier as an out-of-distribution detector, by optimal parameter and neuron pruning.

A name is imported when it is first used, so that ``import opnp`` costs next to nothing and loads no torch. Which names
there are, and where each is defined, is said once, in ``__init__.pyi``; all others are in their rooms, such as
`opnp.core` and `opnp.errors`.
"""

import pkgutil

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_ROOMS = {room.name for room in pkgutil.iter_modules(__path__)}
__all__ = [name for name in __all__ if name not in _ROOMS]  # `import *` leaves the `model` and `data` of others alone
