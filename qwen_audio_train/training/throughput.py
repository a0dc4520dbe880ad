"""What a run gets done and what it wastes since its last line of metrics. docs/metrics.md has the formulas."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qwen_audio_train.audio.lengths import HOP_SAMPLES, SAMPLING_RATE_HZ
from qwen_audio_train.model.flops import StepFlops
from qwen_audio_train.samples import BatchSizes
from qwen_audio_train.training.device_limits import read_peak_memory

SECONDS_PER_AUDIO_TOKEN = 4 * HOP_SAMPLES / SAMPLING_RATE_HZ
_TERA = 1e12


@dataclass(frozen=True, slots=True)
class Price:
    """What turns sizes into FLOPs, and FLOPs into a share of what the devices could do."""

    flops: StepFlops
    num_devices: int
    peak_tflops: float | None
    """Of one device; None where it is not known."""


class Throughput:
    """Sums over steps; ``read`` turns them into rates and starts over. All counts are over all ranks.

    Time spent on saving checkpoints belongs to no step: it is told apart and no rate contains it.
    """

    def __init__(
        self,
        price: Price | None = None,
        device: torch.device | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.price = price
        self._device = device
        self._clock = clock
        self._runs = False
        self._start_over()

    def start(self) -> None:
        """Before a step's batches are fetched; the first call starts the clock."""
        if not self._runs:
            self._runs = True
            self._peak_memory()
            self._start_over()

    def step(self, num_items: float, sizes: BatchSizes, *, data_seconds: float) -> None:
        """One optimiser step's worth of data, and how long its slowest rank waited for it."""
        self._num_items = num_items
        self._sizes += sizes
        self._data_seconds += data_seconds
        self._num_steps += 1

    def saved(self, seconds: float) -> None:
        """A checkpoint was saved."""
        self._checkpoint_seconds += seconds

    def read(self, item_name: str) -> dict[str, float]:
        """Rates since the last call, by the names of tracking/metrics.py."""
        seconds = max(self._clock() - self._started - self._checkpoint_seconds, 1e-9)
        num_steps, sizes = max(self._num_steps, 1), self._sizes
        data_seconds = min(self._data_seconds, seconds)
        values = {
            item_name: self._num_items,
            "audio_seconds_per_second": sizes.audio_tokens * SECONDS_PER_AUDIO_TOKEN / seconds,
            "supervised_tokens_per_second": sizes.supervised_tokens / seconds,
            "tokens_per_second": sizes.llm_tokens / seconds,
            **_padding("llm_padding", sizes.llm_tokens, sizes.llm_positions),
            **_padding("encoder_padding", sizes.encoder_frames, sizes.encoder_positions),
            "step_seconds": seconds / num_steps,
            "data_seconds": data_seconds / num_steps,
            "compute_seconds": (seconds - data_seconds) / num_steps,
            "data_wait_share": data_seconds / seconds,
            **self._utilisation(seconds),
            **self._peak_memory(),
        }
        if self._checkpoint_seconds:
            values["checkpoint_seconds"] = self._checkpoint_seconds
        self._start_over()
        return values

    def _utilisation(self, seconds: float) -> dict[str, float]:
        if self.price is None:
            return {}
        tflops = self.price.flops.step(self._sizes) / _TERA / seconds / self.price.num_devices
        values = {"model_tflops_per_second": tflops}
        if self.price.peak_tflops is not None:
            values["model_flops_utilisation"] = tflops / self.price.peak_tflops
        return values

    def _peak_memory(self) -> dict[str, float]:
        return {} if self._device is None else read_peak_memory(self._device)

    def _start_over(self) -> None:
        self._started = self._clock()
        self._num_items = self._data_seconds = self._checkpoint_seconds = 0.0
        self._sizes = BatchSizes()
        self._num_steps = 0


def _padding(name: str, num_real: int, num_run: int) -> dict[str, float]:
    """Share of what was run that was padding; nothing where nothing was run."""
    return {name: 1 - num_real / num_run} if num_run else {}
