"""Counts what went through since the last line of metrics."""

from __future__ import annotations

import time


class Throughput:
    """Sums over steps; ``read`` turns them into rates and starts over. All counts are over all ranks."""

    def __init__(self) -> None:
        self._start_over()

    def waited(self, seconds: float) -> None:
        """Time this rank spent on getting batches."""
        self._data_seconds += seconds

    def step(self, num_items: float, num_tokens: float, num_positions: float, audio_seconds: float) -> None:
        """One optimiser step's worth of data."""
        self._num_items = num_items
        self._num_tokens += num_tokens
        self._num_positions += num_positions
        self._audio_seconds += audio_seconds
        self._num_steps += 1

    def read(self, item_name: str) -> dict[str, float]:
        """Rates since the last call, by the names of tracking/metrics.py."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        values = {
            item_name: self._num_items,
            "audio_seconds_per_second": self._audio_seconds / seconds,
            "tokens_per_second": self._num_tokens / seconds,
            "padding": 1 - self._num_tokens / max(self._num_positions, 1),
            "data_seconds": self._data_seconds,
            "step_seconds": seconds / max(self._num_steps, 1),
        }
        self._start_over()
        return values

    def _start_over(self) -> None:
        self._started = time.perf_counter()
        self._num_items = self._num_tokens = self._num_positions = self._audio_seconds = self._data_seconds = 0.0
        self._num_steps = 0
