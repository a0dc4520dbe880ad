"""Every cross-field rule of a configuration; all problems at once, each with its remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from qwen_audio_train.config.adapter import AdapterKind
from qwen_audio_train.config.evaluation import EvaluationConfig
from qwen_audio_train.config.export import ExportConfig
from qwen_audio_train.config.model import Precision
from qwen_audio_train.config.optim import OptimConfig
from qwen_audio_train.config.preference import LOSS_TYPES, PreferenceConfig, Reference
from qwen_audio_train.config.remote import remote_problems
from qwen_audio_train.config.run import RunConfig
from qwen_audio_train.config.runtime import RuntimeConfig
from qwen_audio_train.config.sets import set_problems
from qwen_audio_train.config.stages import (
    DpoConfig,
    EvaluateConfig,
    ExportRecipeConfig,
    SftConfig,
    StageConfig,
    stage_of,
)
from qwen_audio_train.config.validate_data import changing_clips, data_problems
from qwen_audio_train.config.validate_knobs import knob_problems

FRAMES_OF_LONGEST_CLIP = 1500


def problems_of(config: object) -> list[str]:
    """Human-readable problems of any recipe's configuration; empty when it can run."""
    if isinstance(config, StageConfig):
        return list(_stage(config))
    if isinstance(config, EvaluateConfig):
        return list(_evaluation(config.evaluation, model=config.model.start_from))
    if isinstance(config, ExportRecipeConfig):
        return list(_export(config.export))
    raise TypeError(f"no rules for {type(config).__name__}")


def _stage(config: StageConfig) -> Iterator[str]:
    yield from _run(config.run)
    yield from data_problems(config.data, stage_of(config))
    yield from _optim(config.optim)
    yield from _model(config)
    yield from _precision(config)
    yield from knob_problems(config)
    yield from _batching(config)
    yield from _counts(config)
    yield from _hangs(config.runtime)
    if isinstance(config, DpoConfig):
        yield from _preference(config.preference)
        if config.preference.reference is Reference.stored:
            yield from changing_clips(config.data)
    if config.runtime.deepspeed is not None:
        yield from _deepspeed(Path(config.runtime.deepspeed))


def _run(run: RunConfig) -> Iterator[str]:
    if not run.dir:
        yield "run.dir is empty: say where the run's files go, for instance run.dir=runs/my_run"
    if (run.max_steps is None) == (run.epochs is None):
        yield f"run.max_steps={run.max_steps} and run.epochs={run.epochs}: set exactly one of them"
    for name, value in (("max_steps", run.max_steps), ("epochs", run.epochs)):
        if value is not None and value <= 0:
            yield f"run.{name}={value} must be above 0"


def _model(config: StageConfig) -> Iterator[str]:
    trainable, lora = config.trainable, config.adapter.kind is AdapterKind.lora
    if not (trainable.encoder or trainable.projector or trainable.llm):
        yield "trainable: nothing trains; turn on at least one of trainable.encoder, trainable.projector, trainable.llm"
    if lora and not (trainable.encoder or trainable.llm):
        yield "adapter.kind=lora has no place: turn on trainable.llm or trainable.encoder, or set adapter=none"
    if lora and config.adapter.rank < 1:
        yield f"adapter.rank={config.adapter.rank} must be at least 1"
    if config.data.encode_once and trainable.encoder:
        yield "data.encode_once=true needs a frozen encoder: set trainable.encoder=false"
    if isinstance(config, SftConfig | DpoConfig) and config.model.start_from is None:
        yield (
            "model.start_from is not set: this stage goes on from the previous one, for instance "
            "model.start_from=runs/pretrain/final (or a hub id such as Qwen/Qwen2-Audio-7B)"
        )
    if config.model.start_from is not None:
        yield from _local_model("model.start_from", config.model.start_from)


def _precision(config: StageConfig) -> Iterator[str]:
    is_full = config.adapter.kind is AdapterKind.none
    if config.model.precision is Precision.bfloat16 and is_full and config.runtime.deepspeed is None:
        yield (
            "model.precision=bfloat16 trains bf16 weights that have no fp32 copy, so small updates are rounded away: "
            "choose runtime=zero2 or zero3 (which keep one), adapter=lora, or model.precision=float32 with "
            "runtime.autocast_bfloat16=true"
        )


def _local_model(name: str, source: str) -> Iterator[str]:
    """A path that looks local must hold a model; anything shaped like ``owner/name`` may be a hub id."""
    path = Path(source)
    looks_like_hub_id = source.count("/") == 1 and not source.startswith((".", "/", "~", "runs/"))
    if path.is_dir():
        if not (path / "config.json").exists() and not (path / "adapter_config.json").exists():
            yield f"{name}={source} holds neither config.json nor adapter_config.json: is the stage before finished?"
    elif not looks_like_hub_id:
        yield f"{name}={source} does not exist: run the stage before first, or mend the path"


def _batching(config: StageConfig) -> Iterator[str]:
    batching = config.batching
    if batching.bins_per_step < 1:
        yield f"batching.bins_per_step={batching.bins_per_step} must be at least 1"
    if batching.encoder_frames_per_bin < FRAMES_OF_LONGEST_CLIP:
        yield (
            f"batching.encoder_frames_per_bin={batching.encoder_frames_per_bin} cannot hold one 30 s clip "
            f"({FRAMES_OF_LONGEST_CLIP} frames): raise it"
        )
    for name in ("llm_tokens_per_bin", "window_samples"):
        if getattr(batching, name) < 1:
            yield f"batching.{name}={getattr(batching, name)} must be at least 1"
    if 1 <= batching.window_samples < batching.bins_per_step:
        yield (
            f"batching.window_samples={batching.window_samples} cannot fill batching.bins_per_step="
            f"{batching.bins_per_step} bins: raise it to that or more"
        )


def _counts(config: StageConfig) -> Iterator[str]:
    for name, value in (
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("checkpoint.keep_last", config.checkpoint.keep_last),
        ("tracking.log_every_steps", config.tracking.log_every_steps),
    ):
        if value < 1:
            yield f"{name}={value} must be at least 1"
    peak = config.tracking.peak_tflops
    if peak is not None and peak <= 0:
        yield f"tracking.peak_tflops={peak} must be above 0, or null to look the GPU up by its name"
    every, kept = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
    if kept < 0 or (every > 0 and kept % every):
        yield f"checkpoint.keep_every_steps={kept} must be 0 or a multiple of checkpoint.every_steps={every}"


def _hangs(runtime: RuntimeConfig) -> Iterator[str]:
    hang, end = runtime.hang_seconds, runtime.hang_exit_seconds
    for name, value in (("hang_seconds", hang), ("hang_exit_seconds", end)):
        if value < 0:
            yield f"runtime.{name}={value} must be above 0, or 0 to turn it off"
    if 0 < end <= hang or (end > 0 and hang == 0):
        yield f"runtime.hang_exit_seconds={end} must be above runtime.hang_seconds={hang}, which comes first; or 0"


def _optim(optim: OptimConfig) -> Iterator[str]:
    if optim.learning_rate <= 0:
        yield f"optim.learning_rate={optim.learning_rate} must be above 0"
    if not 0 <= optim.final_learning_rate_ratio <= 1:
        yield f"optim.final_learning_rate_ratio={optim.final_learning_rate_ratio} must lie in [0, 1]"
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            yield f"optim.{name}={getattr(optim, name)} must lie in [0, 1)"
    if optim.warmup_steps < 0:
        yield f"optim.warmup_steps={optim.warmup_steps} must be 0 or more"
    for name in ("max_skipped_consecutive", "spike_window_steps"):
        if getattr(optim, name) < 1:
            yield f"optim.{name}={getattr(optim, name)} must be at least 1"
    if not 0 <= optim.max_skipped_share <= 1:
        yield f"optim.max_skipped_share={optim.max_skipped_share} must lie in [0, 1]"
    if optim.spike_factor != 0 and optim.spike_factor <= 1:
        yield f"optim.spike_factor={optim.spike_factor} must be above 1, or 0 to look for no spikes"


def _preference(preference: PreferenceConfig) -> Iterator[str]:
    if preference.beta <= 0:
        yield f"preference.beta={preference.beta} must be above 0"
    if not preference.loss_types:
        yield "preference.loss_types is empty: name at least one, for instance preference.loss_types=[sigmoid]"
    unknown = [name for name in preference.loss_types if name not in LOSS_TYPES]
    if unknown:
        yield f"preference.loss_types has unknown {', '.join(unknown)}; known: {', '.join(LOSS_TYPES)}"
    if preference.loss_weights and len(preference.loss_weights) != len(preference.loss_types):
        yield (
            f"preference.loss_weights has {len(preference.loss_weights)} entries for "
            f"{len(preference.loss_types)} loss types: give one each, or none"
        )


def _deepspeed(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"runtime.deepspeed={path} does not exist: see configs/deepspeed/"
        return
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"runtime.deepspeed={path} is not JSON: {error}"
        return
    if "zero_optimization" not in settings:
        yield f"runtime.deepspeed={path} has no 'zero_optimization' section"
    elif settings["zero_optimization"].get("stage") not in (1, 2, 3):
        yield f"runtime.deepspeed={path}: zero_optimization.stage must be 1, 2 or 3; without DeepSpeed, runtime=auto"
    if settings.get("bf16", {}).get("check_grad_overflow") is False:
        yield f"runtime.deepspeed={path} turns bf16.check_grad_overflow off: a gradient of NaN would be applied"


def _evaluation(evaluation: EvaluationConfig, *, model: str | None) -> Iterator[str]:
    if model is None:
        yield "model.start_from is not set: say which model folder to score"
    else:
        yield from _local_model("model.start_from", model)
    if not evaluation.output:
        yield "evaluation.output is empty: say where scores and predictions go"
    yield from set_problems("evaluation.pretrain_set", evaluation.pretrain_set, required=not evaluation.preference_set)
    yield from set_problems("evaluation.preference_set", evaluation.preference_set, required=False)
    yield from remote_problems("evaluation.remote", evaluation.remote)
    if evaluation.preference_set and not evaluation.reference:
        yield "evaluation.preference_set needs evaluation.reference: the model folder that rewards are measured against"
    if evaluation.reference:
        yield from _local_model("evaluation.reference", evaluation.reference)
    for name in ("max_new_tokens", "llm_tokens_per_batch"):
        if getattr(evaluation, name) < 1:
            yield f"evaluation.{name}={getattr(evaluation, name)} must be at least 1"
    if evaluation.encoded_cache_gb <= 0:
        yield f"evaluation.encoded_cache_gb={evaluation.encoded_cache_gb} must be above 0"
    if evaluation.limit is not None and evaluation.limit < 1:
        yield f"evaluation.limit={evaluation.limit} must be at least 1, or null for all"


def _export(export: ExportConfig) -> Iterator[str]:
    if not export.stage:
        yield "export.stage is empty: name the stage's final folder, for instance export.stage=runs/dpo/final"
    else:
        yield from _local_model("export.stage", export.stage)
    if not export.output:
        yield "export.output is empty: say where the export goes"
    yield from set_problems("export.verify_set", export.verify_set, required=True)
    yield from remote_problems("export.remote", export.remote)
