#!/usr/bin/env python
"""Whisper's own error rate on a set's transcribed clips, by its own decoder: what to hold our numbers against.

Whisper hears every clip as 30 s, which takes a second or two of a core a clip: ``--every 2`` takes every second clip of
each language.

python scripts/whisper_reference.py --set data/asterisk_pretrain_test --output runs/quickstart/evaluation/whisper_base
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from qwen_audio_train.evaluation.metrics import Unit, error_rate_by_language
from qwen_audio_train.model.whisper import WHISPER_BASE_ID, load_whisper_full
from qwen_audio_train.pipeline.lanes import in_lanes
from qwen_audio_train.samples import PretrainRecord
from qwen_audio_train.shards.reader import ShardSet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, required=True, help="shard set with transcribe records")
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.json and predictions.jsonl")
    parser.add_argument("--whisper", default=WHISPER_BASE_ID, help="hub id or folder")
    parser.add_argument("--clips-at-once", type=int, default=1, help="more pays on a GPU only")
    parser.add_argument("--every", type=int, default=1, help="take every N-th clip of each language, by key")
    args = parser.parse_args()

    shards = ShardSet.open(args.set)
    records = [r for i in range(len(shards)) if isinstance(r := shards.record(i), PretrainRecord)]
    spoken = sorted((r for r in records if r.task == "transcribe"), key=lambda r: (r.audio_language, r.origin.key))
    by_language = [list(group) for _, group in groupby(spoken, key=lambda r: r.audio_language)]
    # Like languages together, because the language is forced; long clips first.
    spoken = [r for group in by_language for r in sorted(group[:: args.every], key=lambda r: -r.clips[0].num_samples)]
    whisper = load_whisper_full(args.whisper)
    waveforms = [shards.read_clip(r.clips[0], r.origin) for r in spoken]
    groups = [
        list(numbers[start : start + args.clips_at_once])
        for _, same_language in groupby(range(len(spoken)), key=lambda i: spoken[i].audio_language)
        for numbers in [list(same_language)]
        for start in range(0, len(numbers), args.clips_at_once)
    ]

    def transcribe(numbers: list[int]) -> list[str]:
        return whisper.transcribe([waveforms[i] for i in numbers], spoken[numbers[0]].audio_language)

    answers: list[str] = []
    with tqdm(total=len(spoken), desc="Whisper-base", unit="clip") as bar:
        for group_answers in in_lanes(transcribe, groups, device=whisper.model.device):
            answers += group_answers
            bar.update(len(group_answers))

    references, languages = [r.text for r in spoken], [r.audio_language for r in spoken]
    cer = error_rate_by_language(references, answers, languages, Unit.characters)
    wer = error_rate_by_language(references, answers, languages, Unit.words)
    scores = {
        "cer": {name: rate.rate for name, rate in cer.items()},
        "wer_en": wer["en"].rate if "en" in wer else None,
        "num_clips": len(spoken),
    }
    args.output.mkdir(parents=True, exist_ok=True)
    lines = [
        {"key": r.origin.key, "audio_language": r.audio_language, "reference": r.text, "answer": answer}
        for r, answer in zip(spoken, answers, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (args.output / "predictions.jsonl").write_text(text, encoding="utf-8")
    (args.output / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(scores))


if __name__ == "__main__":
    main()
