#!/usr/bin/env python
"""Show what steps of a run are made of, without training: each bin's samples, tokens, seconds, padding and fill.

python scripts/show_batch.py pretrain --tokenizer runs/quickstart/sft --step 0 1 -- experiment=quickstart/pretrain
python scripts/show_batch.py sft --tokenizer models/qwen --step 5 --world 4 --rank 1 -- data.train=data/chat run.dir=x

What follows ``--`` are the same settings as on the recipe's command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.config.load import compose
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.plan.steps import rank_bins
from qwen_audio_train.samples import IntArray

ANY_MEL_BINS = 128
"""Nothing is featurised here."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("pretrain", "sft", "dpo"))
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with a tokenizer.json (a model's folder)")
    parser.add_argument("--step", type=int, nargs="+", default=[0], help="steps, counted from 0 over all epochs")
    parser.add_argument("--world", type=int, default=1, help="number of ranks (default: %(default)s)")
    parser.add_argument("--rank", type=int, help="only this rank's bins (default: all ranks)")
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    options.overrides = given[end + 1 :]
    return options


def real_and_padded(sizes: IntArray, layout: str) -> tuple[int, int]:
    """What a bin's samples take by themselves, and with their padding."""
    total = int(sizes.sum())
    return total, int(sizes.max(initial=0)) * len(sizes) if layout == "padded" else total


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def show_bin(console: Console, batches: PlannedBatches, samples: IntArray, title: str) -> None:
    """One bin: a line a sample, and a line that sums up."""
    lengths, budget, shards = batches.plan.lengths, batches.plan.budget, batches.builder.shards
    table = Table(
        "sample", "key", "tokens", "supervised", "encoder frames", "seconds", title=title, title_justify="left"
    )
    seconds = 0.0
    for i in np.asarray(samples).tolist():
        record = shards.record(i)
        clip_seconds = sum(clip.num_samples for clip in record.clips) / SAMPLING_RATE_HZ
        seconds += clip_seconds
        sizes = (lengths.llm_tokens[i], lengths.supervised_tokens[i], lengths.encoder_frames[i])
        table.add_row(str(i), Text(record.origin.key), *map(str, sizes), f"{clip_seconds:.2f}")
    console.print(table)
    tokens, padded_tokens = real_and_padded(lengths.llm_tokens[samples], budget.layout)
    frames, padded_frames = real_and_padded(lengths.encoder_frames[samples], budget.layout)
    supervised = int(lengths.supervised_tokens[samples].sum())
    console.print(
        f"{len(samples)} samples, {seconds:.2f} s, {tokens} tokens ({supervised} supervised), {frames} encoder frames\n"
        f"padding: {share(padded_tokens - tokens, padded_tokens)} of tokens, "
        f"{share(padded_frames - frames, padded_frames)} of frames\n"
        f"fill: {share(padded_tokens, budget.llm_tokens)} of {budget.llm_tokens} tokens, "
        f"{share(padded_frames, budget.encoder_frames)} of {budget.encoder_frames} frames\n"
    )


def show_step(console: Console, batches: PlannedBatches, number: int, rank: int | None, world: int) -> None:
    """The bins of one step, of one rank or of all."""
    if not 0 <= number < batches.num_steps:
        raise ConfigError(f"--step {number}: the run has steps 0 to {batches.num_steps - 1}")
    step = batches.plan.step(number)
    console.print(Text(f"step {number} of {batches.num_steps}, epoch {step.epoch}", style="bold"))
    for of_rank in range(world) if rank is None else [rank]:
        for place, samples in enumerate(rank_bins(step, of_rank, world)):
            show_bin(console, batches, samples, f"rank {of_rank} of {world}, micro-batch {place}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(highlight=False)
    try:
        if not (options.tokenizer / "tokenizer.json").is_file():
            raise ConfigError(f"--tokenizer '{options.tokenizer}' has no tokenizer.json; name a saved model's folder")
        config = compose(options.stage, options.overrides)
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, local_files_only=True)
        batches = stage_batches(config, Front(tokenizer, ANY_MEL_BINS), rank=0, world=1)
        for number in options.step:
            show_step(console, batches, number, options.rank, options.world)
    except (QwenAudioTrainError, HydraException) as error:
        Console(stderr=True).print(Text(str(error), style="red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
