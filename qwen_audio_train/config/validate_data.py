"""Rules of the ``data`` group that need nothing but the configuration and a look whether folders are there.

What a set holds (its tasks, languages, records) is checked where sets are opened: pipeline/sources.py.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.config.augment import AugmentConfig, augment_problems
from qwen_audio_train.config.data import DataConfig, SourceConfig, Stage
from qwen_audio_train.config.remote import is_url, remote_problems
from qwen_audio_train.config.sets import set_problems


def data_problems(data: DataConfig, stage: Stage) -> Iterator[str]:
    """Everything wrong with the ``data`` group for one recipe."""
    if data.sources:
        yield from _mixture(data, stage)
        if data.augment != AugmentConfig():
            yield "data.augment concerns data.train only: give each of data.sources its own augment"
    else:
        yield from set_problems("data.train", data.train, required=True)
        yield from _augment("data", data.augment, data)
    yield from _reading(data)
    yield from remote_problems("data.remote", data.remote)
    yield from _skipped(data.skip_steps)


def of_stage(sources: dict[str, SourceConfig], stage: Stage) -> dict[str, SourceConfig]:
    """The sources that a recipe takes."""
    return {name: source for name, source in sources.items() if source.stage in (None, stage)}


def changing_clips(data: DataConfig) -> Iterator[str]:
    """What keeps the DPO stage's reference log-probabilities from being stored: a clip that each epoch hears anew."""
    named = {f"data.sources.{name}": source.augment for name, source in of_stage(data.sources, Stage.dpo).items()}
    for name, augment in (named or {"data": data.augment}).items():
        if augment != AugmentConfig():
            yield (
                f"{name}.augment changes clips in every epoch, so preference.reference=stored has no log-probabilities "
                "of them: set preference.reference=live, or turn the augmentation off"
            )
    if data.mask_audio_spans:
        yield (
            f"data.mask_audio_spans={data.mask_audio_spans} changes clips in every epoch, so "
            "preference.reference=stored has no log-probabilities of them: set preference.reference=live, or mask none"
        )


def _mixture(data: DataConfig, stage: Stage) -> Iterator[str]:
    if data.train:
        yield f"data.train={data.train} and data.sources are both set: put the set among the sources, or drop them"
    for name, source in data.sources.items():
        yield from _source(f"data.sources.{name}", source)
        yield from _augment(f"data.sources.{name}", source.augment, data)
    taken = of_stage(data.sources, stage)
    if not taken:
        stages = ", ".join(f"{name} ({source.stage and source.stage.value})" for name, source in data.sources.items())
        yield f"data.sources has none for stage {stage.value}: there are {stages}; set one's stage to it or to null"
    with_weight = [name for name, source in taken.items() if source.weight is not None]
    without = [name for name in taken if name not in with_weight]
    if with_weight and without:
        yield (
            f"data.sources mixes weights (of {', '.join(with_weight)}) with none (of {', '.join(without)}): give every "
            "source of the stage a weight, or none"
        )
    twice = [path for path, count in Counter(_same_place(s.set) for s in taken.values() if s.set).items() if count > 1]
    for path in twice:
        names = [name for name, source in taken.items() if source.set and _same_place(source.set) == path]
        if not _disjoint([taken[name] for name in names]):
            yield (
                f"data.sources {', '.join(names)} name the same set {path}: its samples would be drawn more often than "
                "their weights say; keep one, or divide it by tasks"
            )


def _source(name: str, source: SourceConfig) -> Iterator[str]:
    yield from set_problems(f"{name}.set", source.set, required=True)
    if source.weight is not None and not (math.isfinite(source.weight) and source.weight > 0):
        yield f"{name}.weight={source.weight} must be above 0: leave the source out instead"
    if source.num_wordings is not None and source.num_wordings < 1:
        yield f"{name}.num_wordings={source.num_wordings} must be at least 1 (the official wording)"
    if source.prompt is not None and not source.prompt.strip():
        yield f"{name}.prompt={source.prompt!r} is empty: null keeps the task's own wording"


def _augment(name: str, augment: AugmentConfig, data: DataConfig) -> Iterator[str]:
    yield from augment_problems(f"{name}.augment", augment)
    if data.encode_once and augment != AugmentConfig():
        yield f"{name}.augment changes clips that data.encode_once=true encodes but once: turn one of them off"


def _disjoint(sources: list[SourceConfig]) -> bool:
    """Whether filters keep the sources from sharing a sample."""
    tasks = [task for source in sources for task in source.tasks]
    return all(source.tasks for source in sources) and len(tasks) == len(set(tasks))


def _same_place(path: str) -> str:
    return path.rstrip("/") if is_url(path) else str(Path(path).absolute())


def _reading(data: DataConfig) -> Iterator[str]:
    if data.num_workers < 0:
        yield f"data.num_workers={data.num_workers} must be 0 or more"
    if data.num_wordings < 1:
        yield f"data.num_wordings={data.num_wordings} must be at least 1 (the official wording)"
    if data.encoded_cache_gb <= 0:
        yield f"data.encoded_cache_gb={data.encoded_cache_gb} must be above 0 (data.encode_once=false keeps nothing)"
    for name in ("slice_samples", "max_bad_consecutive"):
        if getattr(data, name) < 1:
            yield f"data.{name}={getattr(data, name)} must be at least 1"
    if not 0 <= data.max_bad_share <= 1:
        yield f"data.max_bad_share={data.max_bad_share} must lie in [0, 1]"
    if data.mask_audio_spans and not data.encode_once:
        yield (
            f"data.mask_audio_spans={data.mask_audio_spans} masks encoded clips: it needs data.encode_once=true "
            "(data.augment.spec_augment masks mels)"
        )


def _skipped(stretches: list[list[int]]) -> Iterator[str]:
    for stretch in stretches:
        if len(stretch) != 2 or not 0 <= stretch[0] <= stretch[1]:
            yield f"data.skip_steps has {stretch}: a stretch is [first, last], both included, as in [[400, 420]]"
    whole = sorted(stretch for stretch in stretches if len(stretch) == 2)
    for (first, last), (following, _) in itertools.pairwise(whole):
        if following <= last:
            yield f"data.skip_steps has [{first}, {last}] and another from {following} on: join them"
