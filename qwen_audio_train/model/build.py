"""Whisper encoder + causal language model -> Qwen2-Audio model and processor, saved as an ordinary Hugging Face folder.

One function for every size, from two random layers to Whisper-large-v3 with a 7B model. What it starts from is what the
Qwen2-Audio report says: encoder and language model pretrained, the projector between them new. How the projector and
the rows of new tokens start is not published and is a choice made here.

Letters in tensor names: V vocabulary rows, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperConfig,
)
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model import hub
from qwen_audio_train.model.language_model import LanguageModelParts
from qwen_audio_train.model.tokenizer import AUDIO, END_OF_TEXT, TURN_END, add_audio_tokens
from qwen_audio_train.model.whisper import WhisperParts

STOCK_CLASS = Qwen2AudioForConditionalGeneration
NEW_ROW_NOISE = 0.1
"""Spread of a new token's row around the mean row, as a share of the old rows' own spread. Not zero, so that new tokens
differ from each other; small, so that none stands out among the logits."""
_POSITIONS_PER_CHUNK_SECOND = 50
_WHISPER_MAX_PERIOD = 10_000
_SMALLEST_GAIN = 0.05

Built = tuple[Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor]


def build_from_parts(
    *,
    whisper: WhisperParts,
    language_model: LanguageModelParts,
    languages: Sequence[str],
    seed: int,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
    dtype: torch.dtype = torch.float32,
) -> Built:
    """The model, in ``eval`` mode and ``dtype``, and its processor.

    Takes over the language model's modules and its tokenizer (to which audio tokens and the tags of ``languages`` are
    added), so neither may be used for anything else afterwards. What is random depends on ``seed`` alone and leaves the
    global random state as it was.

    Raises ConfigError when the parts do not fit together.
    """
    _check_front_end(whisper)
    causal_lm, tokenizer = language_model.causal_lm, language_model.tokenizer
    num_known_tokens = len(tokenizer)
    add_audio_tokens(tokenizer, languages)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        audio_tower = build_audio_tower(whisper)
        head = _grow_vocabulary(causal_lm, num_known_tokens, len(tokenizer))
        config = _model_config(causal_lm, audio_tower.config, tokenizer)
        with torch.device("meta"):
            model = model_class(config)
        model.model.audio_tower = audio_tower
        model.model.multi_modal_projector.linear = _new_projector(
            audio_tower.layer_norm, causal_lm.get_input_embeddings().weight
        )
        model.model.language_model = causal_lm.base_model
        model.lm_head = head
    model.generation_config = _generation_config(tokenizer)
    left_empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not left_empty, f"{model_class.__name__} has weights that no part provides: {left_empty}"
    return freeze_positions(model.to(dtype).eval()), Qwen2AudioProcessor(whisper.feature_extractor, tokenizer)


def build_audio_tower(whisper: WhisperParts) -> Qwen2AudioEncoder:
    """Qwen2-Audio's encoder with Whisper's weights: same names, and the added pooling has none.

    Qwen2-Audio pools pairs of frames before the last LayerNorm, which is Whisper's own.
    """
    tower = Qwen2AudioEncoder(encoder_config(whisper.config))
    if whisper.encoder_state is None:
        tower.embed_positions.weight.data = sinusoids(whisper.config.max_source_positions, whisper.config.d_model)
        return tower
    try:
        tower.load_state_dict({name: tensor.float() for name, tensor in whisper.encoder_state.items()}, strict=True)
    except RuntimeError as error:
        raise ConfigError(f"The Whisper weights do not fit their config: {error}") from error
    return tower


def encoder_config(whisper: WhisperConfig) -> Qwen2AudioEncoderConfig:
    """The Qwen2-Audio encoder of the same size as a Whisper's."""
    return Qwen2AudioEncoderConfig(
        num_mel_bins=whisper.num_mel_bins,
        d_model=whisper.d_model,
        encoder_layers=whisper.encoder_layers,
        encoder_attention_heads=whisper.encoder_attention_heads,
        encoder_ffn_dim=whisper.encoder_ffn_dim,
        encoder_layerdrop=whisper.encoder_layerdrop,
        dropout=whisper.dropout,
        attention_dropout=whisper.attention_dropout,
        activation_dropout=whisper.activation_dropout,
        activation_function=whisper.activation_function,
        scale_embedding=whisper.scale_embedding,
        max_source_positions=whisper.max_source_positions,
        initializer_range=whisper.init_std,
    )


def sinusoids(num_positions: int, width: int) -> torch.Tensor:
    """Whisper's fixed positions, shape (num_positions, width): sines in the first half of the width, cosines after."""
    step = math.log(_WHISPER_MAX_PERIOD) / (width // 2 - 1)
    angles = torch.arange(num_positions).unsqueeze(1) * torch.exp(-step * torch.arange(width // 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def freeze_positions(model: Qwen2AudioForConditionalGeneration) -> Qwen2AudioForConditionalGeneration:
    """Keeps the sinusoid table out of training. ``from_pretrained`` (transformers 5.23) makes it trainable again."""
    model.model.audio_tower.embed_positions.requires_grad_(False)
    return model


def save_built(model: Qwen2AudioForConditionalGeneration, processor: Qwen2AudioProcessor, folder: Path) -> None:
    """Writes a folder that stock ``from_pretrained`` and ``AutoProcessor`` load; it appears complete or not at all.

    Raises CheckpointError when ``folder`` exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(
            f"'{folder}' is not empty; a model is not written over something else. Choose a new folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    name_stock_class(unfinished)
    unfinished.replace(folder)


def name_stock_class(folder: Path) -> None:
    """Makes a saved config name transformers' own class, whichever subclass saved it."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = [STOCK_CLASS.__name__]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_built(
    source: str | Path,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
    dtype: torch.dtype = torch.float32,
) -> Built:
    """A Qwen2-Audio checkpoint (a folder or a hub id) and its processor, with the sinusoid table frozen again."""
    model = hub.load_model(model_class.from_pretrained, str(source), dtype=dtype)
    return freeze_positions(model), hub.load_pretrained(AutoProcessor.from_pretrained, str(source))


def _check_front_end(whisper: WhisperParts) -> None:
    config, extractor = whisper.config, whisper.feature_extractor
    if extractor.feature_size != config.num_mel_bins:
        raise ConfigError(
            f"The feature extractor makes {extractor.feature_size} mel bins, Whisper {config.num_mel_bins}."
        )
    if extractor.chunk_length * _POSITIONS_PER_CHUNK_SECOND != config.max_source_positions:
        raise ConfigError(
            f"The feature extractor pads to {extractor.chunk_length} s, the encoder has {config.max_source_positions} "
            f"positions: it needs {_POSITIONS_PER_CHUNK_SECOND} a second."
        )


def _grow_vocabulary(causal_lm: PreTrainedModel, num_known_tokens: int, num_tokens: int) -> nn.Linear:
    """Makes room for the new tokens in the embeddings, in place; returns a head of its own with as many rows.

    Rows are never removed: some checkpoints have spare ones. A spare row that becomes a token's starts like a new one.
    """
    table, old_head = causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()
    num_rows = max(num_tokens, table.weight.shape[0])
    embeddings_VD = _with_new_rows(table.weight.data, num_known_tokens, num_tokens, num_rows)
    # Qwen2-Audio's head is untied: a tied table is copied, so that both start equal and part in training.
    is_tied = old_head.weight is table.weight
    head_VD = (
        embeddings_VD.clone()
        if is_tied
        else _with_new_rows(old_head.weight.data, num_known_tokens, num_tokens, num_rows)
    )
    causal_lm.set_input_embeddings(nn.Embedding.from_pretrained(embeddings_VD, freeze=False))
    head = nn.Linear(head_VD.shape[1], num_rows, bias=False, device="meta")
    head.weight = nn.Parameter(head_VD)
    return head


def _with_new_rows(old_VD: torch.Tensor, num_known_tokens: int, num_tokens: int, num_rows: int) -> torch.Tensor:
    known_VD = old_VD[:num_known_tokens].float()
    num_new = num_tokens - num_known_tokens
    noise_VD = torch.randn(num_new, old_VD.shape[1]) * known_VD.std(dim=0) * NEW_ROW_NOISE
    rows_VD = torch.empty(num_rows, old_VD.shape[1], dtype=old_VD.dtype)
    rows_VD[: old_VD.shape[0]] = old_VD
    rows_VD[num_known_tokens:num_tokens] = (known_VD.mean(dim=0) + noise_VD).to(old_VD.dtype)
    return rows_VD


def _model_config(
    causal_lm: PreTrainedModel, audio_config: Qwen2AudioEncoderConfig, tokenizer: PreTrainedTokenizerFast
) -> Qwen2AudioConfig:
    text_config = causal_lm.config
    audio_id, end_of_text_id, turn_end_id = tokenizer.convert_tokens_to_ids([AUDIO, END_OF_TEXT, TURN_END])
    text_config.vocab_size = causal_lm.get_input_embeddings().weight.shape[0]
    text_config.tie_word_embeddings = False
    # As in the released config: chat turns end with eos, bos names the padding token and is never put in front.
    text_config.pad_token_id, text_config.bos_token_id = end_of_text_id, end_of_text_id
    text_config.eos_token_id = turn_end_id
    config = Qwen2AudioConfig(audio_config=audio_config, text_config=text_config, audio_token_index=audio_id)
    config.architectures = [STOCK_CLASS.__name__]
    return config


def _new_projector(last_norm: nn.LayerNorm, embeddings_VD: torch.Tensor) -> nn.Linear:
    """Projected audio starts with the spread of token embeddings, and each encoder feature with the same say.

    Whisper's last LayerNorm gives some features ten times the spread of others; its gain and bias are undone in the
    first weights. Without this, projected audio has several times the norm of text, and its few loudest features drown
    the rest.
    """
    linear = nn.Linear(last_norm.normalized_shape[0], embeddings_VD.shape[1], bias=True)
    spread = float(embeddings_VD.float().pow(2).mean().sqrt())
    nn.init.normal_(linear.weight, std=spread / math.sqrt(linear.in_features))
    gain = last_norm.weight.float()
    linear.weight.data /= torch.where(gain.abs() < _SMALLEST_GAIN, torch.ones_like(gain), gain)
    linear.bias.data = -linear.weight @ last_norm.bias.float()
    return linear


def _generation_config(tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    end_of_text_id, turn_end_id = tokenizer.convert_tokens_to_ids([END_OF_TEXT, TURN_END])
    return GenerationConfig(
        pad_token_id=end_of_text_id, bos_token_id=end_of_text_id, eos_token_id=[turn_end_id, end_of_text_id]
    )
