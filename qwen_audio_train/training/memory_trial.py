"""One trial of a token budget: real optimiser steps of a stage on bins of the costliest kind, and where memory went.

A process of its own (``python -m qwen_audio_train.training.memory_trial REQUEST.json``), because a process's peak only
ever grows and an allocator keeps what it once had. ``scripts/probe_memory.py`` starts it, under torchrun for several
ranks, and reads ``result-<rank>.json`` beside the request.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoConfig, TrainerCallback, TrainingArguments

from qwen_audio_train.audio import lengths
from qwen_audio_train.config.load import compose
from qwen_audio_train.config.preference import Reference
from qwen_audio_train.config.stages import DpoConfig, StageConfig
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.knobs import checkpoint_activations, compile_pointwise
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.model.span_attention import SPANS
from qwen_audio_train.model.trainable import choose_trainable, lora_config, with_adapter
from qwen_audio_train.pipeline.collate import Collator
from qwen_audio_train.pipeline.quarantine import Limits, MicroBatch, Quarantine
from qwen_audio_train.pipeline.reference_scores import REFERENCE_KEYS
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.samples import ClipFeatures, EncodedClip, Rendered, RenderedPair
from qwen_audio_train.training import runtime
from qwen_audio_train.training.arguments import preference_arguments, trainer_arguments
from qwen_audio_train.training.initial_model import initial_model
from qwen_audio_train.training.trainer import LikelihoodTrainer

NUM_STEPS = 2
"""The optimiser's states appear in the first; the second is what a run costs from then on."""
LONGEST_CLIP_SAMPLES = 30 * 16_000
LONGEST_CLIP_FRAMES = 1500
LONGEST_CLIP_TOKENS = 750
SECONDS_BETWEEN_LOOKS = 0.02
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Request:
    """What to try."""

    stage: str
    overrides: list[str]
    llm_tokens: int
    encoder_frames: int
    limit_bytes: int | None
    random_weights: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What one rank held, in bytes."""

    fits: bool
    peak: int
    process: int = 0
    """Before there was a model: interpreter and libraries (CPU only)."""
    parameters: int = 0
    """Of the model, and of a reference beside it."""
    gradients: int = 0
    """Zero under ZeRO, which keeps them in buffers of its own: they are in the remainder then."""
    optimiser: int = 0
    """With the fp32 copies that ZeRO keeps of bf16 weights."""

    @property
    def activations(self) -> int:
        """The remainder of the peak."""
        return max(0, self.peak - self.process - self.parameters - self.gradients - self.optimiser)


def worst_bin(llm_tokens: int, encoder_frames: int) -> tuple[int, int]:
    """Clips of 30 s and tokens of each row in the costliest bin that fits both budgets: full of both."""
    num_clips = max(1, min(encoder_frames // LONGEST_CLIP_FRAMES, llm_tokens // (LONGEST_CLIP_TOKENS + 2)))
    return num_clips, llm_tokens // num_clips


def synthetic_batch(config: StageConfig, collator: Collator, *, num_mel_bins: int, encoder_width: int) -> MicroBatch:
    """A bin of samples with one 30 s clip each, all text supervised: most logits, most frames, no padding."""
    budget = config.batching
    num_rows, row_tokens = worst_bin(budget.llm_tokens_per_bin, budget.encoder_frames_per_bin)
    text_tokens = row_tokens - LONGEST_CLIP_TOKENS
    audio = np.full(LONGEST_CLIP_TOKENS, collator.audio_id, np.int32)
    text = np.ones(text_tokens, np.int32)
    clip: ClipFeatures | EncodedClip
    if config.data.encode_once:
        clip = EncodedClip(np.zeros((LONGEST_CLIP_TOKENS, encoder_width), np.float32))
    else:
        shape = (num_mel_bins, lengths.input_mel_frames(LONGEST_CLIP_SAMPLES))
        clip = ClipFeatures(np.zeros(shape, np.float32), lengths.mel_frames(LONGEST_CLIP_SAMPLES))
    clips = [[clip]] * num_rows
    if isinstance(config, DpoConfig):
        # Both answers share a packed row's text; in the padded layout a pair counts as the two rows that it takes.
        is_packed = collator.layout == "packed"
        answer = text[: max(1, text_tokens // 2 if is_packed else row_tokens // 2 - LONGEST_CLIP_TOKENS)]
        prompt = Rendered(audio, np.zeros(len(audio), np.bool_), (LONGEST_CLIP_TOKENS,))
        batch, sizes = collator.pairs([RenderedPair(prompt, answer, answer)] * num_rows, clips)
        if config.preference.reference is Reference.stored:
            batch |= dict.fromkeys(REFERENCE_KEYS, torch.zeros(num_rows))
        return MicroBatch(batch, sizes=sizes)
    supervised = np.concatenate([np.zeros(len(audio), np.bool_), np.ones(text_tokens, np.bool_)])
    whole = Rendered(np.concatenate([audio, text]), supervised, (LONGEST_CLIP_TOKENS,))
    batch, sizes = collator.rows([whole] * num_rows, clips)
    return MicroBatch(batch, sizes=sizes)


class SyntheticBatches:
    """Stands where a trainer expects a plan's batches: the same bin again and again."""

    table = ""
    start_step = 0

    def __init__(self, batch: MicroBatch, *, bins_per_rank: int, quarantine: Quarantine) -> None:
        self.batch, self.bins_per_rank, self.quarantine = batch, bins_per_rank, quarantine
        self.num_steps = NUM_STEPS

    def loader(self) -> DataLoader[MicroBatch]:
        """As many bins as the steps take."""
        return DataLoader([self.batch] * (NUM_STEPS * self.bins_per_rank), batch_size=None)  # type: ignore[arg-type]

    def epoch_after(self, step: int) -> float:
        """There are no epochs here."""
        return 0.0


def _config(request: Request, run_dir: str, world: int) -> StageConfig:
    own = [
        f"batching.llm_tokens_per_bin={request.llm_tokens}",
        f"batching.encoder_frames_per_bin={request.encoder_frames}",
        f"run.dir={run_dir}",
        f"run.max_steps={NUM_STEPS}",
        "run.epochs=null",
        "tracking=none",
    ]
    config: StageConfig = compose(request.stage, [*request.overrides, *own])
    # Two bins where the run accumulates: gradients then lie beside the second bin's activations.
    bins = min(2, max(1, config.batching.bins_per_step // world)) * world
    return compose(request.stage, [*request.overrides, *own, f"batching.bins_per_step={bins}"])


def _model(config: StageConfig, source: str, *, random_weights: bool) -> Any:
    if not random_weights:
        return load_model(source, config.model)
    dtype = getattr(torch, config.model.precision.value)
    settings = AutoConfig.from_pretrained(source)
    model = EfficientQwen2Audio._from_config(settings, dtype=dtype, attn_implementation=SPANS)
    model.attention_kernel = config.model.attention
    checkpoint_activations(model, encoder=config.model.checkpoint_encoder, llm=config.model.checkpoint_llm)
    return model


def _trainer(config: StageConfig, request: Request, ranks: runtime.Ranks) -> Any:
    """As the recipe makes it, over synthetic bins."""
    source = initial_model(config, ranks)
    processor = load_processor(source)
    arguments = trainer_arguments(config, ranks=ranks, num_steps=NUM_STEPS) | {"save_strategy": "no"}
    settings: Any = AutoConfig.from_pretrained(source)
    front = Front.of(processor, None)
    batch = synthetic_batch(
        config,
        front.collator(config.batching.layout),
        num_mel_bins=front.num_mel_bins,
        encoder_width=settings.audio_config.d_model,
    )
    shared: dict[str, Any] = {
        "batches": SyntheticBatches(
            batch,
            bins_per_rank=config.batching.bins_per_step // ranks.world,
            quarantine=Quarantine(Path(config.run.dir), Limits(1, 0.0), rank=ranks.rank),
        ),
        "checkpoints": config.checkpoint,
    }
    lora = lora_config(config.adapter, config.trainable)
    if isinstance(config, DpoConfig):
        from trl import DPOConfig  # noqa: PLC0415 - takes seconds to import; only this stage pays for it

        from qwen_audio_train.training.dpo_trainer import AudioDPOTrainer  # noqa: PLC0415

        dpo_arguments = DPOConfig(**arguments, **preference_arguments(config.preference))
        model = _learner(config, source, request)
        reference = None
        if lora is None and config.preference.reference is Reference.live:
            reference = _model(config, source, random_weights=request.random_weights).requires_grad_(False)
        tokenizer = processor.tokenizer
        return AudioDPOTrainer(
            model=model, ref_model=reference, peft_config=lora, args=dpo_arguments, processing_class=tokenizer, **shared
        )
    likelihood_arguments = TrainingArguments(**arguments)
    return LikelihoodTrainer(
        model=with_adapter(_learner(config, source, request), lora), args=likelihood_arguments, **shared
    )


def _learner(config: StageConfig, source: str, request: Request) -> Any:
    model = _model(config, source, random_weights=request.random_weights)
    compile_pointwise(model, wanted=config.runtime.compile)
    choose_trainable(model, config.trainable)
    return model


class _Gradients(TrainerCallback):  # type: ignore[misc]
    """Weighs gradients when all are there."""

    num_bytes = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.num_bytes = sum(_bytes(p.grad) for p in model.parameters() if p.grad is not None)


def _bytes(tensor: torch.Tensor) -> int:
    held = getattr(tensor, "ds_tensor", tensor)  # ZeRO-3: this rank's part
    return int(held.numel() * held.element_size())


def optimiser_bytes(optimiser: Any) -> int:
    """Of all states of the innermost optimiser, and of the fp32 copies that ZeRO makes it move."""
    is_sharded = False
    while hasattr(optimiser, "optimizer"):
        optimiser = optimiser.optimizer
        is_sharded = is_sharded or "deepspeed" in type(optimiser).__module__
    states = (value for state in optimiser.state.values() for value in state.values())
    total = sum(_bytes(value) for value in states if isinstance(value, torch.Tensor))
    if is_sharded:
        total += sum(_bytes(copy) for group in optimiser.param_groups for copy in group["params"])
    return total


def peak_resident_bytes() -> int:
    """Of this program so far. Linux only: elsewhere the peak counts in other units, and with what started this one."""
    status = STATUS.read_text(encoding="utf-8")
    # getrusage's ru_maxrss would begin at the starting process's size, which exec hands down.
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024


def watch(limit_bytes: int, result: Path) -> None:
    """End this process as soon as it has held more: what would swap or be killed must not drag the machine down."""

    def until_over() -> None:
        while peak_resident_bytes() <= limit_bytes:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        result.write_text(json.dumps(asdict(Result(fits=False, peak=peak_resident_bytes()))), encoding="utf-8")
        os._exit(1)

    threading.Thread(target=until_over, daemon=True).start()


def measure(request: Request, folder: Path) -> Result:
    """Take the steps. Raises whatever the stage raises."""
    result = folder / f"result-{os.environ.get('RANK', '0')}.json"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as alone:
        config = _config(request, alone if world == 1 else str(folder / "run"), world)
        ranks = runtime.start(config.runtime, seed=config.run.seed)
        Path(config.run.dir).mkdir(exist_ok=True)
        process = peak_resident_bytes() if ranks.uses_cpu else 0
        if ranks.uses_cpu and request.limit_bytes is not None:
            watch(request.limit_bytes, result)
        try:
            measured = _steps(config, request, ranks, process)
        except torch.OutOfMemoryError:
            measured = Result(fits=False, peak=torch.cuda.max_memory_allocated())
        runtime.stop()
    result.write_text(json.dumps(asdict(measured)), encoding="utf-8")
    return measured


def _steps(config: StageConfig, request: Request, ranks: runtime.Ranks, process: int) -> Result:
    trainer = _trainer(config, request, ranks)
    gradients = _Gradients()
    trainer.add_callback(gradients)
    try:
        trainer.train()
    finally:
        trainer.stopper.release()
    peak = peak_resident_bytes() if ranks.uses_cpu else torch.cuda.max_memory_allocated()
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    return Result(
        fits=request.limit_bytes is None or peak <= request.limit_bytes,
        peak=peak,
        process=process,
        parameters=sum(_bytes(parameter) for model in models if model is not None for parameter in model.parameters()),
        gradients=gradients.num_bytes,
        optimiser=optimiser_bytes(trainer.optimizer),
    )


if __name__ == "__main__":
    request_file = Path(sys.argv[1])
    measure(Request(**json.loads(request_file.read_text(encoding="utf-8"))), request_file.parent)
