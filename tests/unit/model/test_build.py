from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2AudioForConditionalGeneration,
    WhisperForConditionalGeneration,
)

from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model.build import build_from_parts, load_built, save_built, sinusoids
from qwen_audio_train.model.language_model import LanguageModelParts, keep_first_layers
from qwen_audio_train.model.sizes import TINY_LANGUAGE_MODEL, build_tiny, tiny_whisper
from qwen_audio_train.model.tokenizer import train_byte_level_bpe
from qwen_audio_train.model.whisper import WhisperParts

TEXTS = ["press one for more options", "press two"]
SECONDS = 1
FRAMES = 100 * SECONDS


def _whisper_model() -> WhisperForConditionalGeneration:
    config = tiny_whisper(max_clip_seconds=SECONDS).config
    config.vocab_size, config.pad_token_id, config.decoder_layers, config.decoder_attention_heads = 10, 0, 1, 2
    torch.manual_seed(1)
    return WhisperForConditionalGeneration(config).eval()


def _whisper_parts(model: WhisperForConditionalGeneration) -> WhisperParts:
    extractor = tiny_whisper(max_clip_seconds=SECONDS).feature_extractor
    return WhisperParts(model.config, model.model.encoder.state_dict(), extractor)


def _llama_parts(*, tied: bool, num_spare_rows: int = 0) -> LanguageModelParts:
    tokenizer = train_byte_level_bpe(TEXTS, 280)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + num_spare_rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(2)
    return LanguageModelParts(LlamaForCausalLM(config).eval(), tokenizer)


def _build(parts: LanguageModelParts, seed: int = 0, **options: Any) -> Any:
    whisper = options.pop("whisper", None) or _whisper_parts(_whisper_model())
    return build_from_parts(whisper=whisper, language_model=parts, languages=["en", "de"], seed=seed, **options)


def _inputs(processor: Any, num_samples: int = 9000) -> Any:
    waveform = torch.randn(num_samples, generator=torch.Generator().manual_seed(3)).numpy()
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>press one"
    return processor(text=text, audio=[waveform], sampling_rate=16_000, return_tensors="pt")


def test_audio_tower_computes_what_whisper_does_up_to_the_pooling() -> None:
    whisper = _whisper_model()
    model, _ = _build(_llama_parts(tied=True), whisper=_whisper_parts(whisper))
    mel = torch.randn(2, 80, FRAMES)
    hidden: list[torch.Tensor] = []
    for encoder in (whisper.model.encoder, model.model.audio_tower):
        encoder.layers[-1].register_forward_hook(
            lambda *call: hidden.append(call[2][0] if isinstance(call[2], tuple) else call[2])
        )
    with torch.no_grad():
        whisper.model.encoder(mel)
        pooled = model.model.audio_tower(mel).last_hidden_state
        expected = whisper.model.encoder.layer_norm(hidden[0].unflatten(1, (-1, 2)).mean(dim=2))
    assert torch.equal(hidden[0], hidden[1])
    assert torch.allclose(pooled, expected, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_text_alone_goes_through_the_language_model_unchanged(tied: bool) -> None:
    parts = _llama_parts(tied=tied)
    source = copy.deepcopy(parts.causal_lm)
    model, processor = _build(parts)
    ids = processor.tokenizer("press two", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = source(input_ids=ids).logits
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(found[..., : expected.shape[-1]], expected)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert found.shape[-1] == len(processor.tokenizer) == model.config.text_config.vocab_size


@pytest.mark.parametrize("num_spare_rows", [0, 2, 50])
def test_new_tokens_start_near_the_mean_row(num_spare_rows: int) -> None:
    parts = _llama_parts(tied=False, num_spare_rows=num_spare_rows)
    num_known = len(parts.tokenizer)
    old = parts.causal_lm.get_input_embeddings().weight.detach().clone()
    old_head = parts.causal_lm.lm_head.weight.detach().clone()
    model, processor = _build(parts)
    num_tokens = len(processor.tokenizer)
    for before, after in ((old, model.get_input_embeddings().weight), (old_head, model.lm_head.weight)):
        assert after.shape[0] == max(num_tokens, num_known + num_spare_rows)
        assert torch.equal(after[:num_known], before[:num_known])
        new = after[num_known:num_tokens]
        assert (new - before[:num_known].mean(dim=0)).abs().max() < before.std()
        assert len(new.unique(dim=0)) == num_tokens - num_known == 5
        assert torch.equal(after[num_tokens:], before[num_tokens:])


def test_what_is_random_hangs_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = _build(_llama_parts(tied=True), seed=7)[0], None
    torch.manual_seed(5)
    whisper, parts = _whisper_parts(_whisper_model()), _llama_parts(tied=True)
    torch.manual_seed(5)
    second, _ = _build(parts, seed=7, whisper=whisper)
    assert torch.equal(torch.random.get_rng_state(), state)
    third, _ = _build(_llama_parts(tied=True), seed=8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    projector = "model.multi_modal_projector.linear.weight"
    assert not torch.equal(first.state_dict()[projector], third.state_dict()[projector])
    # Normalised states of this width come out with the spread of the embeddings.
    weight = first.state_dict()[projector]
    embeddings = first.get_input_embeddings().weight
    expected = embeddings.pow(2).mean().sqrt().item() / weight.shape[1] ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.2)


def test_config_names_the_tokens() -> None:
    model, processor = _build(_llama_parts(tied=True))
    end_of_text, turn_end, audio = processor.tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_end|>", "<|AUDIO|>"]
    )
    assert model.config.audio_token_index == processor.audio_token_id == audio
    assert (model.config.text_config.pad_token_id, model.config.text_config.eos_token_id) == (end_of_text, turn_end)
    assert model.generation_config.eos_token_id == [turn_end, end_of_text]
    assert model.generation_config.pad_token_id == end_of_text
    assert not model.training


class OurModel(Qwen2AudioForConditionalGeneration):
    """A subclass, as the project's own model is one."""


def test_saved_folder_loads_in_stock_classes(tmp_path: Path) -> None:
    model, processor = _build(_llama_parts(tied=True), model_class=OurModel)
    assert type(model) is OurModel
    save_built(model, processor, tmp_path / "deep" / "model")
    folder = tmp_path / "deep" / "model"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]

    stock, report = Qwen2AudioForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    again = AutoProcessor.from_pretrained(folder)

    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    assert stock.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert again.chat_template == processor.chat_template
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = _inputs(again)
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        name: tensor.tolist() for name, tensor in _inputs(processor).items()
    }
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.equal(stock.eval()(**inputs).logits, model(**inputs).logits)


def test_positions_stay_frozen_through_saving(tmp_path: Path) -> None:
    model, processor = build_tiny(max_clip_seconds=SECONDS)
    assert not model.model.audio_tower.embed_positions.weight.requires_grad
    save_built(model, processor, tmp_path / "m")
    loaded, _ = load_built(tmp_path / "m")
    table = loaded.model.audio_tower.embed_positions.weight
    assert not table.requires_grad
    assert torch.equal(table, sinusoids(50 * SECONDS, 32))
    assert all(p.requires_grad for name, p in loaded.named_parameters() if "embed_positions" not in name)


def test_sinusoids_are_whispers() -> None:
    expected = _whisper_model().model.encoder.embed_positions.weight
    assert torch.allclose(sinusoids(*expected.shape), expected, atol=1e-6)


def test_a_model_is_not_written_over_something_else(tmp_path: Path) -> None:
    model, processor = build_tiny(max_clip_seconds=SECONDS)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        save_built(model, processor, tmp_path)


def test_parts_that_do_not_fit_are_refused() -> None:
    whisper = tiny_whisper(max_clip_seconds=2)
    wrong_length = WhisperParts(whisper.config, None, tiny_whisper(max_clip_seconds=1).feature_extractor)
    with pytest.raises(ConfigError, match="positions"):
        _build(_llama_parts(tied=True), whisper=wrong_length)
    wrong_mels = WhisperParts(whisper.config, None, tiny_whisper(128, max_clip_seconds=2).feature_extractor)
    with pytest.raises(ConfigError, match="mel bins"):
        _build(_llama_parts(tied=True), whisper=wrong_mels)
    wrong_state = WhisperParts(whisper.config, {"conv1.weight": torch.zeros(1)}, whisper.feature_extractor)
    with pytest.raises(ConfigError, match="do not fit"):
        _build(_llama_parts(tied=True), whisper=wrong_state)


def test_first_layers_only(tmp_path: Path) -> None:
    parts = TINY_LANGUAGE_MODEL.build(TEXTS, seed=0)
    first = copy.deepcopy(parts.causal_lm.model.layers[0].state_dict())
    model, processor = _build(keep_first_layers(parts, 1))
    save_built(model, processor, tmp_path / "m")
    loaded, _ = load_built(tmp_path / "m")
    assert len(loaded.model.language_model.layers) == 1
    for name, tensor in loaded.model.language_model.layers[0].state_dict().items():
        assert torch.equal(tensor, first[name])
    with pytest.raises(ConfigError, match="num_layers is 3"):
        keep_first_layers(TINY_LANGUAGE_MODEL.build(TEXTS, seed=0), 3)
