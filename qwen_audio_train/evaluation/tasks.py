"""What a model is asked on held-out clips, in the form its stage was trained on, and how the answers are scored.

``completion`` is the pretraining form: the task's official prompt after the clip; the model itself names the language
by its first token (nothing is forced). ``chat`` is ChatML: the same tasks as written instructions, the language as
a question. Two chat questions are asked of every model, whatever its form, for the share of answers of the right form:
the language (audio analysis) and an audio-only turn (voice chat).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_audio_train.config.evaluation import PromptForm
from qwen_audio_train.evaluation import metrics
from qwen_audio_train.evaluation.forms import ChatAnswer, Question, form_shares
from qwen_audio_train.evaluation.generate import Answer, Generator, Prompt
from qwen_audio_train.evaluation.report import StageScores
from qwen_audio_train.pipeline.clips import ClipSource
from qwen_audio_train.prompts import chat_forms
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import PretrainRecord

_TAG = re.compile(r"^\s*<\|([a-z]{2,3})\|>")
_AUDIO = {"type": "audio"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """One question, its reference and its answer: a line of predictions.jsonl."""

    key: str
    question: str
    form: str
    audio_language: str
    text_language: str
    reference: str
    answer: str
    said_language: str | None
    """The language that the answer names or is tagged with."""
    ended: bool


def ask(
    records: Sequence[PretrainRecord], generator: Generator, renderer: Renderer, clips: ClipSource, form: PromptForm
) -> list[Prediction]:
    """All questions about all records."""
    predictions = []
    for question in (Question.transcribe, Question.translate):
        chosen = [r for r in records if r.task == question.value]
        predictions += _ask(chosen, question, form, generator, renderer, clips)
    spoken = [r for r in records if r.task == Question.transcribe.value]
    for question in (Question.language, Question.voice_chat):
        predictions += _ask(spoken, question, PromptForm.chat, generator, renderer, clips)
    return predictions


def score(predictions: Sequence[Prediction], form: PromptForm) -> StageScores:
    """Corpus scores of what ``ask`` returned."""
    transcripts = [p for p in predictions if p.question == Question.transcribe.value]
    translations = [p for p in predictions if p.question == Question.translate.value]
    languages = [p.audio_language for p in transcripts]
    references, hypotheses = [p.reference for p in transcripts], [p.answer for p in transcripts]
    cer = metrics.error_rate_by_language(references, hypotheses, languages, metrics.Unit.characters)
    wer = metrics.error_rate_by_language(references, hypotheses, languages, metrics.Unit.words)
    named = transcripts if form is PromptForm.completion else _of(predictions, Question.language)
    shares = form_shares(
        ChatAnswer(Question(p.question), p.audio_language, p.answer, p.ended)
        for p in predictions
        if p.form == PromptForm.chat.value
    )
    into_english = [p for p in translations if p.text_language == "en"]
    return StageScores(
        cer={language: rate.rate for language, rate in cer.items()},
        wer_en=wer["en"].rate if "en" in wer else None,
        bleu=metrics.bleu([p.reference for p in into_english], [p.answer for p in into_english], "en"),
        chrf=metrics.chrf([p.reference for p in into_english], [p.answer for p in into_english]),
        language_id_accuracy=metrics.language_id_accuracy(
            [p.audio_language for p in named], [p.said_language for p in named]
        ),
        analysis_form=shares.analysis,
        voice_chat_form=shares.voice_chat,
    )


def as_lines(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Plain values for predictions.jsonl."""
    return [asdict(prediction) for prediction in predictions]


def _of(predictions: Sequence[Prediction], question: Question) -> list[Prediction]:
    return [p for p in predictions if p.question == question.value]


def _ask(
    records: Sequence[PretrainRecord],
    question: Question,
    form: PromptForm,
    generator: Generator,
    renderer: Renderer,
    clips: ClipSource,
) -> list[Prediction]:
    if not records:
        return []
    prompts = [Prompt(_rendered(record, question, form, renderer), record) for record in records]
    answers = generator.answer(prompts, clips, title=f"{question.value} ({form.value})")
    return [_prediction(record, question, form, answer) for record, answer in zip(records, answers, strict=True)]


def _rendered(record: PretrainRecord, question: Question, form: PromptForm, renderer: Renderer) -> Any:
    if form is PromptForm.completion:
        return renderer.render_pretrain_prompt(record)
    match question:
        case Question.voice_chat:
            content: list[dict[str, str]] = [_AUDIO]
        case Question.language:
            content = [_AUDIO, {"type": "text", "text": chat_forms.language_question(0)}]
        case Question.transcribe:
            content = [_AUDIO, {"type": "text", "text": chat_forms.transcribe_instruction(0)}]
        case Question.translate:
            instruction = chat_forms.translate_instruction(0, record.text_language)
            content = [_AUDIO, {"type": "text", "text": instruction}]
    messages = [{"role": "user", "content": content}]
    return renderer.render_chat_prompt(messages, [clip.num_samples for clip in record.clips], record.origin)


def _prediction(record: PretrainRecord, question: Question, form: PromptForm, answer: Answer) -> Prediction:
    text, said = answer.text, None
    if form is PromptForm.completion:
        tag = _TAG.match(text)
        said = tag.group(1) if tag else None
        text = text[tag.end() :] if tag else text
    elif question is Question.language:
        said = chat_forms.parse_language_answer(text)
    return Prediction(
        key=record.origin.key,
        question=question.value,
        form=form.value,
        audio_language=record.audio_language,
        text_language=record.text_language,
        reference=record.text,
        answer=text.strip(),
        said_language=said,
        ended=answer.ended,
    )
