"""Whether a data set gives the same sample each time: a score must be of what it is joined to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_suite.cli.scoring_data import ScoringData
from lightning_suite.errors import SuiteError

_READS = 6  # of each sample: what changes every second time is missed once in 30,000


def refuse_random_data(data: ScoringData, name: str, reads: int = _READS) -> None:
    """Read the first, middle and last sample some times, and refuse those that differ.

    The global states of random numbers are as before afterwards. Data sets that draw from the
    index of the sample give the same each time, and pass.

    Args:
        data: The samples.
        name: Of the data, for the message.
        reads: How often each of the three is read.

    Raises:
        RandomDataError: A sample differs from one reading to the next.
    """
    n = len(data.ids)
    with isolate_rng():
        for index in sorted({0, n // 2, n - 1}) if n else ():
            first = data.fetch([index])
            if not all(same(first, data.fetch([index])) for _ in range(1, reads)):
                raise RandomDataError(
                    f"{name}: sample {data.ids[index]!r} is another one each time it is read: the "
                    "training data are random (augmentation, dropped words, noise). A score must "
                    "be of the sample that it is joined to, and a run that is continued would "
                    "score others. Turn the randomness off for `score`, for example by an argument "
                    "of the data module, or draw it from a generator seeded with the sample's "
                    "index."
                )


class RandomDataError(SuiteError):
    """A data set gives another sample each time the same one is asked for."""


def same(one: Any, other: Any) -> bool:
    """Return whether two values hold the same, to the bit; True where that cannot be told."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return _equal(one.detach().cpu(), other.detach().cpu())
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and bool(_content(one) == _content(other))
    if isinstance(one, (str, bytes, int, float, complex)):
        return bool(one == other or one != one)  # noqa: PLR0124 (NaN)
    return _same_parts(one, other)


def _same_parts(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, Sequence):
        return len(one) == len(other) and all(map(same, one, other))
    return same(vars(one), vars(other)) if hasattr(one, "__dict__") else True


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _content(array: np.ndarray[Any, Any]) -> Any:
    return array.tolist() if array.dtype == object else array.tobytes()
