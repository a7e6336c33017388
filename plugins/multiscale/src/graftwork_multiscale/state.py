"""What a saved sampler state must agree with before it is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STATE_VERSION = 1


class StateError(ValueError):
    """A saved state that belongs to another sampler, data set or number of ranks."""


def check_state(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise :class:`StateError` if a saved state was made with other options or data.

    Args:
        saved: What is to be restored.
        current: State of the sampler that is to take it.
    """
    missing = sorted(set(current) - set(saved))
    if missing or saved["version"] != STATE_VERSION:
        raise StateError(
            f"this is no state of a MultiScaleBatchSampler (version {STATE_VERSION}): "
            + (f"it lacks {', '.join(missing)}." if missing else f"its version is {saved['version']!r}.")
        )
    if saved["table"] != current["table"]:
        raise StateError(
            f"the state was saved with other scales or options. Saved table: {_describe(saved['scales'])}; "
            "this "
            f"one: {_describe(current['scales'])}. Restore the options of that run, or start without its "
            "state."
        )
    if saved["samples"] != current["samples"]:
        raise StateError(
            f"the state was saved with {saved['samples']} samples, this data set has {current['samples']}; "
            "the "
            "remaining batches of the epoch cannot be found. Use the same data, or begin a new epoch."
        )


def _describe(scales: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{height}x{width}:{batch}" for height, width, batch in scales)
