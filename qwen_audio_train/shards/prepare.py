"""Drive one corpus into one set: what every file of data_prep shares, so that a corpus only lists its samples.

Samples are cut into shards by their order, each shard is written whole by one process, and a shard that is there is not
written again: a preparation that was stopped goes on where it was, and a finished one is a no-op. Machines divide a set
by ``--part I/N`` (parts.py); one call with ``--finish`` then describes it.
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
from qwen_audio_train.shards.dataset import read_description
from qwen_audio_train.shards.files import json_bytes, write_file
from qwen_audio_train.shards.parts import (
    ALL,
    RECIPE_FILE,
    Listing,
    Part,
    check_parts,
    finish_set,
    is_written,
    move_shard,
    tidy,
    workplace,
    write_record,
)
from qwen_audio_train.shards.writer import EncodedClip, OnBad, ShardFile, shard_name

logger = logging.getLogger(__name__)

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
    part: Part = ALL
    finish: bool = False
    """Describe the set that the parts wrote, and write nothing else."""

    @classmethod
    def from_arguments(
        cls, args: argparse.Namespace, *, name: str, split: str, license: str, recipe: Mapping[str, Any], **more: Any
    ) -> SetOptions:
        """Of a corpus' set and its command line (see ``corpus_arguments``).

        Args:
            more: other fields, for instance ``samples_per_shard``.

        Raises:
            ConfigError: ``--part`` is no I/N, or stands beside ``--finish``.
        """
        if args.finish and args.part is not None:
            raise ConfigError(f"--finish --part {args.part}: finish once, when all parts are through, without --part")
        part = None if args.finish else Part.from_environment(os.environ)
        part = Part.parse(args.part) if args.part is not None else part or Part()
        shared = {"limit": args.limit, "workers": args.workers, "part": part, "finish": args.finish}
        return cls(args.output / name, name, split, license, recipe, **{**shared, **more})


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


def write_dataset(samples: Iterable[SampleSpec], read_clip: ReadClip, options: SetOptions) -> dict[str, Any] | None:
    """Write a set and return the content of its ``dataset.json``; does nothing when the set is there already.

    A part of several writes its shards and returns None. ``samples`` must come in the same order on every machine.

    Raises:
        ShardError: the folder holds something prepared in another way, or not all parts are through.
        SampleError: a sample is bad and ``options.on_bad`` is ``raise``.
    """
    directory, part = options.directory, options.part
    recipe = {**options.recipe, "limit": options.limit, "samples_per_shard": options.samples_per_shard}
    if (directory / DATASET_FILE).exists():
        description = read_description(directory / DATASET_FILE)
        if description.get("recipe") != recipe:
            raise _other_recipe(directory)
        tidy(directory)
        logger.info("%s is complete already: %d samples", directory, description["num_samples"])
        return description
    if options.finish:
        check_parts(directory, options.name)
        _check_recipe(directory, recipe)
        return finish_set(directory, options.name, recipe)
    directory.mkdir(parents=True, exist_ok=True)
    with workplace(directory, part) as folder:
        _claim(directory, recipe, folder)
        listing = Listing(options.samples_per_shard)
        with tqdm(total=_num_expected(samples, options), desc=options.name, unit="sample") as progress:
            for num_samples in _write_shards(islice(samples, options.limit), read_clip, options, folder, listing):
                progress.update(num_samples)
        if part.count > 1:
            write_record(directory, part, listing, folder)
            logger.info("%s: part %s is through; call it with --finish when all parts are", directory, part)
            return None
    return finish_set(directory, options.name, recipe)


def _num_expected(samples: Iterable[SampleSpec], options: SetOptions) -> int | None:
    """How many samples this part has, for the progress bar; None where they are not counted in advance."""
    if not isinstance(samples, Sized):
        return options.limit if options.part.count == 1 else None
    total, size = min(len(samples), options.limit or len(samples)), options.samples_per_shard
    starts = range(options.part.index * size, total, options.part.count * size)
    return sum(min(size, total - start) for start in starts)


def corpus_arguments(description: str, input_help: str, *, input_required: bool = True) -> argparse.ArgumentParser:
    """The arguments that every corpus has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--input", type=Path, required=input_required, help=input_help)
    parser.add_argument("--output", type=Path, required=True, help="folder in which each set gets a folder of its own")
    parser.add_argument("--limit", type=int, help="at most so many samples a set, for trying out")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; 0 works without starting any"
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="write the shards of part I (from 0) of N only (default: from a SLURM array, or all)",
    )
    parser.add_argument("--finish", action="store_true", help="describe the sets, once all parts are through")
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


def _check_recipe(directory: Path, recipe: Mapping[str, Any]) -> None:
    if json.loads((directory / RECIPE_FILE).read_bytes()) != json.loads(json_bytes(recipe)):
        raise _other_recipe(directory)


def _claim(directory: Path, recipe: Mapping[str, Any], folder: Path) -> None:
    if not (directory / RECIPE_FILE).exists():
        if any(directory.glob("*.tar")):
            raise _other_recipe(directory)
        # Written elsewhere and moved: other parts may be reading it at this moment.
        write_file(folder / RECIPE_FILE, json_bytes(recipe))
        (folder / RECIPE_FILE).replace(directory / RECIPE_FILE)
    _check_recipe(directory, recipe)


def _write_shards(
    samples: Iterator[SampleSpec], read_clip: ReadClip, options: SetOptions, folder: Path, listing: Listing
) -> Iterator[int]:
    """Yields the number of samples dealt with, shard by shard."""
    jobs = _missing_shards(samples, options, listing)
    if options.workers == 0:
        for path, specs in jobs:
            yield _write_shard(path, specs, read_clip, options, folder)
        return
    with ProcessPoolExecutor(options.workers) as pool:
        running: set[Future[int]] = set()
        try:
            for path, specs in jobs:
                running.add(pool.submit(_write_shard, path, specs, read_clip, options, folder))
                if len(running) >= SHARDS_AHEAD_PER_WORKER * options.workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _missing_shards(
    samples: Iterator[SampleSpec], options: SetOptions, listing: Listing
) -> Iterator[tuple[Path, list[SampleSpec]]]:
    number = 0
    while specs := list(islice(samples, options.samples_per_shard)):
        listing.add(spec.key for spec in specs)
        path = options.directory / shard_name(options.name, number)
        if number % options.part.count == options.part.index and not is_written(path):
            yield path, specs
        number += 1


def _write_shard(path: Path, specs: list[SampleSpec], read_clip: ReadClip, options: SetOptions, folder: Path) -> int:
    staged = folder / path.name
    shard = ShardFile(staged, options.name, split=options.split, license=options.license, on_bad=options.on_bad)
    try:
        for spec in specs:
            _write_sample(shard, spec, read_clip)
    except BaseException:
        shard.abort()
        raise
    shard.publish()
    move_shard(staged, path)
    return len(specs)


def _write_sample(shard: ShardFile, spec: SampleSpec, read_clip: ReadClip) -> None:
    if spec.skip_reason is not None:
        shard.leave_out(spec.key, spec.skip_reason)
        return
    if spec.problem is not None:
        shard.skip(spec.key, spec.problem)
        return
    try:
        clips = [EncodedClip.measure(*read_clip(clip)) for clip in spec.clips]
    except (ValueError, OSError) as error:
        shard.skip(spec.key, str(error))
        return
    shard.write(spec.key, clips, spec.metadata)
