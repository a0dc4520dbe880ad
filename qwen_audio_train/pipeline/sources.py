"""The sources of a stage: which of the configured ones it takes, opened, and checked against what the sets hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

from qwen_audio_train.audio.augment import Augmenter
from qwen_audio_train.config.augment import AugmentConfig
from qwen_audio_train.config.data import SourceConfig, Stage
from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.config.stages import StageConfig, stage_of
from qwen_audio_train.config.validate_data import of_stage
from qwen_audio_train.errors import ConfigError, SampleError, ShardError
from qwen_audio_train.pipeline.clips import ClipNoises
from qwen_audio_train.pipeline.measure import Selection
from qwen_audio_train.prompts.tasks import task_names
from qwen_audio_train.prompts.wordings import LANGUAGES
from qwen_audio_train.samples import TEXT_TASK, PreferenceRecord
from qwen_audio_train.shards.reader import ShardSet

SINGLE = "train"
"""Name of the source that ``data.train`` is short for."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source whose set was found and fits the stage."""

    name: str
    config: SourceConfig
    shards: ShardSet
    selection: Selection
    remote: RemoteConfig = field(default_factory=RemoteConfig)

    @property
    def weight(self) -> Fraction | None:
        """The weight as it was written: 0.3 is three tenths, not the nearest binary fraction."""
        return None if self.config.weight is None else Fraction(str(self.config.weight))

    def augmenter(self) -> Augmenter | None:
        """What changes the source's clips; None if nothing does."""
        config = self.config.augment
        if config == AugmentConfig():
            return None
        if not config.noise.probability:
            return Augmenter(config, None)
        return Augmenter(config, ClipNoises(ShardSet.open(config.noise.shard_set, remote=self.remote)))


def stage_sources(config: StageConfig) -> dict[str, SourceConfig]:
    """The sources that the stage takes, by name."""
    data = config.data
    if not data.sources:
        return {SINGLE: SourceConfig(set=data.train, augment=data.augment)}
    return of_stage(data.sources, stage_of(config))


def left_out(config: StageConfig) -> list[str]:
    """Names of the configured sources that are for other stages."""
    return [name for name in config.data.sources if name not in stage_sources(config)]


def open_sources(config: StageConfig) -> list[OpenSource]:
    """Open every source of the stage.

    Raises:
        ConfigError: with everything that keeps these sets from being trained on so, of all sources.
    """
    opened: list[OpenSource] = []
    problems: list[str] = []
    for name, source in stage_sources(config).items():
        where = f"data.sources.{name}" if config.data.sources else "data"
        try:
            shards = ShardSet.open(source.set, remote=config.data.remote)
        except ShardError as error:
            problems.append(f"{where}: {error}")
            continue
        problems += [f"{where}.{problem}" for problem in _problems(source, shards, stage_of(config))]
        selection = Selection(
            tuple(source.tasks),
            tuple(source.languages),
            source.num_wordings or config.data.num_wordings,
            source.prompt,
        )
        opened.append(OpenSource(name, source, shards, selection, config.data.remote))
    for one, two in combinations(opened, 2):
        shares = one.shards.fingerprint == two.shards.fingerprint
        if shares and not (one.selection.tasks and two.selection.tasks):
            problems.append(
                f"data.sources.{one.name} and data.sources.{two.name} hold the same samples: drop one, or divide them "
                "by tasks"
            )
    if problems:
        raise ConfigError(problems)
    return opened


def _problems(source: SourceConfig, shards: ShardSet, stage: Stage) -> Iterator[str]:
    held = shards.description["samples_by_task"]
    known_tasks = (*task_names(), TEXT_TASK)
    for name, values, known in (
        ("tasks", source.tasks, known_tasks),
        ("languages", source.languages, tuple(LANGUAGES)),
    ):
        unknown = [value for value in values if value not in known]
        if unknown:
            yield f"{name} has unknown {', '.join(unknown)}; known: {', '.join(known)}"
    absent = [task for task in source.tasks if task in known_tasks and task not in held]
    if absent:
        yield f"tasks has {', '.join(absent)}, of which '{shards.name}' has no sample; it has: {_listed(held)}"
    if (source.languages or source.prompt is not None) and not held:
        setting = "languages" if source.languages else "prompt"
        yield f"{setting} concerns pretraining samples; '{shards.name}' has none: drop the setting"
    yield from _stage_problems(shards, stage)


def _stage_problems(shards: ShardSet, stage: Stage) -> Iterator[str]:
    """From the first sample: a set holds one kind."""
    try:
        record = shards.record(0)
    except SampleError:
        return  # measuring says what is wrong with it
    is_pair = isinstance(record, PreferenceRecord)
    if is_pair != (stage is Stage.dpo):
        found = "preference pairs" if is_pair else "no preference pairs"
        yield f"set: '{shards.name}' holds {found}: it is not for stage {stage.value}; set the source's stage"


def _listed(names: dict[str, int]) -> str:
    return ", ".join(names) or "none (its samples are conversations)"
