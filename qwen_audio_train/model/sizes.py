"""The sizes that come with the project, all made by ``build_from_parts`` except the released checkpoint.

| size | audio tower | language model |
|---|---|---|
| tiny | 2 random layers of width 32 | 2 random layers, BPE of some 400 entries |
| demo | Whisper-base, real | small, from scratch, BPE trained on given texts |
| small | Whisper-base, real | SmolLM2-135M-Instruct, real (or its first layers) |
| qwen2_audio_7b | Qwen/Qwen2-Audio-7B as released | the same |
| qwen2_audio_7b_from_parts | Whisper-large-v3, real | a 7B Qwen, real |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AddedToken,
    PreTrainedTokenizerFast,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from qwen_audio_train.model.build import STOCK_CLASS, Built, build_from_parts, load_built
from qwen_audio_train.model.language_model import (
    SMOLLM2_NAME,
    LanguageModelParts,
    keep_first_layers,
    load_causal_lm,
)
from qwen_audio_train.model.tokenizer import MODEL_MAX_TOKENS, train_byte_level_bpe
from qwen_audio_train.model.whisper import WHISPER_BASE_ID, WhisperParts, load_whisper

RELEASED_ID = "Qwen/Qwen2-Audio-7B"
WHISPER_LARGE_ID = "openai/whisper-large-v3"
LANGUAGE_MODEL_7B_ID = "Qwen/Qwen2.5-7B"
"""Stand-in for the paper's Qwen-7B, whose checkpoint needs remote code, which this project never runs. It differs: 28
layers of width 3584 with 4 key/value heads instead of 32 of width 4096 with 32."""

DEFAULT_LANGUAGES = ("en", "zh", "yue", "ja", "ko", "de", "es", "fr", "it", "ru")

_TINY_SENTENCES = Path(__file__).with_name("tiny_sentences.txt")


@dataclass(frozen=True, slots=True)
class NewLanguageModel:
    """A Qwen2-architecture language model to be trained from scratch, and its vocabulary."""

    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_key_value_heads: int = 4
    intermediate_size: int = 704
    vocab_size: int = 1000
    """Upper bound for the trained byte-pair vocabulary, before audio tokens and language tags."""
    dropout: float = 0.0
    """Of attention weights; the architecture has no other."""

    def build(self, texts: Iterable[str], seed: int, phrases: Sequence[str] = ()) -> LanguageModelParts:
        """Random weights from ``seed``; a vocabulary learnt from ``texts``, with each of ``phrases`` as one entry."""
        tokenizer = train_byte_level_bpe(texts, self.vocab_size)
        tokenizer.add_tokens([AddedToken(phrase, normalized=False, special=False) for phrase in phrases])
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=MODEL_MAX_TOKENS,
            attention_dropout=self.dropout,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LanguageModelParts(Qwen2ForCausalLM(config), tokenizer)


TINY_LANGUAGE_MODEL = NewLanguageModel(
    hidden_size=32, num_layers=2, num_heads=2, num_key_value_heads=2, intermediate_size=64, vocab_size=400
)


def _tiny_texts() -> list[str]:
    return _TINY_SENTENCES.read_text(encoding="utf-8").splitlines()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny size's vocabulary, without audio tokens: same ids at every call."""
    return train_byte_level_bpe(_tiny_texts(), TINY_LANGUAGE_MODEL.vocab_size)


def tiny_whisper(num_mel_bins: int = 80, max_clip_seconds: int = 30) -> WhisperParts:
    """A random two-layer encoder of width 32. Shorter clips make for faster tests."""
    config = WhisperConfig(
        num_mel_bins=num_mel_bins,
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        max_source_positions=50 * max_clip_seconds,
    )
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=max_clip_seconds)
    return WhisperParts(config, None, extractor)


def build_tiny(
    *,
    seed: int = 0,
    languages: Sequence[str] = DEFAULT_LANGUAGES,
    max_clip_seconds: int = 30,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
) -> Built:
    """Random weights, for tests: some 100 thousand parameters, built in a fraction of a second."""
    return build_from_parts(
        whisper=tiny_whisper(max_clip_seconds=max_clip_seconds),
        language_model=TINY_LANGUAGE_MODEL.build(_tiny_texts(), seed),
        languages=languages,
        seed=seed,
        model_class=model_class,
    )


def build_demo(
    texts: Iterable[str],
    *,
    language_model: NewLanguageModel,
    phrases: Sequence[str] = (),
    whisper: str = WHISPER_BASE_ID,
    seed: int = 0,
    languages: Sequence[str] = DEFAULT_LANGUAGES,
    cache_dir: Path | None = None,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
) -> Built:
    """A real Whisper encoder and a language model from scratch, whose vocabulary is learnt from ``texts``."""
    return build_from_parts(
        whisper=load_whisper(whisper, cache_dir),
        language_model=language_model.build(texts, seed, phrases),
        languages=languages,
        seed=seed,
        model_class=model_class,
    )


def build_pretrained(
    *,
    whisper: str = WHISPER_BASE_ID,
    language_model: str = SMOLLM2_NAME,
    num_language_model_layers: int | None = None,
    seed: int = 0,
    languages: Sequence[str] = DEFAULT_LANGUAGES,
    cache_dir: Path | None = None,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
    dtype: torch.dtype = torch.float32,
) -> Built:
    """Both parts pretrained; by default the size ``small``.

    ``num_language_model_layers`` keeps only that many first blocks of the language model.
    """
    parts = load_causal_lm(language_model, cache_dir, dtype)
    if num_language_model_layers is not None:
        parts = keep_first_layers(parts, num_language_model_layers)
    return build_from_parts(
        whisper=load_whisper(whisper, cache_dir),
        language_model=parts,
        languages=languages,
        seed=seed,
        model_class=model_class,
        dtype=dtype,
    )


def build_qwen2_audio_7b_from_parts(
    *,
    seed: int = 0,
    languages: Sequence[str] = DEFAULT_LANGUAGES,
    language_model: str = LANGUAGE_MODEL_7B_ID,
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS,
    dtype: torch.dtype = torch.bfloat16,
) -> Built:
    """The paper's starting point as near as safe code allows: see ``LANGUAGE_MODEL_7B_ID``."""
    return build_pretrained(
        whisper=WHISPER_LARGE_ID,
        language_model=language_model,
        seed=seed,
        languages=languages,
        model_class=model_class,
        dtype=dtype,
    )


def load_qwen2_audio_7b(
    model_class: type[Qwen2AudioForConditionalGeneration] = STOCK_CLASS, dtype: torch.dtype = torch.bfloat16
) -> Built:
    """The released base checkpoint, from the hub."""
    return load_built(RELEASED_ID, model_class, dtype)
