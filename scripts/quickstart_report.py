#!/usr/bin/env python
"""Put the quickstart's numbers together: summary.json, the table, and report.html with curves and clips to hear."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from qwen_audio_train.evaluation import metrics, report
from qwen_audio_train.evaluation.charts import StageCurves
from qwen_audio_train.evaluation.page import Example, write_page
from qwen_audio_train.samples import PretrainRecord
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.tracking.run_folder import describe_environment
from qwen_audio_train.tracking.writer import read_metrics

TRAINED = ("pretrain", "sft", "dpo")
NUM_EXAMPLES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the quickstart's run folder")
    parser.add_argument("--corpus", default="asterisk", help="prefix of the sets in data/")
    parser.add_argument("--show", action="store_true", help="only print the table and the paths of a finished run")
    args = parser.parse_args()
    if args.show:
        show(args.run)
        return
    shards = ShardSet.open(Path("data") / f"{args.corpus}_pretrain_test")
    summary = summarise(args.run, shards)
    report.write_summary(args.run / "summary.json", summary)
    write_page(
        args.run / "report.html",
        summary,
        [curves(args.run, stage) for stage in TRAINED],
        examples(args.run, shards),
        environment(),
    )


def summarise(run: Path, shards: ShardSet) -> report.Summary:
    """Everything that was measured, beside chance."""
    scores = {stage: read_json(run / "evaluation" / stage / "scores.json") for stage in report.STAGES}
    kept = {stage: {k: v for k, v in values.items() if not k.startswith("reward")} for stage, values in scores.items()}
    steps = sorted((run / ".steps").iterdir(), key=lambda path: path.stat().st_mtime)
    return report.Summary(
        untrained=report.StageScores(**kept["untrained"]),
        pretrain=report.StageScores(**kept["pretrain"]),
        sft=report.StageScores(**kept["sft"]),
        dpo=report.DpoScores(**scores["dpo"]),
        chance=chance([r for i in range(len(shards)) if isinstance(r := shards.record(i), PretrainRecord)]),
        whisper_base=report.WhisperScores(**read_json(run / "evaluation" / "whisper_base" / "scores.json")),
        seconds={path.name: float(path.read_text()) for path in steps},
    )


def chance(records: list[PretrainRecord]) -> report.ChanceScores:
    """What answering without listening gets on these clips: a random other reference of the same language."""
    spoken = [r for r in records if r.task == "transcribe"]
    texts, languages = [r.text for r in spoken], [r.audio_language for r in spoken]
    translated = [r.text for r in records if r.task == "translate"]
    guesses = [text or "" for text in metrics.random_other_references(translated, ["en"] * len(translated))]
    language_id = metrics.language_id_chance(languages)
    wer = metrics.random_other_reference_error_rates(texts, languages, metrics.Unit.words)
    return report.ChanceScores(
        cer=metrics.random_other_reference_error_rates(texts, languages, metrics.Unit.characters),
        wer_en=wer.get("en"),
        bleu=metrics.bleu(translated, guesses, "en"),
        chrf=metrics.chrf(translated, guesses),
        language_id_accuracy=language_id.largest_class if language_id else None,
        language_id_uniform=language_id.uniform if language_id else None,
    )


def curves(run: Path, stage: str) -> StageCurves:
    """What a stage logged while it trained."""
    lines = read_metrics(run / stage)

    def points(name: str) -> list[tuple[int, float]]:
        return [(int(line["step"]), line[name]) for line in lines if name in line]

    return StageCurves(
        stage=stage,
        loss=points("loss"),
        learning_rate=points("learning_rate"),
        reward_accuracy=points("rewards/accuracies"),
        reward_margin=points("rewards/margins"),
    )


def examples(run: Path, shards: ShardSet) -> list[Example]:
    """Ten transcribed test clips, the same number of each language, spread over the set by key; not chosen by score."""
    answers: dict[str, dict[str, str]] = {}
    for stage in (*report.STAGES, "whisper_base"):
        for line in read_lines(run / "evaluation" / stage / "predictions.jsonl"):
            if line.get("question", "transcribe") == "transcribe":
                answers.setdefault(line["key"], {})[stage] = line["answer"]
    spoken = [r for i in range(len(shards)) if isinstance(r := shards.record(i), PretrainRecord)]
    spoken = sorted((r for r in spoken if r.task == "transcribe"), key=lambda r: r.origin.key)
    languages = sorted({r.audio_language for r in spoken})
    chosen = []
    for language in languages:
        of_language = [r for r in spoken if r.audio_language == language]
        count = max(1, NUM_EXAMPLES // len(languages))
        chosen += of_language[:: max(1, len(of_language) // count)][:count]
    return [
        Example(
            key=record.origin.key,
            language=record.audio_language,
            reference=record.text,
            samples=shards.read_clip(record.clips[0], record.origin),
            answers=answers.get(record.origin.key, {}),
        )
        for record in chosen
    ]


def environment() -> dict[str, str]:
    """Label -> value for the foot of the page."""
    facts = describe_environment()
    packages = facts["packages"]
    assert isinstance(packages, dict)
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "Python": str(facts["python"]),
        "revision": str(facts["git"]),
        **{name: str(version) for name, version in packages.items()},
    }


def show(run: Path) -> None:
    """The table and where everything lies."""
    summary = report.read_summary(run / "summary.json")
    print(report.table(summary))
    if summary.whisper_base.num_clips is not None:
        print(f"Whisper-base: its own decoder on {summary.whisper_base.num_clips} of the clips")
    print(f"Steps added up: {sum(summary.seconds.values()):.0f} s (some ran side by side)")
    for name in ("summary.json", "report.html", "export/adapter", "export/merged"):
        print(f"  {run / name}")


def read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
