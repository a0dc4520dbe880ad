from __future__ import annotations

import base64
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from qwen_audio_train.errors import CheckpointError, ConfigError
from qwen_audio_train.model.tokenizer import (
    AUDIO_TOKENS,
    CHAT_TOKENS,
    add_audio_tokens,
    qwen_tokenizer_from_ranks,
    train_byte_level_bpe,
)

TEXTS = ["the lower the newer", "low lower lowest new newer newest", "12 34 1234"]
ANY_TEXT = "Grüße, мир! 你好 1234\n\n\U0001f600\x00"


def test_any_text_survives_a_round_trip() -> None:
    tokenizer = train_byte_level_bpe(TEXTS, 300)
    assert tokenizer.decode(tokenizer(ANY_TEXT).input_ids) == ANY_TEXT
    assert len(tokenizer(" lower").input_ids) < 6


def test_digits_stand_alone() -> None:
    assert len(train_byte_level_bpe(["1234 " * 50], 300)("1234").input_ids) == 4


def test_same_texts_same_ids() -> None:
    assert train_byte_level_bpe(TEXTS, 270).get_vocab() == train_byte_level_bpe(TEXTS, 270).get_vocab()
    assert len(train_byte_level_bpe(TEXTS, 270)) == 270


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="259"):
        train_byte_level_bpe(TEXTS, 258)


def test_audio_tokens_follow_in_order_as_single_specials() -> None:
    tokenizer = train_byte_level_bpe(TEXTS, 280)
    size = len(tokenizer)
    add_audio_tokens(tokenizer, ["en", "yue"])
    wanted = [*AUDIO_TOKENS, "<|en|>", "<|yue|>"]
    assert tokenizer.convert_tokens_to_ids(wanted) == list(range(size, size + 5))
    text = "low<|audio_bos|><|AUDIO|><|AUDIO|><|audio_eos|> <|en|>low"
    ids = tokenizer(text).input_ids
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if token.startswith("<|")] == [
        "<|audio_bos|>", "<|AUDIO|>", "<|AUDIO|>", "<|audio_eos|>", "<|en|>",
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "low low"
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<|endoftext|>", "<|im_end|>", None)
    assert len(add_audio_tokens(tokenizer, ["en", "yue"])) == size + 5


def test_a_tokenizer_without_chatml_gets_it() -> None:
    backend = Tokenizer(BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = add_audio_tokens(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert tokenizer.convert_tokens_to_ids([*CHAT_TOKENS, *AUDIO_TOKENS]) == list(range(256, 262))


def _ranks_file(path: Path, extra: list[bytes]) -> Path:
    entries = [bytes([byte]) for byte in range(256)] + extra
    path.write_bytes(b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(entries)) + b"\n")
    return path


def test_ranks_give_back_the_merges(tmp_path: Path) -> None:
    extra = [b"lo", b"low", b" low", b"er", b"lower"]
    tokenizer = qwen_tokenizer_from_ranks(_ranks_file(tmp_path / "r", extra))
    rank = {token: 256 + index for index, token in enumerate(extra)}
    assert tokenizer("lower low").input_ids == [rank[b"lower"], rank[b" low"]]
    assert tokenizer("el").input_ids == [ord("e"), ord("l")]
    assert tokenizer.convert_tokens_to_ids([*CHAT_TOKENS, *AUDIO_TOKENS]) == list(range(261, 267))
    assert tokenizer.decode(tokenizer(ANY_TEXT).input_ids) == ANY_TEXT


@pytest.mark.parametrize("content", [b"", b"no base64\n", b"AA== x\n", b"AA== 5\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(CheckpointError):
        qwen_tokenizer_from_ranks(tmp_path / "r")
