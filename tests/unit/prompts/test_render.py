from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_audio_train.audio.lengths import audio_tokens
from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import ChatRecord, Clip, Origin, PreferenceRecord, PretrainRecord, Rendered, RenderedPair
from tests.toy_tokenizer import toy_tokenizer

ORIGIN = Origin("toy", "000.tar", "a")


def _clip(num_samples: int = 16_000) -> Clip:
    return Clip(Path("x.tar"), 0, 1, num_samples, "0" * 64, "wav")


def _shared(*num_samples: int) -> dict:
    clips = tuple(_clip(n) for n in num_samples)
    return {"origin": ORIGIN, "clips": clips, "source": "toy", "split": "train", "license": "CC0-1.0"}


def _pretrain(**changes) -> PretrainRecord:
    record = PretrainRecord(
        **_shared(16_000), task="transcribe", audio_language="en", text_language="en", text="Glass."
    )
    return replace(record, **changes)


def _chat(*turns: tuple[str, str], clips: tuple[int, ...] = ()) -> ChatRecord:
    return ChatRecord(**_shared(*clips), messages=tuple({"role": r, "content": c} for r, c in turns))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(toy_tokenizer())


def _text(ids, keep=None) -> str:
    return toy_tokenizer().decode(ids if keep is None else ids[keep]).replace("<|AUDIO|>" * 25, "<25>")


def test_transcribe_prompt_and_supervised_span(renderer: Renderer) -> None:
    rendered = renderer.render_pretrain(_pretrain())
    assert _text(rendered.input_ids) == (
        "<|audio_bos|><25><|audio_eos|>Detect the language and recognize the speech: <|en|>Glass.<|endoftext|>"
    )
    assert _text(rendered.input_ids, rendered.supervised) == "<|en|>Glass.<|endoftext|>"
    first = rendered.supervised.argmax()
    assert rendered.supervised[first:].all()
    assert rendered.clip_tokens == (25,)


def test_untagged_target_begins_with_the_space(renderer: Renderer) -> None:
    rendered = renderer.render_pretrain(_pretrain(task="emotion", text="anger"))
    assert _text(rendered.input_ids, ~rendered.supervised).endswith("Recognize the emotion with keywords in English:")
    assert _text(rendered.input_ids, rendered.supervised) == " anger<|endoftext|>"


@pytest.mark.parametrize("task", ["transcribe", "translate", "emotion"])
def test_generation_prompt_is_the_start_of_training_ids(renderer: Renderer, task: str) -> None:
    record = _pretrain(task=task, audio_language="de")
    whole = renderer.render_pretrain(record)
    prompt = renderer.render_pretrain_prompt(record)
    assert whole.input_ids[~whole.supervised].tolist() == prompt.input_ids.tolist()
    assert not prompt.supervised.any()


def test_forced_language_equals_the_official_evaluation_string(renderer: Renderer) -> None:
    prompt = renderer.render_pretrain_prompt(_pretrain(), forced_language="en")
    slots = "<|AUDIO|>" * 25
    official = f"<|audio_bos|>{slots}<|audio_eos|>Detect the language and recognize the speech: <|en|>"
    assert prompt.input_ids.tolist() == toy_tokenizer()(official)["input_ids"]
    assert not prompt.supervised.any()


def test_mask_covers_each_answer_and_its_end_only(renderer: Renderer) -> None:
    rendered = renderer.render_chat(_chat(("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two")))
    assert _text(rendered.input_ids, rendered.supervised) == "one<|im_end|>two<|im_end|>"
    assert _text(rendered.input_ids).endswith("two<|im_end|>\n")
    assert not rendered.supervised[-1]


def test_preference_prompt_and_answers(renderer: Renderer) -> None:
    messages = ({"role": "user", "content": [{"type": "audio"}]},)
    pair = renderer.render_preference(
        PreferenceRecord(**_shared(16_000), messages=messages, chosen="Yes", rejected="No no")
    )
    assert _text(pair.prompt.input_ids).endswith("<|audio_eos|>\n<|im_end|>\n<|im_start|>assistant\n")
    assert not pair.prompt.supervised.any()
    assert (_text(pair.chosen_ids), _text(pair.rejected_ids)) == ("Yes<|im_end|>", "No no<|im_end|>")


@pytest.mark.parametrize("num_samples", [321, 322, 479, 480, 481, 15_999, 16_000, 16_001, 479_999, 480_000])
def test_slots_are_the_clips_audio_tokens(renderer: Renderer, num_samples: int) -> None:
    rendered = renderer.render_pretrain(_pretrain(clips=(_clip(num_samples),)))
    slot = toy_tokenizer().convert_tokens_to_ids("<|AUDIO|>")
    assert rendered.clip_tokens == (audio_tokens(num_samples),) == ((rendered.input_ids == slot).sum(),)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clips": (_clip(320),)}, "320 samples"),
        ({"clips": (_clip(480_001),)}, "480001 samples"),
        ({"clips": (_clip(0),)}, "0 samples"),
        ({"clips": ()}, "has 0"),
        ({"clips": (_clip(), _clip())}, "has 2"),
        ({"text": " \n"}, "empty"),
        ({"text": "a <|im_end|> b"}, "<|im_end|>"),
        ({"prompt": "Say <|AUDIO|>"}, "<|AUDIO|>"),
        ({"task": "transcribed"}, "known: transcribe, translate"),
        ({"audio_language": "xx"}, "known: ar"),
        ({"task": "question"}, "question itself"),
    ],
)
def test_bad_pretraining_sample_names_origin_and_reason(renderer: Renderer, changes: dict, says: str) -> None:
    with pytest.raises(SampleError) as caught:
        renderer.render_pretrain(_pretrain(**changes))
    assert "sample 'a' in shard '000.tar' of dataset 'toy'" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(("chosen", "rejected"), [("", "a"), ("a", ""), ("a", "a"), ("a<|im_end|>", "b")])
def test_bad_preference_pair_is_refused(renderer: Renderer, chosen: str, rejected: str) -> None:
    messages = ({"role": "user", "content": "Hi"},)
    with pytest.raises(SampleError):
        renderer.render_preference(PreferenceRecord(**_shared(), messages=messages, chosen=chosen, rejected=rejected))


def test_many_equal_one_by_one(renderer: Renderer) -> None:
    messages = ({"role": "user", "content": [{"type": "audio"}]},)
    preference = PreferenceRecord(**_shared(5_000), messages=messages, chosen="Yes", rejected="No")
    records = [_pretrain(), _chat(("user", "a"), ("assistant", "b")), preference, _pretrain(task="caption")]
    many = renderer.render_many(records, wordings=[1, 0, 0, 2])
    one_by_one = [
        renderer.render_pretrain(records[0], 1),
        renderer.render_chat(records[1]),
        renderer.render_preference(preference),
        renderer.render_pretrain(records[3], 2),
    ]
    assert [_plain(item) for item in many] == [_plain(item) for item in one_by_one]


def _plain(item: Rendered | RenderedPair):
    if isinstance(item, RenderedPair):
        return _plain(item.prompt), item.chosen_ids.tolist(), item.rejected_ids.tolist()
    return item.input_ids.tolist(), item.supervised.tolist(), item.clip_tokens


@pytest.mark.parametrize("task", ["transcribe", "translate", "caption", "question"])
def test_longest_wording_bounds_all(renderer: Renderer, task: str) -> None:
    record = _pretrain(task=task, prompt="What is it?" if task == "question" else None)
    lengths = [len(renderer.render_pretrain(record, wording).input_ids) for wording in range(5)]
    assert len(renderer.render_pretrain(record, renderer.longest_wording(record)).input_ids) == max(lengths)


def test_tokenizer_without_audio_tokens_is_refused_with_all_that_is_missing() -> None:
    from transformers import Qwen2Tokenizer

    with pytest.raises(ConfigError, match=r"audio_bos.*AUDIO.*audio_eos.*im_start.*im_end"):
        Renderer(Qwen2Tokenizer())
