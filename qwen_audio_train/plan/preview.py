"""What an epoch of a plan will cost, before anything runs: for dry runs and for choosing budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwen_audio_train.plan.bins import bin_sizes
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.plan.windows import PlannedWindow

FRAMES_PER_HOUR = 50 * 3600


@dataclass(frozen=True, slots=True)
class SourcePreview:
    """One source's part in an epoch of the mixture."""

    name: str
    samples: int
    """Drawn, repeated ones too."""
    hours: float
    """Of audio drawn, by encoder frames of 20 ms."""
    share: float
    """Of the epoch's samples."""
    epochs: float
    """Passes over the source."""


@dataclass(frozen=True, slots=True)
class EpochPreview:
    """Counts of one epoch of the mixture over all ranks. Shares are between 0 and 1."""

    epoch: int
    steps: int
    samples: int
    bins: int
    empty_bins: int
    llm_tokens: int
    """Real ones."""
    supervised_tokens: int
    encoder_frames: int
    token_padding_share: float
    """Of the tokens that are computed, how many are padding (none in the packed layout)."""
    frame_padding_share: float
    unused_token_share: float
    """Of the bins' token budget, how much neither token nor padding uses."""
    unused_frame_share: float
    imbalance: float
    """Cost of the dearest bin of a step over the mean bin's, over all steps, were there a rank for each bin. Cost is
    the share of the token budget plus the share of the frame budget."""
    sources: tuple[SourcePreview, ...]

    @property
    def waiting_share(self) -> float:
        """Of the ranks' time, how much they wait for the rank with the dearest bin."""
        return 1 - 1 / self.imbalance


def describe(plan: Plan, epoch: int, progress: Callable[[int, int], None] | None = None) -> EpochPreview:
    """Plan a whole epoch of the mixture and sum it up. Costs all of the epoch's windows (3 s a million samples).

    Args:
        progress: called with (windows done, windows of the epoch) after each window.
    """
    windows = plan.windows_of(epoch)
    totals = _Totals(plan)
    for window in windows:
        totals.add(window)
        if progress is not None:
            progress(window + 1 - windows.start, len(windows))
    return totals.preview(epoch)


class _Totals:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._steps = self._bins = self._empty = self._supervised = 0
        self._real = np.zeros(2, np.int64)
        self._computed = np.zeros(2, np.int64)
        self._budget = np.zeros(2, np.int64)
        self._dearest = self._mean = 0.0
        self._samples = np.zeros(len(plan.sources), np.int64)
        self._frames = np.zeros(len(plan.sources), np.int64)

    def add(self, number: int) -> None:
        window = self._plan.window(number)
        budget = self._plan.segment_of(number).budget
        drawn, num_bins = window.drawn, len(window.ends) - 1
        if num_bins == 0:
            return
        sizes = np.stack(bin_sizes(_bin_of(window), num_bins, drawn.tokens, drawn.frames, budget))
        costs = sizes[0] / budget.llm_tokens + sizes[1] / budget.encoder_frames
        self._steps += len(window)
        self._bins += num_bins
        self._empty += int((np.diff(window.ends) == 0).sum())
        self._real += (int(drawn.tokens.sum()), int(drawn.frames.sum()))
        self._computed += sizes.sum(axis=1)
        self._budget += (num_bins * budget.llm_tokens, num_bins * budget.encoder_frames)
        self._dearest += float(costs.reshape(len(window), -1).max(axis=1).sum())
        self._mean += float(costs.reshape(len(window), -1).mean(axis=1).sum())
        for source in range(len(self._samples)):
            mine = drawn.sources == source
            self._samples[source] += int(mine.sum())
            self._frames[source] += int(drawn.frames[mine].sum())
            supervised = self._plan.sources[source].lengths.supervised_tokens
            self._supervised += int(supervised[drawn.samples[mine]].sum(dtype=np.int64))

    def preview(self, epoch: int) -> EpochPreview:
        padding = 1 - self._real / np.maximum(self._computed, 1)
        unused = 1 - self._computed / np.maximum(self._budget, 1)
        return EpochPreview(
            epoch=epoch,
            steps=self._steps,
            samples=int(self._samples.sum()),
            bins=self._bins,
            empty_bins=self._empty,
            llm_tokens=int(self._real[0]),
            supervised_tokens=self._supervised,
            encoder_frames=int(self._real[1]),
            token_padding_share=float(padding[0]),
            frame_padding_share=float(padding[1]) if self._computed[1] else 0.0,
            unused_token_share=float(unused[0]),
            unused_frame_share=float(unused[1]),
            imbalance=self._dearest / self._mean if self._mean else 1.0,
            sources=tuple(
                SourcePreview(
                    name=source.name,
                    samples=int(samples),
                    hours=int(frames) / FRAMES_PER_HOUR,
                    share=int(samples) / max(1, int(self._samples.sum())),
                    epochs=int(samples) / len(source),
                )
                for source, samples, frames in zip(self._plan.sources, self._samples, self._frames, strict=True)
            ),
        )


def _bin_of(window: PlannedWindow) -> np.ndarray:
    return np.repeat(np.arange(len(window.ends) - 1, dtype=np.int64), np.diff(window.ends))
