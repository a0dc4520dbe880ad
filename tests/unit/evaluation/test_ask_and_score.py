"""Which questions are asked in which form, and what becomes of the answers."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_audio_train.config.evaluation import PromptForm
from qwen_audio_train.evaluation import tasks
from qwen_audio_train.evaluation.forms import Question
from qwen_audio_train.evaluation.generate import Answer, Generator
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet


@pytest.fixture(scope="module")
def front(workshop):
    return Front.of(load_processor(str(workshop.folder / "model")))


@pytest.fixture(scope="module")
def shards(workshop):
    return ShardSet.open(workshop.folder / "pretrain")


@pytest.fixture(scope="module")
def records(shards):
    return [shards.record(i) for i in range(6)]


class Parrot:
    """A generator that knows the right answer in each form, and writes down what it was asked."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.asked: list[str] = []

    def answer(self, prompts: Any, clips: Any, *, title: str) -> list[Answer]:
        answers = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt.rendered.input_ids)
            self.asked.append(text)
            record = prompt.record
            if "language (chat)" in title:
                said = {"en": "English", "es": "Spanish", "fr": "French"}[record.audio_language]
                answers.append(Answer(f"The language is {said}.", True))
            elif "voice_chat" in title:
                answers.append(Answer(f'I heard: "{record.text}" How can I help?', True))
            elif "completion" in title:
                answers.append(Answer(f"<|{record.audio_language}|>{record.text}", True))
            else:
                answers.append(Answer(f" {record.text}", True))
        return answers


def test_completion_asks_with_official_prompts_and_reads_the_language_from_the_tag(records, front):
    parrot = Parrot(front.tokenizer)
    predictions = tasks.ask(records, parrot, Renderer(front.tokenizer), None, PromptForm.completion)
    assert [p.question for p in predictions] == ["transcribe"] * 3 + ["translate"] * 3 + ["language"] * 3 + [
        "voice_chat"
    ] * 3
    assert parrot.asked[0].endswith("<|audio_eos|>Detect the language and recognize the speech: ")
    assert parrot.asked[3].endswith("Detect the language and translate the speech into English: ")
    assert "<|im_start|>" not in parrot.asked[0]
    first = predictions[0]
    assert (first.answer, first.said_language, first.reference) == (records[0].text, "en", records[0].text)
    scores = tasks.score(predictions, PromptForm.completion)
    assert scores.language_id_accuracy == 1.0
    assert scores.cer == {"en": 0.0, "fr": 0.0, "es": 0.0}
    assert scores.wer_en == 0.0
    assert scores.bleu == pytest.approx(100.0)
    assert scores.analysis_form == 1.0


def test_chat_asks_by_instruction_and_reads_the_language_from_the_sentence(records, front):
    parrot = Parrot(front.tokenizer)
    predictions = tasks.ask(records, parrot, Renderer(front.tokenizer), None, PromptForm.chat)
    assert parrot.asked[0].endswith("<|audio_eos|>\nTranscribe the recording.<|im_end|>\n<|im_start|>assistant\n")
    assert "Translate the speech into English.<|im_end|>" in parrot.asked[3]
    assert parrot.asked[6].endswith("Which language is spoken?<|im_end|>\n<|im_start|>assistant\n")
    assert parrot.asked[9].endswith("<|audio_eos|>\n<|im_end|>\n<|im_start|>assistant\n"), "voice chat is audio only"
    assert predictions[0].said_language is None
    assert [p.said_language for p in predictions[6:9]] == [record.audio_language for record in records[::2]]
    scores = tasks.score(predictions, PromptForm.chat)
    assert scores.language_id_accuracy == 1.0
    assert scores.voice_chat_form == pytest.approx(1 / 3), "one clip of three is English, as the parrot's reply is"


@pytest.mark.parametrize(
    ("text", "said", "answer"),
    [
        ("<|en|>hello", "en", "hello"),
        (" <|yue|> hello ", "yue", "hello"),
        ("hello", None, "hello"),
        ("hello <|en|>", None, "hello <|en|>"),
        ("<|AUDIO|>hello", None, "<|AUDIO|>hello"),
        ("", None, ""),
    ],
)
def test_language_tag(records, text, said, answer):
    prediction = tasks._prediction(records[0], Question.transcribe, PromptForm.completion, Answer(text, False))
    assert (prediction.said_language, prediction.answer, prediction.ended) == (said, answer, False)


def test_wrong_and_missing_languages_count_as_wrong(records, front):
    predictions = [
        tasks._prediction(record, Question.transcribe, PromptForm.completion, Answer(text, True))
        for record, text in zip(records[::2], ("<|en|>a", "<|en|>a", "a"), strict=True)
    ]
    assert tasks.score(predictions, PromptForm.completion).language_id_accuracy == pytest.approx(1 / 3)


def test_a_tiny_model_is_asked_and_scored(workshop, records, front, shards):
    model = load_model(str(workshop.folder / "model")).eval()
    generator = Generator(model, front.tokenizer, front.collator(), 4, 2000)
    predictions = tasks.ask(records[:4], generator, Renderer(front.tokenizer), front.clips(shards), PromptForm.chat)
    assert len(predictions) == 2 + 2 + 2 + 2
    scores = tasks.score(predictions, PromptForm.chat)
    assert scores.cer["en"] > 0.5
    assert scores.language_id_accuracy == 0.0
    assert set(tasks.as_lines(predictions)[0]) >= {"key", "question", "reference", "answer", "ended"}
