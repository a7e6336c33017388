"""How far two tensors are apart."""

from __future__ import annotations

from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the L2 norm of the difference over that of the expected tensor; 0 for two zeros.

    Args:
        actual: Any shape.
        expected: Same shape.

    Returns:
        The relative error; infinity if one of the tensors is not finite.
    """
    difference = float((actual.double() - expected.double()).norm())
    if difference != difference:
        return float("inf")
    scale = float(expected.double().norm())
    return difference / scale if scale else difference
