"""What a run will cost, before a GPU is rented: hours, tokens, padding, steps, imbalance, and each source's share.

Takes the same settings as the recipe. Reads metadata only: no audio, no weights. Lengths that it measures are kept in
data.cache_dir, where the run finds them again.

python scripts/preview_plan.py pretrain data.train=data/set model.start_from=Qwen/Qwen2-Audio-7B
python scripts/preview_plan.py sft data=my_mixture model.start_from=runs/pretrain/final --tokens 2e9 --picture plan.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError
from qwen_audio_train.pipeline.batches import PlannedBatches
from qwen_audio_train.plan.bins import bin_sizes
from qwen_audio_train.plan.preview import FRAMES_PER_HOUR, EpochPreview, describe
from qwen_audio_train.plan.steps import Plan
from qwen_audio_train.training.dry_run import STAGES, dry_batches

FRAMES_PER_SECOND = 50
MOST_DRAWN = 200_000
"""Samples of a source, and bins, that the picture is drawn from: evenly spread ones where there are more."""


@dataclass
class Fill:
    """How full each bin of an epoch is, as shares of the budgets, and how uneven each step. Gathered by window."""

    plan: Plan
    tokens: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    imbalance: list[np.ndarray] = field(default_factory=list)

    def add(self, number: int) -> None:
        """Take up window ``number``, which the plan has just made."""
        window, budget = self.plan.window(number), self.plan.budget
        num_bins = len(window.ends) - 1
        if num_bins == 0:
            return
        bin_of = np.repeat(np.arange(num_bins), np.diff(window.ends))
        tokens, frames = bin_sizes(bin_of, num_bins, window.drawn.tokens, window.drawn.frames, budget)
        self.tokens.append(tokens / budget.llm_tokens)
        self.frames.append(frames / budget.encoder_frames)
        costs = (self.tokens[-1] + self.frames[-1]).reshape(len(window), -1)
        self.imbalance.append(costs.max(axis=1) / costs.mean(axis=1))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", help="settings as the recipe takes them: data.train=... batching=...")
    parser.add_argument("--tokens", type=float, help="a budget of language-model tokens: how many epochs and steps?")
    parser.add_argument("--epoch", type=int, default=0, help="epoch of the mixture to preview (default: %(default)s)")
    parser.add_argument("--tokenizer", help="model folder or hub id whose tokenizer is used in place of the run's")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--picture", type=Path, help="draw lengths and the fill of bins here (PNG)")
    options = parser.parse_intermixed_args(arguments)
    if options.tokens is not None and not options.tokens > 0:
        parser.error(f"--tokens {options.tokens}: must be above 0")
    if options.epoch < 0:
        parser.error(f"--epoch {options.epoch}: epochs count from 0")
    return options


def preview(config: StageConfig, batches: PlannedBatches, epoch: int) -> tuple[EpochPreview, Fill]:
    """An epoch of the plan in numbers, and how full its bins are."""
    plan, fill = batches.plan, Fill(batches.plan)
    first = plan.windows_of(epoch).start
    with tqdm(desc="Planning", unit="window", leave=False, disable=not config.tracking.progress_bar) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            fill.add(first + done - 1)

        made = describe(plan, epoch, progress)
    return made, fill


def summary(made: EpochPreview, tokens: float | None) -> dict[str, Any]:
    """Everything that is printed, as plain values."""
    numbers: dict[str, Any] = {
        **asdict(made),
        "waiting_share": made.waiting_share,
        "hours": made.encoder_frames / FRAMES_PER_HOUR,
        "llm_tokens_per_step": made.llm_tokens / max(1, made.steps),
    }
    if tokens is not None:
        epochs = tokens / max(1, made.llm_tokens)
        numbers["token_budget"] = {"tokens": tokens, "epochs": epochs, "steps": round(epochs * made.steps)}
    return numbers


def report(numbers: dict[str, Any]) -> str:
    """The table."""
    rows = [
        ("hours of audio", f"{numbers['hours']:,.2f}"),
        ("samples", f"{numbers['samples']:,}"),
        ("steps", f"{numbers['steps']:,}"),
        ("bins", f"{numbers['bins']:,} ({numbers['empty_bins']:,} empty)"),
        ("language-model tokens", f"{numbers['llm_tokens']:,} ({numbers['supervised_tokens']:,} supervised)"),
        ("tokens a step", f"{numbers['llm_tokens_per_step']:,.0f}"),
        ("token padding", f"{numbers['token_padding_share']:.2%}"),
        ("encoder frame padding", f"{numbers['frame_padding_share']:.2%}"),
        ("token budget unused", f"{numbers['unused_token_share']:.2%}"),
        ("frame budget unused", f"{numbers['unused_frame_share']:.2%}"),
        ("slowest / mean rank", f"{numbers['imbalance']:.3f} (waiting {numbers['waiting_share']:.2%})"),
    ]
    if "token_budget" in numbers:
        budget = numbers["token_budget"]
        rows.append(
            (f"{budget['tokens']:,.0f} tokens are", f"{budget['epochs']:.2f} epochs, {budget['steps']:,} steps")
        )
    lines = [f"Epoch {numbers['epoch']} of the mixture"]
    lines += [f"  {name:24} {value}" for name, value in rows]
    lines.append(f"  {'source':24} {'samples':>12} {'hours':>10} {'share':>8} {'epochs':>8}")
    lines += [
        f"  {source['name']:24} {source['samples']:12,} {source['hours']:10,.2f} {source['share']:8.2%} "
        f"{source['epochs']:8.2f}"
        for source in numbers["sources"]
    ]
    return "\n".join(lines)


def draw(path: Path, plan: Plan, made: EpochPreview, fill: Fill) -> None:
    """Lengths of the samples by source, and how full bins and how even steps are."""
    import matplotlib  # noqa: PLC0415 - needs a second to load, and only a picture needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, ((seconds, tokens), (filled, uneven)) = pyplot.subplots(2, 2, figsize=(10, 6.5), layout="constrained")
    names = [source.name for source in plan.sources]
    lengths = [source.lengths for source in plan.sources]
    seconds.hist([_spread(each.encoder_frames) / FRAMES_PER_SECOND for each in lengths], 40, stacked=True, label=names)
    seconds.set(title="audio of a sample", xlabel="seconds", ylabel="samples")
    seconds.legend(fontsize=8)
    tokens.hist([_spread(each.llm_tokens) for each in lengths], 40, stacked=True)
    tokens.set(title="language-model tokens of a sample", xlabel="tokens", ylabel="samples")
    shares = np.linspace(0, 1, 51)
    for parts, label in ((fill.tokens, "tokens"), (fill.frames, "encoder frames")):
        filled.hist(_spread(np.concatenate(parts)), shares, alpha=0.6, label=label)
    filled.set(title="fill of bins, padding included", xlabel="share of the budget", ylabel="bins")
    filled.legend(fontsize=8)
    uneven.hist(_spread(np.concatenate(fill.imbalance)), 40, color="tab:green")
    uneven.set(
        title=f"steps: slowest / mean rank (all: {made.imbalance:.3f})", xlabel="cost of the dearest bin / the mean bin"
    )
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _spread(values: np.ndarray) -> np.ndarray:
    """At most ``MOST_DRAWN`` of them, evenly spread."""
    return np.asarray(values[:: max(1, -(-len(values) // MOST_DRAWN))])


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        config, batches = dry_batches(options.stage, options.overrides, options.tokenizer)
        made, fill = preview(config, batches, options.epoch)
    except QwenAudioTrainError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    numbers = summary(made, options.tokens)
    print(batches.table, report(numbers), sep="\n\n")
    if options.json is not None:
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if options.picture is not None:
        draw(options.picture, batches.plan, made, fill)
    return 0


if __name__ == "__main__":
    sys.exit(main())
