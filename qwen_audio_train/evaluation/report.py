"""What a run of the three stages achieved: one object, its summary.json, and the table in two dresses.

A value that was not measured is None (null in the file, a dash in the table), never 0. Error rates, shares and
accuracies lie between 0 and 1 (an error rate may exceed 1), BLEU and chrF between 0 and 100.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from qwen_audio_train.errors import ConfigError

logger = logging.getLogger(__name__)

STAGES = ("untrained", "pretrain", "sft", "dpo")
COLUMNS = ("chance", *STAGES, "whisper_base")
COLUMN_TITLES = {
    "chance": "chance",
    "untrained": "untrained",
    "pretrain": "pretrain",
    "sft": "SFT",
    "dpo": "DPO",
    "whisper_base": "Whisper-base",
}
NOT_MEASURED = "-"

_TABLE_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class StageScores:
    """Scores on the held-out clips after one stage."""

    cer: Mapping[str, float | None] = field(default_factory=dict)
    """Character error rate by language code."""
    wer_en: float | None = None
    bleu: float | None = None
    chrf: float | None = None
    language_id_accuracy: float | None = None
    analysis_form: float | None = None
    """Share of audio-analysis answers of the right form."""
    voice_chat_form: float | None = None


@dataclass(frozen=True, kw_only=True)
class DpoScores(StageScores):
    reward_accuracy: float | None = None
    """On held-out pairs."""
    reward_margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChanceScores(StageScores):
    """What an answer without listening gets. Error rates, BLEU and chrF: a random other reference of the language."""

    language_id_uniform: float | None = None
    """1 / number of languages; ``language_id_accuracy`` is the largest language's share."""
    reward_accuracy: float | None = 0.5


@dataclass(frozen=True, kw_only=True)
class WhisperScores:
    """Whisper-base's own decoder on the same clips, or on some of them."""

    cer: Mapping[str, float | None] = field(default_factory=dict)
    wer_en: float | None = None
    num_clips: int | None = None
    """Of how many clips the rates are."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The fields and their order are those of summary.json."""

    untrained: StageScores = field(default_factory=StageScores)
    pretrain: StageScores = field(default_factory=StageScores)
    sft: StageScores = field(default_factory=StageScores)
    dpo: DpoScores = field(default_factory=DpoScores)
    chance: ChanceScores = field(default_factory=ChanceScores)
    whisper_base: WhisperScores = field(default_factory=WhisperScores)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each step of the script, in the order of the script."""


@dataclass(frozen=True, slots=True)
class Row:
    """A metric over all columns, already formatted."""

    label: str
    higher_is_better: bool
    cells: tuple[str, ...]
    """One for each of COLUMNS."""
    best: int | None
    """Index in ``cells`` of the best stage, where at least two stages were measured and they differ."""

    @property
    def title(self) -> str:
        arrow = "\N{UPWARDS ARROW}" if self.higher_is_better else "\N{DOWNWARDS ARROW}"
        return f"{self.label} {arrow}"


def write_summary(path: Path, summary: Summary) -> None:
    """Write summary.json, replacing an older one in one move."""
    text = json.dumps(_nulled(dataclasses.asdict(summary), "summary"), indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def read_summary(path: Path) -> Summary:
    """Read summary.json back. Raises ConfigError where it is not one."""
    parts = {
        "untrained": StageScores,
        "pretrain": StageScores,
        "sft": StageScores,
        "dpo": DpoScores,
        "chance": ChanceScores,
        "whisper_base": WhisperScores,
    }
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: part(**content.pop(name)) for name, part in parts.items() if name in content}
        return Summary(**scores, **content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"report: '{path}' is not a readable summary ({error}): evaluate again to write it"
        ) from error


def rows(summary: Summary) -> list[Row]:
    """Every metric as a row; languages in alphabetical order. Rows that nothing measured are left in, as dashes."""
    columns = {name: getattr(summary, name) for name in COLUMNS}
    languages = sorted({language for scores in columns.values() for language in scores.cer})
    made = [
        _row(f"CER {language}", [scores.cer.get(language) for scores in columns.values()], higher_is_better=False)
        for language in languages
    ]
    for label, name, higher_is_better, decimals in (
        ("WER en", "wer_en", False, 3),
        ("BLEU into English", "bleu", True, 1),
        ("chrF into English", "chrf", True, 1),
        ("language identification", "language_id_accuracy", True, 3),
        ("audio analysis: right form", "analysis_form", True, 3),
        ("voice chat: right form", "voice_chat_form", True, 3),
        ("DPO reward accuracy", "reward_accuracy", True, 3),
        ("DPO reward margin", "reward_margin", True, 3),
    ):
        values = [getattr(scores, name, None) for scores in columns.values()]
        made.append(_row(label, values, higher_is_better=higher_is_better, decimals=decimals))
    return made


def table(summary: Summary) -> str:
    """The table for a terminal: plain characters, at most 120 columns wide."""
    drawn = Table(title="Scores on held-out clips", title_justify="left", box=box.SIMPLE_HEAD)
    drawn.add_column("metric", no_wrap=True)
    for column in COLUMNS:
        drawn.add_column(COLUMN_TITLES[column], justify="right", no_wrap=True)
    for row in rows(summary):
        drawn.add_row(row.title, *row.cells)
    output = io.StringIO()
    Console(file=output, width=_TABLE_WIDTH, color_system=None, force_terminal=False).print(drawn)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def scores_table(name: str, scores: DpoScores) -> str:
    """One model's scores for a terminal, a metric a line; what was not measured is left out."""
    made = rows(Summary(dpo=scores))
    column = COLUMNS.index("dpo")
    lines = [f"{row.title:<32}{row.cells[column]:>8}" for row in made if row.cells[column] != NOT_MEASURED]
    return "\n".join([f"Scores of {name}", *lines])


def markdown_table(summary: Summary) -> str:
    """The same table for a README, the best stage of each row in bold."""
    lines = [
        "| metric | " + " | ".join(COLUMN_TITLES[column] for column in COLUMNS) + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    for row in rows(summary):
        cells = [f"**{cell}**" if index == row.best else cell for index, cell in enumerate(row.cells)]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(label: str, values: list[float | None], *, higher_is_better: bool, decimals: int = 3) -> Row:
    cells = tuple(NOT_MEASURED if not _measured(value) else f"{value:.{decimals}f}" for value in values)
    stages = {
        index: float(cells[index])
        for index, column in enumerate(COLUMNS)
        if column in STAGES and cells[index] != NOT_MEASURED
    }
    best = None
    # Compared as printed: of two stages that read the same neither is called better.
    if len(set(stages.values())) > 1:
        best_value = (max if higher_is_better else min)(stages.values())
        winners = [index for index, value in stages.items() if value == best_value]
        best = winners[0] if len(winners) == 1 else None
    return Row(label, higher_is_better, cells, best)


def _measured(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _nulled(value: Any, where: str) -> Any:
    """JSON has no NaN or infinity: a run that diverged still gets its summary, with a warning for each such value."""
    if isinstance(value, Mapping):
        return {key: _nulled(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        logger.warning("%s is %s: written as null", where, value)
        return None
    return value
