"""A Qwen2-style tokenizer trained in-process: byte-level BPE with Qwen2's own pre-tokeniser, a few hundred merges."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AddedToken, Qwen2AudioProcessor, Qwen2Tokenizer, WhisperFeatureExtractor

from qwen_audio_train.prompts.render import REQUIRED_TOKENS
from qwen_audio_train.prompts.tasks import language_tags

CORPUS = (
    "You are a helpful assistant.\n\n system\n user\n assistant\n Audio 1: Audio 2: Audio 3: Audio 12: \n\n\n",
    "What does the person say? The sound of glass shattering. It is 12 34 567. Detect the language and",
    "Что это за звук? Это стекло. Помощник говорит: да.\n \n  \n\t\n",
    "这是什么声音?玻璃碎了。",
    "Which language is this? Recognize the speech: translate the speech into English: keywords in English:",
)


@cache
def toy_tokenizer() -> Qwen2Tokenizer:
    """With every special token that prompts need, and all language tags."""
    stock = Qwen2Tokenizer().backend_tokenizer
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    trained.train_from_iterator([*CORPUS] * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    tokens = [AddedToken(token, special=True, normalized=False) for token in (*REQUIRED_TOKENS, *language_tags())]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


@cache
def toy_processor() -> Qwen2AudioProcessor:
    """The stock processor, with its default chat template."""
    return Qwen2AudioProcessor(feature_extractor=WhisperFeatureExtractor(feature_size=80), tokenizer=toy_tokenizer())
