"""Drive one corpus into one set: what every file of data_prep shares, so that a corpus only lists its samples.

Samples are cut into shards by their order, each shard is written whole by one process, and a shard that is there is not
written again: a preparation that was stopped goes on where it was, and a finished one is a no-op.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qwen_audio_train.audio.decode import CONTAINERS, decode_audio, encode_flac
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError, ShardError
from qwen_audio_train.shards.contract import DATASET_FILE, MAX_MEMBER_BYTES
from qwen_audio_train.shards.dataset import describe_set, read_description
from qwen_audio_train.shards.files import TEMPORARY_SUFFIX, json_bytes, write_file
from qwen_audio_train.shards.index import index_path
from qwen_audio_train.shards.writer import EncodedClip, OnBad, ShardFile, gather_skipped, shard_name

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.json"
"""Lies in the folder while a set is being prepared; the finished set has its recipe in ``dataset.json``."""
SHARDS_AHEAD_PER_WORKER = 2

ReadClip = Callable[[Any], tuple[bytes, str]]
"""Turns what a spec says of a clip into encoded bytes and their encoding; runs in a worker, so a module-level function.
Raises ValueError or OSError for a clip that cannot be used."""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """A sample before its audio is read; small, because it travels to a worker process."""

    key: str
    metadata: Mapping[str, Any]
    """The payload and ``source``; ``license`` where it differs from the set's. Unknown fields are kept."""
    clips: tuple[Any, ...]
    """One entry a clip, for ``read_clip``: a path, or encoded bytes and their encoding."""
    skip_reason: str | None = None
    """Says why the corpus' own rules leave this one out: it is listed in ``skipped.jsonl`` and counted."""
    problem: str | None = None
    """Says why the sample is unusable: listed and counted too, or raised, as ``SetOptions.on_bad`` says."""


@dataclass(frozen=True, slots=True)
class SetOptions:
    """Where a set goes and how it is cut."""

    directory: Path
    name: str
    split: str
    license: str
    recipe: Mapping[str, Any]
    """What the content depends on (corpus, revision of its file, inputs, options): equal recipes, equal sets."""
    limit: int | None = None
    workers: int = 0
    """Processes; 0 works in this one."""
    samples_per_shard: int = 500
    on_bad: OnBad = "skip"


def read_audio_file(path: str | Path) -> tuple[bytes, str]:
    """Bytes of a file: FLAC as it is, anything else decoded and stored as 16 kHz FLAC.

    Lossy files are not kept as they are because decoders disagree about their length by some samples.

    Raises:
        ValueError: suffix not allowed, or the file is too big or does not decode.
    """
    path = Path(path)
    encoding = path.suffix.lower().removeprefix(".")
    if encoding not in CONTAINERS:
        raise ValueError(f"'{path}': suffix is not one of {', '.join(CONTAINERS)}")
    if path.stat().st_size > MAX_MEMBER_BYTES:
        raise ValueError(f"'{path}' is over {MAX_MEMBER_BYTES} bytes")
    return as_flac(path.read_bytes(), encoding)


def as_flac(data: bytes, encoding: str) -> tuple[bytes, str]:
    """``data`` when it is FLAC, else its audio as 16 kHz FLAC."""
    if encoding == "flac":
        return data, "flac"
    return encode_flac(decode_audio(data, encoding)), "flac"


def write_dataset(samples: Iterable[SampleSpec], read_clip: ReadClip, options: SetOptions) -> dict[str, Any]:
    """Write a set and return the content of its ``dataset.json``; does nothing when the set is there already.

    Raises:
        ShardError: the folder holds something prepared in another way.
        SampleError: a sample is bad and ``options.on_bad`` is ``raise``.
    """
    directory = options.directory
    recipe = {**options.recipe, "limit": options.limit, "samples_per_shard": options.samples_per_shard}
    if (directory / DATASET_FILE).exists():
        description = read_description(directory / DATASET_FILE)
        if description.get("recipe") != recipe:
            raise _other_recipe(directory)
        logger.info("%s is complete already: %d samples", directory, description["num_samples"])
        return description
    _claim(directory, recipe)
    total = len(samples) if isinstance(samples, Sized) else None
    with tqdm(
        total=min(filter(None, (total, options.limit)), default=None), desc=options.name, unit="sample"
    ) as progress:
        for num_samples in _write_shards(islice(samples, options.limit), read_clip, options):
            progress.update(num_samples)
    gather_skipped(directory)
    description = describe_set(directory, options.name, recipe=recipe)
    (directory / RECIPE_FILE).unlink()
    logger.info(
        "%s: %d samples, %.2f h, %d skipped",
        *(directory, description["num_samples"], description["seconds"] / 3600, description["num_skipped"]),
    )
    return description


def corpus_arguments(description: str, input_help: str, *, input_required: bool = True) -> argparse.ArgumentParser:
    """The arguments that every corpus has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, required=input_required, help=input_help)
    parser.add_argument("--output", type=Path, required=True, help="folder in which each set gets a folder of its own")
    parser.add_argument("--limit", type=int, help="at most so many samples a set, for trying out")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; 0 works without starting any"
    )
    return parser


def run_corpus(prepare: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and prepare; what a user can mend ends in one sentence and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parser.parse_args()
    try:
        if args.input is not None and not args.input.exists():
            raise ConfigError(f"--input {args.input} does not exist")
        if (args.limit is not None and args.limit < 1) or args.workers < 0:
            raise ConfigError(f"--limit {args.limit} --workers {args.workers}: expected at least 1 and at least 0")
        prepare(args)
    except QwenAudioTrainError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on where it was") from None


def _other_recipe(directory: Path) -> ShardError:
    return ShardError(f"'{directory}' was prepared from other inputs or options; remove it or choose another --output")


def _claim(directory: Path, recipe: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RECIPE_FILE
    if path.exists():
        if json.loads(path.read_bytes()) != json.loads(json_bytes(recipe)):
            raise _other_recipe(directory)
    elif any(directory.glob("*.tar")):
        raise _other_recipe(directory)
    for leftover in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        leftover.unlink()
    write_file(path, json_bytes(recipe))


def _write_shards(samples: Iterator[SampleSpec], read_clip: ReadClip, options: SetOptions) -> Iterator[int]:
    """Yields the number of samples dealt with, shard by shard."""
    jobs = _missing_shards(samples, options)
    if options.workers == 0:
        for path, specs in jobs:
            yield _write_shard(path, specs, read_clip, options)
        return
    with ProcessPoolExecutor(options.workers) as pool:
        running: set[Future[int]] = set()
        try:
            for path, specs in jobs:
                running.add(pool.submit(_write_shard, path, specs, read_clip, options))
                if len(running) >= SHARDS_AHEAD_PER_WORKER * options.workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _missing_shards(samples: Iterator[SampleSpec], options: SetOptions) -> Iterator[tuple[Path, list[SampleSpec]]]:
    number = 0
    while specs := list(islice(samples, options.samples_per_shard)):
        path = options.directory / shard_name(options.name, number)
        # The index is published last: where it is, the shard is whole.
        if not index_path(path).exists():
            yield path, specs
        number += 1


def _write_shard(path: Path, specs: list[SampleSpec], read_clip: ReadClip, options: SetOptions) -> int:
    shard = ShardFile(path, options.name, split=options.split, license=options.license, on_bad=options.on_bad)
    try:
        for spec in specs:
            if spec.skip_reason is not None:
                shard.leave_out(spec.key, spec.skip_reason)
                continue
            if spec.problem is not None:
                shard.skip(spec.key, spec.problem)
                continue
            try:
                clips = [EncodedClip.measure(*read_clip(clip)) for clip in spec.clips]
            except (ValueError, OSError) as error:
                shard.skip(spec.key, str(error))
                continue
            shard.write(spec.key, clips, spec.metadata)
    except BaseException:
        shard.abort()
        raise
    shard.publish()
    return len(specs)
