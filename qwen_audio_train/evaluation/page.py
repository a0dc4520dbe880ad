"""report.html: one file that opens offline and shows what a run of the three stages achieved.

Nothing is fetched: pictures are inline SVG, clips are FLAC in data URLs, and a content security policy forbids the
rest. All text that comes from data is escaped by the template engine.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt
import soundfile
from markupsafe import Markup

from qwen_audio_train.evaluation import report
from qwen_audio_train.evaluation.charts import StageCurves, loss_chart, reward_chart
from qwen_audio_train.evaluation.differences import Span, difference_spans
from qwen_audio_train.evaluation.metrics import Unit, error_rate
from qwen_audio_train.evaluation.report import COLUMN_TITLES, NOT_MEASURED, STAGES, Summary
from qwen_audio_train.prompts.wordings import LANGUAGES

logger = logging.getLogger(__name__)

MAX_AUDIO_BYTES = 1_000_000
"""Of all clips of a page together, before base64."""

_SAMPLE_RATE_HZ = 16_000
_STAGE_TITLES = {"untrained": "Untrained", "pretrain": "Pretraining", "sft": "SFT", "dpo": "DPO"}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One held-out clip with what the model answered to the same question after each stage."""

    key: str
    language: str
    reference: str
    samples: npt.NDArray[np.floating]
    """Shape (num_samples,), 16 kHz mono, -1 to 1."""
    answers: Mapping[str, str]
    """By stage, a subset of report.STAGES; other keys (``whisper_base``) are shown after them under their own name."""


@dataclass(frozen=True)
class _Tile:
    value: str
    label: str
    note: str


@dataclass(frozen=True)
class _Figure:
    title: str
    caption: str
    drawing: Markup


@dataclass(frozen=True)
class _Answer:
    title: str
    spans: list[Span]
    error_rate: float | None


@dataclass(frozen=True)
class _Clip:
    example: Example
    language_name: str
    seconds: float
    audio_url: str | None
    answers: list[_Answer]


@dataclass(frozen=True)
class _Step:
    name: str
    duration: str
    percent_of_longest: float


def write_page(
    path: Path,
    summary: Summary,
    curves: Sequence[StageCurves],
    examples: Sequence[Example],
    environment: Mapping[str, str],
    *,
    title: str = "Three stages on real speech",
) -> None:
    """Write the page, replacing an older one in one move. ``environment`` is label -> value, shown in its order.

    A clip that would take the page over MAX_AUDIO_BYTES is shown without its player, says so, and is logged.
    """
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = importlib.resources.files("qwen_audio_train.evaluation").joinpath("page.html.j2")
    text = page.from_string(template.read_text(encoding="utf-8")).render(
        title=title,
        tiles=_tiles(summary),
        rows=report.rows(summary),
        column_titles=[COLUMN_TITLES[column] for column in report.COLUMNS],
        stage_columns=[column in STAGES for column in report.COLUMNS],
        not_measured=NOT_MEASURED,
        figures=_figures(curves),
        clips=_clips(examples),
        steps=_steps(summary.seconds),
        total_duration=_duration(sum(summary.seconds.values())),
        whisper_clips=summary.whisper_base.num_clips,
        environment=environment,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _tiles(summary: Summary) -> list[_Tile]:
    """The four numbers to see first, of the last stage; those that were not measured are left to the table."""
    tiles = []
    last, chance = summary.dpo, summary.chance
    rates = [rate for rate in last.cer.values() if rate is not None]
    if rates:
        whisper = [rate for rate in summary.whisper_base.cer.values() if rate is not None]
        note = f"Whisper-base itself: {sum(whisper) / len(whisper):.2f}" if whisper else ""
        tiles.append(_Tile(f"{sum(rates) / len(rates):.2f}", "character error rate, mean of languages", note))
    for value, label, level in (
        (last.language_id_accuracy, "spoken language named right", chance.language_id_accuracy),
        (last.voice_chat_form, "voice chat replies of the right form", chance.voice_chat_form),
        (last.reward_accuracy, "held-out pairs ranked right by DPO", chance.reward_accuracy),
    ):
        if value is not None:
            tiles.append(_Tile(f"{value:.0%}", label, "" if level is None else f"chance: {level:.0%}"))
    return tiles


def _figures(curves: Sequence[StageCurves]) -> list[_Figure]:
    figures = []
    for stage in curves:
        title = _STAGE_TITLES.get(stage.stage, stage.stage)
        if stage.loss:
            caption = f"Loss {stage.loss[0][1]:.2f} at the start, {stage.loss[-1][1]:.2f} at the end."
            figures.append(_Figure(title, caption, loss_chart(stage, f"{title}: loss by step. {caption}")))
        if stage.reward_accuracy:
            caption = "Share of preference pairs ranked right and the margin between their rewards; dashed: chance."
            figures.append(_Figure(f"{title}: rewards", caption, reward_chart(stage, f"{title}. {caption}")))
    return figures


def _clips(examples: Sequence[Example]) -> list[_Clip]:
    clips, used_bytes = [], 0
    for example in examples:
        encoded = _flac(example.samples)
        url = None
        if used_bytes + len(encoded) <= MAX_AUDIO_BYTES:
            used_bytes += len(encoded)
            url = "data:audio/flac;base64," + base64.b64encode(encoded).decode("ascii")
        else:
            logger.warning(
                "report: clip '%s' has no player: its %d bytes would take the page over %d bytes of audio",
                example.key,
                len(encoded),
                MAX_AUDIO_BYTES,
            )
        clips.append(
            _Clip(
                example,
                LANGUAGES.get(example.language, example.language),
                len(example.samples) / _SAMPLE_RATE_HZ,
                url,
                _answers(example),
            )
        )
    return clips


def _answers(example: Example) -> list[_Answer]:
    others = [name for name in example.answers if name not in STAGES]
    return [
        _Answer(
            _STAGE_TITLES.get(name, COLUMN_TITLES.get(name, name)),
            difference_spans(example.reference, example.answers[name]),
            error_rate([example.reference], [example.answers[name]], example.language, Unit.characters).rate,
        )
        for name in (*STAGES, *others)
        if name in example.answers
    ]


def _flac(samples: npt.NDArray[np.floating]) -> bytes:
    if samples.ndim != 1:
        raise ValueError(f"a clip of the page is mono: expected shape (num_samples,), got {samples.shape}")
    output = io.BytesIO()
    soundfile.write(output, np.clip(samples, -1.0, 1.0), _SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return output.getvalue()


def _steps(seconds: Mapping[str, float]) -> list[_Step]:
    longest = max(seconds.values(), default=0.0) or 1.0
    return [_Step(name, _duration(spent), 100 * spent / longest) for name, spent in seconds.items()]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
