"""What can go wrong, as classes.

Every message says what happened, where, the offending value, and the remedy. A programming error of ours is an
``assert``; everything a user can cause is one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_audio_train.samples import Origin


class QwenAudioTrainError(Exception):
    """Base of every error that a user can cause."""


class ConfigError(QwenAudioTrainError):
    """A run's configuration is wrong. Carries every problem found, not only the first."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(f"- {problem}" for problem in self.problems))


class ShardError(QwenAudioTrainError):
    """A tar, its index or its set description breaks the shard contract: nothing of it may be trusted."""


class SampleError(QwenAudioTrainError):
    """One sample is unusable. Names dataset, shard and key, so that it can be found and mended."""

    def __init__(self, origin: Origin, reason: str) -> None:
        self.origin = origin
        self.reason = reason
        super().__init__(f"{origin}: {reason}")

    def __reduce__(self) -> tuple[type[SampleError], tuple[Origin, str]]:
        # Crosses the process border of a DataLoader worker.
        return type(self), (self.origin, self.reason)


class CheckpointError(QwenAudioTrainError):
    """A checkpoint is missing, incomplete, or belongs to another run."""


class DivergedError(QwenAudioTrainError):
    """Too many steps gave a loss or gradient that cannot be applied."""


class ExportError(QwenAudioTrainError):
    """An export could not be made or did not survive reloading in stock libraries."""


class PreemptedError(QwenAudioTrainError):
    """A scheduler took the machines away and a checkpoint was saved: the same command again goes on."""
