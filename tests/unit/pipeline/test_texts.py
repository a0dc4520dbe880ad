from __future__ import annotations

from qwen_audio_train.model.sizes import NewLanguageModel
from qwen_audio_train.pipeline.texts import fixed_phrases, texts_of
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.training.initial_model import _units
from tests import sets


def test_texts_of_each_payload(tmp_path):
    assert "please press 0 now" in set(texts_of(str(sets.pretrain_set(tmp_path / "p", 4))))
    assert {"I heard 0.", "Say 2."} <= set(texts_of(str(sets.chat_set(tmp_path / "c", 6))))
    assert {"yes 0", "no no"} <= set(texts_of(str(sets.preference_set(tmp_path / "d", 6))))


def test_without_joining_an_entry_is_one_character_in_any_script():
    texts = ["Пожалуйста, нажмите", "été", "press"]
    tokenizer = (
        NewLanguageModel(hidden_size=16, num_layers=1, num_heads=2, num_key_value_heads=2, intermediate_size=16)
        .build(_units(iter(texts), joins_characters=False), seed=0)
        .tokenizer
    )
    for text in texts:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text


def test_phrases_around_a_sample_are_single_entries(tmp_path):
    shards = ShardSet.open(sets.pretrain_set(tmp_path / "p", 2))
    language_model = NewLanguageModel(
        hidden_size=16, num_layers=1, num_heads=2, num_key_value_heads=2, intermediate_size=16
    )
    parts = language_model.build(["abc"], 0, fixed_phrases())
    from qwen_audio_train.model.tokenizer import add_audio_tokens

    tokenizer = add_audio_tokens(parts.tokenizer, ["en", "es", "fr"])
    rendered = Renderer(tokenizer).render_pretrain(shards.record(0))
    prompt = [tokenizer.decode([i]) for i in rendered.input_ids[~rendered.supervised] if i >= 0]
    assert [piece for piece in prompt if "<|" not in piece] == ["Detect the language and recognize the speech: "]
