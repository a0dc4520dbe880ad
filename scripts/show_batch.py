#!/usr/bin/env python
"""Show what steps of a run are made of, without training: each bin's samples, tokens, seconds, padding and fill.

Takes the same settings as the recipe, as scripts/preview_plan.py does. Reads metadata only: no audio, no weights.

python scripts/show_batch.py pretrain experiment=quickstart/pretrain --tokenizer runs/quickstart/sft/final --step 0 1
python scripts/show_batch.py sft data=my_mixture model.start_from=runs/pretrain/final --step 5 --world 4 --rank 1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.plan.steps import rank_bins
from qwen_audio_train.plan.windows import Bin
from qwen_audio_train.samples import IntArray
from qwen_audio_train.training.dry_run import STAGES, dry_batches


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", help="settings as the recipe takes them: data.train=... batching=...")
    parser.add_argument("--tokenizer", help="model folder or hub id whose tokenizer is used in place of the run's")
    parser.add_argument("--step", type=int, nargs="+", default=[0], help="steps, counted from 0 over all epochs")
    parser.add_argument("--world", type=int, default=1, help="number of ranks (default: %(default)s)")
    parser.add_argument("--rank", type=int, help="only this rank's bins (default: all ranks)")
    return parser.parse_intermixed_args(arguments)


def real_and_padded(sizes: IntArray, layout: str) -> tuple[int, int]:
    """What a bin's samples take by themselves, and with their padding."""
    total = int(sizes.sum())
    return total, int(sizes.max(initial=0)) * len(sizes) if layout == "padded" else total


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def show_bin(console: Console, batches: PlannedBatches, planned: Bin, title: str) -> None:
    """One bin: a line a sample, and a line that sums up."""
    budget = batches.plan.budget
    key_column = Column("key", overflow="fold")  # whole, to be given to show_sample.py --key
    headings = ("source", "sample", "epoch", key_column, "tokens", "supervised", "encoder frames", "seconds")
    table = Table(*headings, title=title, title_justify="left")
    seconds = 0.0
    sizes = np.zeros((len(planned), 3), np.int64)
    columns = (planned.sources.tolist(), planned.samples.tolist(), planned.epochs.tolist())
    for row, (source, sample, epoch) in enumerate(zip(*columns, strict=True)):
        lengths, of = batches.plan.sources[source].lengths, batches.builder.sources[source]
        sizes[row] = (lengths.llm_tokens[sample], lengths.supervised_tokens[sample], lengths.encoder_frames[sample])
        record = of.shards.record(of.number(sample))
        clip_seconds = sum(clip.num_samples for clip in record.clips) / SAMPLING_RATE_HZ
        seconds += clip_seconds
        name, key = Text(of.name), Text(record.origin.key)
        table.add_row(name, str(of.number(sample)), str(epoch), key, *map(str, sizes[row]), f"{clip_seconds:.2f}")
    console.print(table)
    tokens, padded_tokens = real_and_padded(sizes[:, 0], budget.layout)
    frames, padded_frames = real_and_padded(sizes[:, 2], budget.layout)
    console.print(
        f"{len(planned)} samples, {seconds:.2f} s, {tokens} tokens ({sizes[:, 1].sum()} supervised), "
        f"{frames} encoder frames\n"
        f"padding: {share(padded_tokens - tokens, padded_tokens)} of tokens, "
        f"{share(padded_frames - frames, padded_frames)} of frames\n"
        f"fill: {share(padded_tokens, budget.llm_tokens)} of {budget.llm_tokens} tokens, "
        f"{share(padded_frames, budget.encoder_frames)} of {budget.encoder_frames} frames\n"
    )


def show_step(console: Console, batches: PlannedBatches, number: int, rank: int | None, world: int) -> None:
    """The bins of one step, of one rank or of all."""
    skips = batches.plan.skips
    num_steps = skips.after(0, batches.num_steps)
    if not 0 <= number < num_steps:
        raise ConfigError(f"--step {number}: the run has steps 0 to {num_steps - 1}")
    step = batches.plan.step(number)
    left_out = ", left out by data.skip_steps" if number in skips else ""
    console.print(Text(f"step {number} of {num_steps}, epoch {step.epoch} of the mixture{left_out}", style="bold"))
    for of_rank in range(world) if rank is None else [rank]:
        for place, planned in enumerate(rank_bins(step, of_rank, world)):
            show_bin(console, batches, planned, f"rank {of_rank} of {world}, micro-batch {place}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(highlight=False)
    try:
        _, batches = dry_batches(options.stage, options.overrides, options.tokenizer)
        console.print(Text(batches.table), "")
        for number in options.step:
            show_step(console, batches, number, options.rank, options.world)
    except QwenAudioTrainError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
