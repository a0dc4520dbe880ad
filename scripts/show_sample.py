"""Look inside one sample: what the model reads (dim), what it learns (green), and where the audio goes.

python scripts/show_sample.py --tokenizer runs/quickstart/sft --shards data/prompts/train --index 12
python scripts/show_sample.py --tokenizer runs/quickstart/sft --shards data/prompts/train --key en-hello --ids
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError
from qwen_audio_train.model.load import load_tokenizer
from qwen_audio_train.prompts.render import AUDIO_TOKEN, Renderer
from qwen_audio_train.samples import Record, RenderedPair
from qwen_audio_train.shards.reader import ShardSet

PROMPT_STYLE, TARGET_STYLE, REJECTED_STYLE, AUDIO_STYLE = "dim", "bold green", "bold red", "cyan"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="model folder or hub id whose tokenizer is used")
    parser.add_argument("--shards", type=Path, required=True, help="folder of a shard set, or its dataset.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, default=0, help="number of the sample in the set (default: %(default)s)")
    which.add_argument("--key", help="key of the sample instead of its number")
    parser.add_argument("--wording", type=int, default=0, help="wording of a pretraining task, 0 is the official one")
    parser.add_argument("--ids", action="store_true", help="also print the token ids")
    return parser.parse_args(arguments)


def sample_number(shards: ShardSet, index: int, key: str | None) -> int:
    """Number of the sample asked for. Raises ConfigError if there is none."""
    if key is None:
        if not 0 <= index < len(shards):
            raise ConfigError(f"--index {index}: the set has samples 0 to {len(shards) - 1}")
        return index
    for number in range(len(shards)):
        if shards.origin(number).key == key:
            return number
    raise ConfigError(f"--key '{key}': none of the set's {len(shards)} samples has it; try --index")


def coloured(
    tokenizer: Any, ids: np.ndarray, supervised: np.ndarray, clip_seconds: Iterator[tuple[int, float]], target: str
) -> Text:
    """The ids as text: a run of audio slots becomes one label, supervised text is in style ``target``."""
    audio_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
    text = Text()
    tokens = zip(ids.tolist(), supervised.tolist(), strict=True)
    for (is_audio, is_target), run in groupby(tokens, key=lambda token: (token[0] == audio_id, token[1])):
        run_ids = [token for token, _ in run]
        if is_audio:
            number, seconds = next(clip_seconds)
            text.append(f"[audio {number}: {len(run_ids)} tokens, {seconds:.2f} s]", style=AUDIO_STYLE)
        else:
            text.append(tokenizer.decode(run_ids), style=target if is_target else PROMPT_STYLE)
    return text


def show(console: Console, tokenizer: Any, record: Record, wording: int, *, with_ids: bool) -> None:
    """Print one record as it is rendered."""
    rendered = Renderer(tokenizer).render_many([record], [wording])[0]
    prompt = rendered.prompt if isinstance(rendered, RenderedPair) else rendered
    seconds = iter([(n, clip.num_samples / SAMPLING_RATE_HZ) for n, clip in enumerate(record.clips, start=1)])
    console.print(Text(str(record.origin), style="bold"))
    console.print(Text(f"source {record.source}, split {record.split}, licence {record.license}", style="dim"))
    console.print(
        Text("prompt", style=PROMPT_STYLE), Text("supervised", style=TARGET_STYLE), Text("audio", AUDIO_STYLE)
    )
    console.print()
    console.print(coloured(tokenizer, prompt.input_ids, prompt.supervised, seconds, TARGET_STYLE))
    parts = [("", prompt.input_ids)]
    if isinstance(rendered, RenderedPair):
        for name, ids, style in (
            ("chosen", rendered.chosen_ids, TARGET_STYLE),
            ("rejected", rendered.rejected_ids, REJECTED_STYLE),
        ):
            body = coloured(tokenizer, ids, np.ones(len(ids), dtype=bool), iter(()), style)
            console.print(Text(f"{name}: ").append(body))
            parts.append((name, ids))
    console.print()
    targets = sum(len(ids) for _, ids in parts[1:]) or int(prompt.supervised.sum())
    total = sum(len(ids) for _, ids in parts)
    console.print(f"{total} tokens: {sum(prompt.clip_tokens)} audio, {targets} supervised")
    if with_ids:
        for name, ids in parts:
            console.print(Text(f"{name} {ids.tolist()}".strip(), style="dim"))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(highlight=False)
    try:
        shards = ShardSet.open(options.shards)
        record = shards.record(sample_number(shards, options.index, options.key))
        tokenizer = load_tokenizer(options.tokenizer)
        show(console, tokenizer, record, options.wording, with_ids=options.ids)
    except QwenAudioTrainError as error:
        Console(stderr=True).print(Text(str(error), style="red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
