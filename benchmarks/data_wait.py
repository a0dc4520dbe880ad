"""Share of a training step's time that is spent waiting for data: the real loader and a real step, side by side."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_model import Dimensions, build_plain, with_lora
from benchmarks.synthetic_index import write_speech_set
from qwen_audio_train.config.batching import BatchingConfig
from qwen_audio_train.config.data import DataConfig
from qwen_audio_train.config.run import RunConfig
from qwen_audio_train.config.stages import PretrainConfig
from qwen_audio_train.config.tracking import TrackingConfig
from qwen_audio_train.losses.reduction import token_mean_share
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.tokenizer import add_audio_tokens, train_byte_level_bpe
from qwen_audio_train.pipeline.collate import to_device
from qwen_audio_train.pipeline.stage import Front, stage_batches

NUM_WORKERS = 2
WARM_UP_STEPS = 2
"""In which workers start."""
SAMPLES_PER_SHARD = 128


def data_wait(
    dims: Dimensions, device: torch.device, dtype: torch.dtype, *, tokens_per_bin: int, steps: int, lora: bool
) -> dict[str, Any]:
    """Steps of one bin, on a synthetic set of speech-like clips of 8 s on average in FLAC files.

    Returns:
        ``data_wait`` and the seconds of every step: waiting, and all.
    """
    model: Any = build_plain(EfficientQwen2Audio, dims, device, dtype)
    if lora:
        model = with_lora(model, trains_encoder=True)
    with tempfile.TemporaryDirectory(prefix="data-wait-") as folder:
        batches = _batches(Path(folder), dims, tokens_per_bin, WARM_UP_STEPS + steps)
        waited, whole = [], []
        loader = iter(batches.loader())
        for _ in range(WARM_UP_STEPS + steps):
            started = time.perf_counter()
            batch = next(loader)
            waited.append(time.perf_counter() - started)
            _step(model, batch, device)
            whole.append(time.perf_counter() - started)
        del loader  # ends its workers
    waited, whole = waited[WARM_UP_STEPS:], whole[WARM_UP_STEPS:]
    return {
        "data_wait": sum(waited) / sum(whole),
        "waited_seconds": waited,
        "step_seconds": whole,
        "workers": NUM_WORKERS,
        "tokens_per_bin": tokens_per_bin,
    }


def _step(model: Any, batch: Any, device: torch.device) -> None:
    labels = max(1, len(batch["rows"]["label_ids"]))
    scores = model(**to_device(batch, device))
    token_mean_share(scores.log_probs, num_tokens_in_step=labels, num_ranks=1).backward()
    model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batches(folder: Path, dims: Dimensions, tokens_per_bin: int, steps: int) -> Any:
    """As the pretraining recipe makes them."""
    speech = write_speech_set(folder / "speech", num_shards=2, samples_per_shard=SAMPLES_PER_SHARD)
    config = PretrainConfig(
        run=RunConfig(dir=str(folder / "run"), max_steps=steps),
        data=DataConfig(train=str(speech), cache_dir=str(folder / "cache"), num_workers=NUM_WORKERS),
        batching=BatchingConfig(
            llm_tokens_per_bin=tokens_per_bin,
            encoder_frames_per_bin=3 * tokens_per_bin,
            bins_per_step=1,
            window_samples=2 * SAMPLES_PER_SHARD,
        ),
        tracking=TrackingConfig(progress_bar=False),
    )
    tokenizer = add_audio_tokens(train_byte_level_bpe(["word " * 100], vocab_size=400), languages=("en",))
    return stage_batches(config, Front(tokenizer, dims.mel_bins), rank=0, world=1)
