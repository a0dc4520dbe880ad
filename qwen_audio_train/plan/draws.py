"""A window's samples, drawn from each source at its position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.plan.budget import require_fits
from qwen_audio_train.plan.segments import Segment
from qwen_audio_train.plan.sources import Source, SourceOrder
from qwen_audio_train.plan.windows import Drawn

_SAME = ("index", "samples", "lengths")


class Draws:
    """The sources of a plan, as its windows draw from them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        # By name: in what order a configuration lists them means nothing.
        self._numbers = {source.name: number for number, source in enumerate(sources)}
        self._identities = {name: sources[number].identity() for name, number in sorted(self._numbers.items())}
        self._orders: dict[tuple[int, int, int, bool], SourceOrder] = {}

    @property
    def identities(self) -> list[dict[str, Any]]:
        """Of all sources, by name."""
        return list(self._identities.values())

    def window(self, segment: Segment, window: int) -> Drawn:
        """A window's samples and their lengths; reads no others'.

        Raises:
            ConfigError: a drawn sample does not fit a bin.
            CheckpointError: the segment's sources are not all there any more as they were.
        """
        starts, stops = segment.positions_of(window), segment.positions_of(window + 1)
        parts = [
            self._part(segment, entry, window, start, stop)
            for entry, start, stop in zip(segment.identity["sources"], starts, stops, strict=True)
        ]
        return Drawn(
            sources=np.concatenate([part.sources for part in parts]),
            samples=np.concatenate([part.samples for part in parts]),
            epochs=np.concatenate([part.epochs for part in parts]),
            tokens=np.concatenate([part.tokens for part in parts]),
            frames=np.concatenate([part.frames for part in parts]),
        )

    def _part(self, segment: Segment, entry: dict[str, Any], window: int, start: int, stop: int) -> Drawn:
        present = self._identities.get(entry["name"], {})
        if any(entry[field] != present.get(field) for field in _SAME):
            raise CheckpointError(
                f"window {window} cannot be planned any more: its source {entry['name']} was removed or changed"
            )
        number = self._numbers[entry["name"]]
        lengths = self._sources[number].lengths
        samples, epochs = self._order(number, segment).samples(start, stop)
        require_fits(self._sources[number], samples, segment.budget)
        return Drawn(
            sources=np.full(len(samples), number, np.int32),
            samples=samples,
            epochs=epochs.astype(np.int32),
            tokens=np.asarray(lengths.llm_tokens[samples], np.int64),
            frames=np.asarray(lengths.encoder_frames[samples], np.int64),
        )

    def _order(self, number: int, segment: Segment) -> SourceOrder:
        budget, source = segment.budget, self._sources[number]
        at = number, segment.seed, budget.slice_samples, budget.shuffle
        if at not in self._orders:
            self._orders[at] = SourceOrder(
                source.name,
                len(source),
                seed=segment.seed,
                slice_samples=budget.slice_samples,
                shuffle=budget.shuffle,
            )
        return self._orders[at]
