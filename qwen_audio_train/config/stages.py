"""The root of each recipe's configuration: which groups it has."""

from __future__ import annotations

from dataclasses import dataclass, field

from qwen_audio_train.config.adapter import AdapterConfig
from qwen_audio_train.config.batching import BatchingConfig
from qwen_audio_train.config.checkpoint import CheckpointConfig
from qwen_audio_train.config.data import DataConfig, Stage
from qwen_audio_train.config.evaluation import EvaluationConfig
from qwen_audio_train.config.export import ExportConfig
from qwen_audio_train.config.model import ModelConfig
from qwen_audio_train.config.optim import OptimConfig
from qwen_audio_train.config.preference import PreferenceConfig
from qwen_audio_train.config.run import RunConfig
from qwen_audio_train.config.runtime import RuntimeConfig
from qwen_audio_train.config.tracking import TrackingConfig
from qwen_audio_train.config.trainable import TrainableConfig


@dataclass(frozen=True)
class StageConfig:
    """What every training stage has."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainable: TrainableConfig = field(default_factory=TrainableConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """recipes/pretrain.py"""


@dataclass(frozen=True)
class SftConfig(StageConfig):
    """recipes/sft.py"""


@dataclass(frozen=True)
class DpoConfig(StageConfig):
    """recipes/dpo.py"""

    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


def stage_of(config: StageConfig) -> Stage:
    """Which of the three stages a configuration is of."""
    if isinstance(config, DpoConfig):
        return Stage.dpo
    return Stage.sft if isinstance(config, SftConfig) else Stage.pretrain


@dataclass(frozen=True)
class EvaluateConfig:
    """recipes/evaluate.py"""

    model: ModelConfig = field(default_factory=ModelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass(frozen=True)
class ExportRecipeConfig:
    """recipes/export.py"""

    export: ExportConfig = field(default_factory=ExportConfig)
