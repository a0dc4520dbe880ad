"""Keep test material out of training: one split per recording and per text, everything dropped listed and counted.

Splits by content make this rare, not impossible: a game says "No." in several levels, a drum kit ships one file under
two names. What is in two splits stays in test before dev before train.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile

from qwen_audio_train.shards.contract import MAX_KEY_CHARACTERS
from qwen_audio_train.shards.prepare import ReadClip, SampleSpec, SetOptions, read_audio_file, write_dataset

logger = logging.getLogger(__name__)

SPLITS = ("test", "dev", "train")
"""In the order in which something that occurs in several is kept."""
NOT_IN_KEY = re.compile(r"[^A-Za-z0-9_+-]+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sample and the split its content falls into."""

    split: str
    spec: SampleSpec


def bucket_split(content: str, *, test_percent: int = 8, dev_percent: int = 3) -> str:
    """Split by a hash of what must not be in two splits (a level, an English text)."""
    bucket = zlib.crc32(content.encode()) % 100
    return "test" if bucket < test_percent else "dev" if bucket < test_percent + dev_percent else "train"


def key_of(*parts: str) -> str:
    """A legal key; parts that had to be changed or cut get a hash, so that two never become one."""
    clean = [NOT_IN_KEY.sub("_", part).strip("_") or "_" for part in parts]
    key = "/".join(clean)
    if clean == list(parts) and len(key) <= MAX_KEY_CHARACTERS:
        return key
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:10]
    return f"{key[: MAX_KEY_CHARACTERS - len(digest) - 1].rstrip('/')}-{digest}"


def normal_text(text: str) -> str:
    """What two texts must differ in to count as different: words, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def separate(candidates: Iterable[Candidate], *, holds_out_texts: bool = True) -> list[Candidate]:
    """``candidates`` with what would leak or repeat marked as left out, in their order.

    A recording is kept under one path. With ``holds_out_texts`` a text (per task and text language) that is in test is
    in neither of the others; leave it off where texts are labels.
    """
    listed = list(candidates)
    order = sorted(range(len(listed)), key=lambda place: SPLITS.index(listed[place].split))
    twins: dict[str, Candidate] = {}
    splits_of_text: dict[tuple[Any, ...], str] = {}
    digests: dict[str, str] = {}
    for place in order:
        candidate = listed[place]
        if candidate.spec.skip_reason is not None or candidate.spec.problem is not None:
            continue
        reason = _twin(candidate, twins, digests)
        if reason is None and holds_out_texts:
            reason = _text_elsewhere(candidate, splits_of_text)
        if reason is not None:
            listed[place] = replace(candidate, spec=replace(candidate.spec, skip_reason=reason))
    return listed


def _twin(candidate: Candidate, twins: dict[str, Candidate], digests: dict[str, str]) -> str | None:
    path = str(candidate.spec.clips[0])
    if path not in digests:
        digests[path] = audio_digest(Path(path))
    twin = twins.setdefault(digests[path], candidate)
    if str(twin.spec.clips[0]) == path:
        return None
    where = "in the same set" if twin.split == candidate.split else f"in {twin.split}"
    return f"same audio {where}: {twin.spec.key}"


def audio_digest(path: Path) -> str:
    """Of the decoded audio where there is any: Tux Paint has one recording in ogg files of different bytes."""
    digest = hashlib.sha256()
    try:
        for block in soundfile.blocks(str(path), blocksize=1 << 16, dtype="int16"):
            digest.update(block.tobytes())
    except soundfile.LibsndfileError:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    empty = digest.digest() == hashlib.sha256().digest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if empty else digest.hexdigest()


def _text_elsewhere(candidate: Candidate, splits_of_text: dict[tuple[Any, ...], str]) -> str | None:
    metadata = candidate.spec.metadata
    identity = (metadata["task"], metadata["text_language"], normal_text(metadata["text"]))
    split = splits_of_text.setdefault(identity, candidate.split)
    return None if split == candidate.split else f"same text in {split}"


def write_splits(
    candidates: Iterable[Candidate],
    corpus: str,
    args: argparse.Namespace,
    *,
    license: str,
    recipe: Mapping[str, Any],
    read_clip: ReadClip = read_audio_file,
) -> None:
    """Write ``{corpus}_pretrain_{train,dev,test}``, neighbours mixed by a hash of their keys."""
    listed = list(candidates)
    reasons = Counter((c.spec.skip_reason or "").partition(":")[0] for c in listed if c.spec.skip_reason)
    for reason, count in reasons.most_common():
        logger.info("%s: %d left out: %s", corpus, count, reason)
    for split in reversed(SPLITS):
        specs = [candidate.spec for candidate in listed if candidate.split == split]
        if not specs:
            logger.info("%s: no samples for %s", corpus, split)
            continue
        name = f"{corpus}_pretrain_{split}"
        options = SetOptions.from_arguments(
            args,
            name=name,
            split=split,
            license=license,
            recipe={"corpus": corpus, **recipe},
        )
        write_dataset(sorted(specs, key=lambda spec: zlib.crc32(spec.key.encode())), read_clip, options)
