"""What prompts/render.py assumes of the stock processor: its chat template and its audio expansion, id for id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen_audio_train.audio.lengths import audio_tokens
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import ChatRecord, Clip, Origin
from tests.toy_tokenizer import toy_processor, toy_tokenizer

ORIGIN = Origin("toy", "000.tar", "a")
AUDIO = {"type": "audio"}

CONVERSATIONS = {
    "voice chat": ([("user", [AUDIO]), ("assistant", "Glass.")], [16_000]),
    "audio analysis": ([("user", [AUDIO, "What's that sound?"]), ("assistant", ["It is glass."])], [64_641]),
    "question first": ([("user", ["What's that? ", AUDIO]), ("assistant", "Glass")], [5_000]),
    "multi-audio": ([("user", [AUDIO, "and", AUDIO, "Which is louder?"]), ("assistant", "Audio 2")], [321, 9_999]),
    "multi-turn": (
        [
            ("user", [AUDIO, "What is it?"]),
            ("assistant", "It is the sound of glass shattering."),
            ("user", [AUDIO]),
            ("assistant", "12 34, да"),
            ("user", "Thank you."),
            ("assistant", "这是玻璃。"),
        ],
        [480_000, 800],
    ),
    "system turn": ([("system", "Be brief."), ("user", [AUDIO, "?"]), ("assistant", "Yes")], [1_600]),
    "system turn in parts": ([("system", ["Be ", "brief."]), ("user", ["a", "b"]), ("assistant", "Yes")], []),
    "text only": ([("user", "Who are you?"), ("assistant", ["A ", "model", "."])], []),
    "audio in an assistant turn": (
        [("user", [AUDIO]), ("assistant", [AUDIO, "Like this."]), ("user", [AUDIO]), ("assistant", "Audio 3")],
        [4_000, 5_000, 6_000],
    ),
}
ANSWERS = [
    " leading space",
    "  two spaces",
    "\tTab",
    "7 8 9",
    "Привет",
    "'s",
    "...",
    "\u0301accent",
    "Yes\n",
    "Yes \n\n",
    "é",
]


def _messages(turns: list) -> tuple[dict, ...]:
    def part(item):
        return item if isinstance(item, dict) else {"type": "text", "text": item}

    return tuple(
        {"role": role, "content": content if isinstance(content, str) else [part(item) for item in content]}
        for role, content in turns
    )


def _record(messages: tuple[dict, ...], clip_samples: list[int]) -> ChatRecord:
    clips = tuple(Clip(Path("x.tar"), 0, 1, num_samples, "0" * 64, "wav") for num_samples in clip_samples)
    return ChatRecord(ORIGIN, clips, "toy", "train", "CC0-1.0", messages)


def _stock_ids(messages: tuple[dict, ...], clip_samples: list[int], *, generation: bool = False) -> list[int]:
    processor = toy_processor()
    text = processor.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generation)
    if not clip_samples:
        return processor.tokenizer(text)["input_ids"]
    audio = [np.zeros(num_samples, np.float32) for num_samples in clip_samples]
    return list(processor(text=[text], audio=audio, sampling_rate=16_000)["input_ids"][0])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation_ids_equal_the_processors(name: str) -> None:
    turns, clip_samples = CONVERSATIONS[name]
    messages = _messages(turns)
    rendered = Renderer(toy_tokenizer()).render_chat(_record(messages, clip_samples))
    assert rendered.input_ids.tolist() == _stock_ids(messages, clip_samples)
    assert rendered.clip_tokens == tuple(audio_tokens(num_samples) for num_samples in clip_samples)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_ids_equal_the_processors(name: str) -> None:
    turns, clip_samples = CONVERSATIONS[name]
    messages = _messages(turns)[:-1]
    kept = sum(part == AUDIO for _, content in turns[:-1] for part in content if isinstance(content, list))
    rendered = Renderer(toy_tokenizer()).render_chat_prompt(messages, clip_samples[:kept])
    assert rendered.input_ids.tolist() == _stock_ids(messages, clip_samples[:kept], generation=True)
    assert not rendered.supervised.any()


@pytest.mark.parametrize("answer", ANSWERS)
def test_prompt_and_answer_apart_equal_the_joint_ids(answer: str) -> None:
    messages = _messages([("user", "Hello"), ("assistant", answer)])
    renderer = Renderer(toy_tokenizer())
    rendered = renderer.render_chat(_record(messages, []))
    assert rendered.input_ids.tolist() == _stock_ids(messages, [])
    prompt = renderer.render_chat_prompt(messages[:-1], [])
    assert rendered.input_ids.tolist()[: len(prompt.input_ids)] == prompt.input_ids.tolist()


@pytest.mark.parametrize("answer", ["\nYes", "\n\nYes"])
def test_answer_that_begins_with_a_line_break_follows_generation_not_the_joint_ids(answer: str) -> None:
    """Jointly the break merges with the one after 'assistant'; generated after the prompt, it cannot."""
    messages = _messages([("user", "Hello"), ("assistant", answer)])
    renderer = Renderer(toy_tokenizer())
    ids = renderer.render_chat(_record(messages, [])).input_ids.tolist()
    prompt = renderer.render_chat_prompt(messages[:-1], []).input_ids.tolist()
    tokenizer = toy_tokenizer()
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids) == tokenizer.decode(_stock_ids(messages, []))
    assert ids != _stock_ids(messages, [])


def test_structure_of_the_released_model() -> None:
    """The token sequence that transformers' own tests hold for one clip of 101 tokens and a question."""
    messages = _messages([("user", [AUDIO, "What's that sound?"])])
    tokenizer = toy_tokenizer()
    ids = Renderer(tokenizer).render_chat_prompt(messages, [64_641]).input_ids.tolist()
    slots = "<|AUDIO|>" * 101
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"Audio 1: <|audio_bos|>{slots}<|audio_eos|>\nWhat's that sound?<|im_end|>\n<|im_start|>assistant\n"
    )
