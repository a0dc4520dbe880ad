#!/usr/bin/env python
"""Preference triples (x, y_w, y_l) from a transcribed set, by an honest rule or from a model's own candidates.

By rule, the better answer is the right one and the worse answer is right for *another* clip: its transcript or
translation (of the nearest length in the same language, so that length gives nothing away), or another language's name.
A model can only tell them apart by listening.

With --candidates (made by scripts/sample_candidates.py from an SFT model) the worse answer is the candidate with the
highest character error rate; the better one is the reference, and ``judge`` and ``rejected_error_rate`` say so.

    python -m data_prep.preference_pairs --input data/asterisk_pretrain_train --output data
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from data_prep.chat_from_transcripts import conversations_of, read_clip_of
from qwen_audio_train.prompts import chat_forms
from qwen_audio_train.samples import PretrainRecord
from qwen_audio_train.shards.prepare import SampleSpec, SetOptions, corpus_arguments, run_corpus, write_dataset
from qwen_audio_train.shards.reader import ShardSet

REVISION = 1
"""Of this file's rules: raise it when they change what the set holds."""
Candidates = Mapping[str, list[str]]


def wrong_texts(records: list[PretrainRecord]) -> dict[str, str]:
    """For each record's key the text of another clip: same task and language, nearest in length."""
    groups: dict[tuple[str, str], list[PretrainRecord]] = defaultdict(list)
    for record in records:
        groups[record.task, record.audio_language].append(record)
    wrong = {}
    for group in groups.values():
        ordered = sorted(group, key=lambda r: (len(r.text), zlib.crc32(r.origin.key.encode())))
        for place, record in enumerate(ordered):
            # Neighbours by length, nearest first; a prompt that is said twice has its own text as a neighbour.
            near = [*reversed(ordered[max(0, place - 5) : place]), *ordered[place + 1 : place + 6]]
            other = next((r.text for r in near if r.text.lower() != record.text.lower()), None)
            if other is not None:
                wrong[record.origin.key] = other
    return wrong


def wrong_language(record: PretrainRecord, languages: list[str]) -> str:
    """Another of the set's languages."""
    others = [language for language in languages if language != record.audio_language]
    return others[zlib.crc32(record.origin.key.encode()) % len(others)]


def pairs_of(shards: ShardSet, candidates: Candidates | None) -> Iterator[SampleSpec]:
    """One triple a conversation of ``chat_from_transcripts`` that has a worse answer."""
    records = [(i, r) for i in range(len(shards)) if isinstance(r := shards.record(i), PretrainRecord)]
    wrong = wrong_texts([record for _, record in records])
    languages = sorted({record.audio_language for _, record in records})
    specs = []
    for index, record in records:
        for kind, content, chosen in conversations_of(record):
            key = f"{kind}/{record.origin.key.partition('/')[2] or record.origin.key}"
            worse = (
                _worse(record, kind, wrong, languages) if candidates is None else _worst(chosen, candidates.get(key))
            )
            if worse is None or worse == chosen:
                continue
            metadata: dict[str, Any] = {
                "messages": [{"role": "user", "content": content}],
                "chosen": chosen,
                "rejected": worse,
                "source": record.source,
                "license": record.license,
                "question": kind,
                "judge": "rule: right for another clip" if candidates is None else "rule: highest character error rate",
            }
            if candidates is not None:
                metadata["rejected_error_rate"] = round(_error_rate(chosen, worse), 4)
            specs.append(SampleSpec(key, metadata, ((str(shards.directory), index),)))
    return iter(sorted(specs, key=lambda spec: zlib.crc32(spec.key.encode())))


def read_candidates(path: Path) -> Candidates:
    """key -> answers that a model gave, from lines ``{"key": ..., "candidates": [...]}``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {entry["key"]: list(entry["candidates"]) for entry in map(json.loads, lines)}


def _worse(record: PretrainRecord, kind: str, wrong: Mapping[str, str], languages: list[str]) -> str | None:
    if kind == "language":
        return chat_forms.language_answer(wrong_language(record, languages)) if len(languages) > 1 else None
    text = wrong.get(record.origin.key)
    if text is None or kind != "voice_chat":
        return text
    return chat_forms.voice_chat_answer(record.audio_language, text)


def _worst(reference: str, answers: list[str] | None) -> str | None:
    usable = [answer for answer in answers or [] if answer.strip() and answer != reference]
    return max(usable, key=lambda answer: _error_rate(reference, answer), default=None)


def _error_rate(reference: str, answer: str) -> float:
    return Levenshtein.distance(reference.lower(), answer.lower()) / max(len(reference), 1)


def prepare(args: argparse.Namespace) -> None:
    """Write ``<name with pretrain replaced by preference>`` beside the other sets."""
    shards = ShardSet.open(args.input)
    name = shards.name.replace("pretrain", "preference") if "pretrain" in shards.name else f"{shards.name}_preference"
    candidates = read_candidates(args.candidates) if args.candidates else None
    if candidates is not None:
        name += "_sampled"
    digest = zlib.crc32(args.candidates.read_bytes()) if args.candidates else None
    options = SetOptions.from_arguments(
        args,
        name=name,
        split=shards.split,
        license="as its clips",
        recipe={
            "corpus": "preference_pairs",
            "revision": REVISION,
            "input": shards.fingerprint,
            "candidates_crc32": digest,
        },
    )
    write_dataset(pairs_of(shards, candidates), read_clip_of, options)


if __name__ == "__main__":
    parser = corpus_arguments(__doc__.splitlines()[0], "a pretraining set with transcripts")
    parser.add_argument("--candidates", type=Path, help="JSONL of a model's answers (scripts/sample_candidates.py)")
    run_corpus(prepare, parser)
