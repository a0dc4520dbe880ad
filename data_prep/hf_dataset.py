#!/usr/bin/env python
r"""Any audio set that Hugging Face datasets can stream: a name on the hub, parquet files, or an audio folder.

Audio is taken as encoded bytes and decoded by our own allow-listed decoders only; scripts inside a dataset are never
run. The column is cast to its plain storage type, because even Audio(decode=False) asks for torchcodec in datasets 5.2.

    python data_prep/hf_dataset.py --dataset google/fleurs --config fr_fr --dataset-split test \
        --text-column transcription --audio-language fr --split test --license CC-BY-4.0 --output data
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

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
MAGIC_OF_ENCODING = {
    b"fLaC": "flac",
    b"RIFF": "wav",
    b"ID3": "mp3",
    b"\xff\xfb": "mp3",
    b"\xff\xf3": "mp3",
    b"OggS": "ogg",
}
STORED_AUDIO = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
SAMPLES_PER_SHARD = 200
"""Rows carry their bytes to the workers, so fewer at a time."""


def read_row_audio(audio: Mapping[str, Any]) -> tuple[bytes, str]:
    """Encoded audio of a row: its bytes, or the local file it names. Raises ValueError when there is neither."""
    data = audio.get("bytes")
    if data is None:
        if not audio.get("path"):
            raise ValueError("row has neither audio bytes nor a path")
        return read_audio_file(audio["path"])
    for magic, encoding in MAGIC_OF_ENCODING.items():
        if data.startswith(magic):
            return as_flac(data, encoding)
    raise ValueError(f"audio bytes begin with {data[:4]!r}; expected one of {sorted(set(MAGIC_OF_ENCODING.values()))}")


def samples_of(args: argparse.Namespace) -> Iterator[SampleSpec]:
    """Samples of a streamed split, in its order."""
    stream = load_stream(args)
    for number, row in enumerate(stream):
        metadata = {
            "task": args.task,
            "audio_language": args.audio_language,
            "text_language": args.text_language or args.audio_language,
            "text": row[args.text_column],
            "source": args.dataset if not Path(args.dataset).exists() else args.name,
        }
        yield SampleSpec(f"{args.name}/{number:08d}", metadata, (row[args.audio_column],))


def load_stream(args: argparse.Namespace) -> Any:
    """The split as an iterable of rows with undecoded audio. Raises ConfigError when it cannot be had."""
    folder = Path(args.dataset)
    split = args.dataset_split
    try:
        if not folder.is_dir():
            stream = datasets.load_dataset(args.dataset, args.config, split=split, streaming=True)
        elif parquet := sorted(str(file) for file in folder.rglob("*.parquet")):
            stream = datasets.load_dataset("parquet", data_files={split: parquet}, split=split, streaming=True)
        else:
            return _audio_folder(folder, args)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"datasets cannot load '{args.dataset}' split '{split}': {error}") from error
    _check_columns(list(stream.features or next(iter(stream))), (args.audio_column, args.text_column), args)
    return stream.cast_column(args.audio_column, STORED_AUDIO)


def _audio_folder(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    found = [path for path in (folder / "metadata.csv", folder / "metadata.jsonl") if path.exists()]
    if not found:
        raise ConfigError(f"'{folder}' has neither parquet files nor metadata.csv or metadata.jsonl (an audio folder)")
    builder = "csv" if found[0].suffix == ".csv" else "json"
    rows = datasets.load_dataset(builder, data_files=str(found[0]), split="train", streaming=True)
    _check_columns(list(rows.features or next(iter(rows))), ("file_name", args.text_column), args)
    return ({**row, args.audio_column: {"bytes": None, "path": str(folder / row["file_name"])}} for row in rows)


def _check_columns(columns: list[str], wanted: tuple[str, ...], args: argparse.Namespace) -> None:
    if missing := [name for name in wanted if name not in columns]:
        raise ConfigError(f"'{args.dataset}' has no column {missing}; columns are {columns}")


def prepare(args: argparse.Namespace) -> None:
    """Write the set."""
    names = (
        "dataset",
        "config",
        "dataset_split",
        "audio_column",
        "text_column",
        "task",
        "audio_language",
        "text_language",
    )
    args.name = args.name or "_".join(filter(None, (Path(args.dataset).name, args.config, args.dataset_split)))
    options = SetOptions.from_arguments(
        args,
        name=args.name,
        split=args.split,
        license=args.license,
        recipe={"corpus": "hf_dataset", "revision": REVISION, **{name: getattr(args, name) for name in names}},
        samples_per_shard=SAMPLES_PER_SHARD,
    )
    write_dataset(samples_of(args), read_row_audio, options)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the columns."""
    parser = corpus_arguments(__doc__.splitlines()[0], "not used: see --dataset", input_required=False)
    parser.add_argument("--dataset", required=True, help="name on the hub, or a folder of parquet or audio files")
    parser.add_argument("--config", help="configuration of the dataset, where it has several")
    parser.add_argument("--dataset-split", default="train", help="split as the dataset calls it")
    parser.add_argument("--audio-column", default="audio", help="column of the audio")
    parser.add_argument("--text-column", default="text", help="column of the target text")
    parser.add_argument("--task", default="transcribe", help="task of all samples")
    parser.add_argument("--audio-language", required=True, help="ISO code of what is spoken")
    parser.add_argument("--text-language", help="ISO code of the text (default: what is spoken)")
    parser.add_argument("--split", required=True, help="train, dev or test")
    parser.add_argument("--license", required=True, help="of the dataset, for instance CC-BY-4.0")
    parser.add_argument("--name", help="of the set (default: from dataset, config and split)")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
