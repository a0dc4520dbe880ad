#!/usr/bin/env python
"""Align-Anything text-audio-to-text: preference pairs over audio, as local parquet files (CC-BY-NC-4.0).

Assumed columns: prompt, response_1, response_2, overall_response (1 or 2: the better one), and the clip in audio_path
or audio: encoded bytes {bytes, path}, samples {array, sampling_rate}, or a path below --audio. We know their names and
have not seen the files: anything else stops with the columns that are there. Makes align_anything_preference_train.

    python data_prep/align_anything.py --input /corpora/align-anything/text-audio-to-text --output data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet
import soxr

from qwen_audio_train.audio.decode import encode_flac
from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.prepare import (
    SampleSpec,
    SetOptions,
    as_flac,
    corpus_arguments,
    read_audio_file,
    run_corpus,
    write_dataset,
)

REVISION = 1
COLUMNS = ("prompt", "response_1", "response_2", "overall_response")
AUDIO_COLUMNS = ("audio_path", "audio")
ROWS_AT_ONCE = 32
MAGIC = {b"fLaC": "flac", b"RIFF": "wav", b"OggS": "ogg", b"ID3": "mp3", b"\xff\xfb": "mp3", b"\xff\xf3": "mp3"}


def read_clip(audio: Any) -> tuple[bytes, str]:
    """A row's clip in any of its three forms. Raises ValueError for anything else."""
    if isinstance(audio, str):
        return read_audio_file(audio)
    if isinstance(audio, Mapping) and audio.get("array") is not None:
        samples = np.asarray(audio["array"], dtype=np.float32)
        mono = samples if samples.ndim == 1 else samples.mean(axis=int(samples.shape[0] > samples.shape[-1]))
        rate_hz = int(audio["sampling_rate"])
        return encode_flac(
            mono if rate_hz == SAMPLING_RATE_HZ else soxr.resample(mono, rate_hz, SAMPLING_RATE_HZ)
        ), "flac"
    data = audio.get("bytes") if isinstance(audio, Mapping) else None
    for magic, encoding in MAGIC.items():
        if data and data.startswith(magic):
            return as_flac(data, encoding)
    raise ValueError(f"audio begins with {data[:4]!r}" if data else "row without audio bytes, samples or path")


def samples_of(files: list[Path], audio_root: Path) -> Iterator[SampleSpec]:
    """Every row of every file. Raises ConfigError where a column is missing."""
    for path in files:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        audio_column = next((name for name in AUDIO_COLUMNS if name in names), None)
        missing = [name for name in COLUMNS if name not in names]
        if missing or audio_column is None:
            raise ConfigError(
                f"'{path}' has the columns {', '.join(names)}; expected {', '.join(COLUMNS)} and one of "
                f"{' or '.join(AUDIO_COLUMNS)}"
            )
        number = 0
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=[*COLUMNS, audio_column]):
            for row in batch.to_pylist():
                yield _spec(f"{path.stem.replace('.', '_')[-60:]}/{number:06d}", row, row[audio_column], audio_root)
                number += 1


def _spec(key: str, row: Mapping[str, Any], audio: Any, audio_root: Path) -> SampleSpec:
    first, second, better = (str(row["response_1"] or "").strip(), str(row["response_2"] or "").strip(), None)
    problem = f"overall_response is {row['overall_response']!r}; expected 1 or 2"
    if str(row["overall_response"]) in ("1", "2"):
        better, problem = int(row["overall_response"]), ""
    if isinstance(audio, str):
        inside = not PurePosixPath(audio).is_absolute() and ".." not in PurePosixPath(audio).parts
        problem = problem or ("" if inside else f"audio path outside --audio: {audio}")
        audio = str(audio_root / audio)
    reason = "both answers are equal" if first == second else None
    content = [{"type": "audio"}, {"type": "text", "text": str(row["prompt"] or "").strip()}]
    metadata = {
        "messages": [{"role": "user", "content": content}],
        "chosen": second if better == 2 else first,
        "rejected": first if better == 2 else second,
        "source": "align-anything-text-audio-to-text",
        "judge": "human, overall_response",
    }
    return SampleSpec(key, metadata, (audio,), reason, problem or None)


def prepare(args: argparse.Namespace) -> None:
    """Write the set."""
    files = sorted(args.input.rglob("*.parquet"))
    if not files:
        raise ConfigError(f"'{args.input}' holds no parquet files")
    options = SetOptions.from_arguments(
        args,
        name="align_anything_preference_train",
        split="train",
        license="CC-BY-NC-4.0",
        recipe={"corpus": "align_anything", "revision": REVISION, "files": [path.name for path in files]},
        samples_per_shard=200,
    )
    write_dataset(samples_of(files, args.audio or args.input), read_clip, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the clips' folder."""
    parser = corpus_arguments(__doc__.splitlines()[0], "the folder of the parquet files")
    parser.add_argument("--audio", type=Path, help="folder of the clips where rows hold paths (default: --input)")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
