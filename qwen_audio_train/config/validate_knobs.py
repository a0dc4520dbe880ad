"""Which memory and speed knobs exclude each other, and why. ``docs/knobs.md`` has the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.config.adapter import AdapterKind
from qwen_audio_train.config.model import Quantization
from qwen_audio_train.config.optim import OptimName
from qwen_audio_train.config.stages import StageConfig


def knob_problems(config: StageConfig) -> Iterator[str]:
    """Problems of 8-bit optimiser, quantised weights and compilation with the rest of a stage's configuration."""
    is_sharded = config.runtime.deepspeed is not None
    if config.optim.name is OptimName.adamw_8bit and is_sharded:
        yield (
            "optim.name=adamw_8bit cannot go with runtime.deepspeed: ZeRO flattens all parameters to one, so that the "
            "blocks of 8-bit states straddle tensors, and it shards fp32 states already: set optim.name=adamw, or "
            "runtime=auto"
        )
    if config.runtime.compile and is_sharded:
        yield (
            "runtime.compile=true cannot go with runtime.deepspeed: its hooks gather and release weights inside what "
            "would be compiled: set runtime.compile=false, or runtime=auto"
        )
    if config.model.quantization is not Quantization.none:
        yield from _quantization(config, is_sharded=is_sharded)


def _quantization(config: StageConfig, *, is_sharded: bool) -> Iterator[str]:
    name = f"model.quantization={config.model.quantization.value}"
    if config.adapter.kind is not AdapterKind.lora or not config.trainable.llm:
        yield f"{name} freezes the language model's weights: set adapter=lora and trainable.llm=true"
    if is_sharded:
        yield f"{name} cannot go with runtime.deepspeed, which was not tried: set runtime=auto or quantization=none"
    if config.runtime.compile:
        yield f"{name} cannot go with runtime.compile=true: its kernels do not compile: set runtime.compile=false"
    source = config.model.start_from
    if source is not None and (Path(source) / "adapter_config.json").is_file():
        yield (
            f"{name} with model.start_from={source}, an adapter: an adapter is merged before training goes on, and "
            "quantising the result would change it: export it (recipes/export.py) and start from its merged/"
        )
