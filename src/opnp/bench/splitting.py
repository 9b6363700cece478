"""The held-out ID samples in two parts: some for validation, the rest to judge by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opnp.bench.seeds import require_seed
from opnp.errors import OptionError

__all__ = ["IdSplit", "default_validation_samples", "split_test"]

_MOST = 2000


@dataclass(frozen=True, eq=False, slots=True)
class IdSplit:
    """Rows of ``test``.

    Attributes:
        validation: Those given to validation, ascending, int64.
        rest: The others, ascending, int64.

    """

    validation: Tensor
    rest: Tensor


def default_validation_samples(samples: int) -> int:
    """Return how many of the held-out samples go to validation: 30 % to one significant digit, at most 2000.

    Example:
        >>> [default_validation_samples(samples) for samples in (10000, 1300, 50)]
        [2000, 400, 20]

    """
    share = samples * 3 / 10
    unit: int = 10 ** (len(str(int(share))) - 1)
    return min(_MOST, max(1, round(share / unit) * unit))


def split_test(samples: int, *, validation_samples: int | None = None, seed: int = 0) -> IdSplit:
    """Return a random split of the rows of ``test``.

    Args:
        samples: Rows there are, at least 2.
        validation_samples: How many go to validation; None for `default_validation_samples`.
        seed: Seed of the draw.

    Raises:
        OptionError: If that leaves one of the parts empty, or `seed` is out of range.

    Example:
        >>> split = split_test(10, validation_samples=3, seed=0)
        >>> len(split.validation), sorted(split.validation.tolist() + split.rest.tolist()) == list(range(10))
        (3, True)

    """
    require_seed(seed)
    count = default_validation_samples(samples) if validation_samples is None else validation_samples
    if not 0 < count < samples:
        raise OptionError(
            f"`validation_samples` must lie in 1 to {samples - 1}, as `test` has {samples} rows, got {count}."
        )
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return IdSplit(validation=order[:count].sort().values, rest=order[count:].sort().values)
