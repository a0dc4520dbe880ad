"""Give tars that another tool wrote after the contract their indexes and ``dataset.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import DATASET_FILE
from qwen_audio_train.shards.dataset import describe_set, read_description, read_raw_description
from qwen_audio_train.shards.index import build_index, index_path, open_index
from qwen_audio_train.shards.set_index import SET_INDEX_FILE, open_set_index


@dataclass(frozen=True, slots=True)
class IndexedSet:
    """What ``index_set`` did."""

    description: Mapping[str, Any] | None
    """Content of ``dataset.json``; None if a shard was refused, and then none is written."""
    num_built: int
    num_kept: int
    problems: tuple[str, ...]
    """One sentence a shard that breaks the contract."""


def index_set(
    directory: Path, *, name: str | None = None, workers: int = 0, rebuild: bool = False, show_progress: bool = False
) -> IndexedSet:
    """Index every tar of a folder and describe the set; a finished index that still matches its tar is kept.

    Args:
        name: of the set; by default the one it has, or else the folder's.
        workers: processes; 0 works in this one.
        rebuild: scan every tar, also where an index matches.

    Raises:
        ShardError: no tar in the folder; or together they are no set (a key in two shards, several splits).
    """
    tars = sorted(directory.glob("*.tar"))
    if not tars:
        raise ShardError(f"'{directory}' holds no tar; nothing to index")
    old = _old_description(directory)
    to_build = [tar for tar in tars if rebuild or not _is_indexed(tar)]
    problems = []
    with tqdm(total=len(tars), initial=len(tars) - len(to_build), unit="shard", disable=not show_progress) as progress:
        for problem in _build(to_build, workers):
            problems += [problem] if problem else []
            progress.update()
    counts = len(to_build) - len(problems), len(tars) - len(to_build)
    if problems:
        return IndexedSet(None, *counts, tuple(sorted(problems)))
    name = name or (str(old["name"]) if old else directory.name)
    is_current = old is not None and not to_build and old["name"] == name and _sizes(old) == _sizes_of(tars)
    is_current = is_current and _is_packed(directory)
    description = old if is_current else describe_set(directory, name, recipe=old.get("recipe") if old else None)
    return IndexedSet(description, *counts, ())


def _old_description(directory: Path) -> dict[str, Any] | None:
    if not (directory / DATASET_FILE).exists():
        return None
    try:
        return read_description(directory / DATASET_FILE)
    except ShardError:
        return None  # it is about to be written anew


def _is_packed(directory: Path) -> bool:
    """Whether ``dataset.idx`` is there, of this version, and undamaged."""
    path, description = directory / SET_INDEX_FILE, directory / DATASET_FILE
    try:
        index = open_set_index(path, read_raw_description(description, str(description)), str(path))
        for number in range(len(index.tables.shards)):
            index.require_sound_rows(number, str(path))
    except ShardError:
        return False
    return True


def _sizes(description: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(shard["file"], shard["bytes"]) for shard in description["shards"]]


def _sizes_of(tars: Sequence[Path]) -> list[tuple[str, int]]:
    return [(tar.name, tar.stat().st_size) for tar in tars]


def _is_indexed(tar: Path) -> bool:
    try:
        open_index(tar)
    except ShardError:
        return False
    return True


def _build(tars: Sequence[Path], workers: int) -> Iterator[str | None]:
    if workers == 0:
        yield from map(_build_one, tars)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            for future in as_completed([pool.submit(_build_one, tar) for tar in tars]):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _build_one(tar: Path) -> str | None:
    try:
        build_index(tar)
    except (OSError, ShardError) as error:
        index_path(tar).unlink(missing_ok=True)  # of an earlier tar: it must not be taken for this one's
        return str(error)
    return None
