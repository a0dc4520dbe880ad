"""Tokenizers for Qwen2-Audio-style models: train a small one, make any ChatML one fit, rebuild the released one.

What the rest of the project may rely on, whatever the tokenizer: ``<|endoftext|>`` pads and ends a pretraining target,
``<|im_end|>`` ends a chat turn, and the audio tokens and language tags are single special tokens. Ids of the released
checkpoint: 151643 ``<|endoftext|>``, 151644 ``<|im_start|>``, 151645 ``<|im_end|>``, 151646 ``<|AUDIO|>``,
151647 ``<|audio_bos|>``, 151648 ``<|audio_eos|>``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from qwen_audio_train.errors import CheckpointError, ConfigError

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
AUDIO = "<|AUDIO|>"
AUDIO_START = "<|audio_bos|>"
AUDIO_END = "<|audio_eos|>"
CHAT_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
AUDIO_TOKENS = (AUDIO, AUDIO_START, AUDIO_END)

MODEL_MAX_TOKENS = 8192
MIN_VOCAB_SIZE = 256 + len(CHAT_TOKENS)
MAX_RANKS_BYTES = 64 << 20

# Interface constant of the Qwen2 tokenizer: the pattern its merges were learnt on. Digits stand alone.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def language_tag(language: str) -> str:
    """The token that opens a pretraining target: ``en`` -> ``<|en|>``."""
    return f"<|{language}|>"


def qwen2_pre_tokenizer() -> Any:
    """Splits text as Qwen2 does, then maps its UTF-8 bytes to printable characters."""
    split = pre_tokenizers.Split(Regex(_QWEN2_PATTERN), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` entries, ChatML tokens included (fewer when the texts run out of pairs).

    Any text of any script survives a round trip, because all 256 bytes are entries.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least {MIN_VOCAB_SIZE}.")
    tokenizer = _byte_level_tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(CHAT_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return _with_chat_tokens(tokenizer)


def add_audio_tokens(tokenizer: PreTrainedTokenizerFast, languages: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Adds to ``tokenizer``, in place, what a Qwen2-Audio model needs and it does not have yet; returns it.

    New ids follow the existing ones in the order ChatML, audio, language tags. Sets pad to ``<|endoftext|>`` and eos to
    ``<|im_end|>``. Adding twice changes nothing.
    """
    wanted = (*CHAT_TOKENS, *AUDIO_TOKENS, *(language_tag(language) for language in languages))
    # All of them, also those that are there: a token that is an ordinary vocabulary entry becomes a special one.
    tokenizer.add_tokens([_special(token) for token in wanted])
    tokenizer.pad_token = END_OF_TEXT
    tokenizer.eos_token = TURN_END
    tokenizer.bos_token = None  # Qwen2-Audio's tokenizer has none: nothing is put in front of a text.
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = MODEL_MAX_TOKENS
    for token in wanted:
        if tokenizer.encode(token, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(token)]:
            raise ConfigError(f"This tokenizer ({type(tokenizer).__name__}) does not keep '{token}' as one token.")
    return tokenizer


def qwen_tokenizer_from_ranks(path: Path) -> PreTrainedTokenizerFast:
    """Qwen2-Audio's text vocabulary, with its chat and audio tokens, from the ``qwen.tiktoken`` file of ranks.

    The file lists entries, not merges; the merge that made an entry is found by replaying the earlier ones on it.
    The released checkpoint's further special tokens (language tags and others, from id 151649) are not in that file.
    Takes about 3 s. Raises CheckpointError when the file is not a list of ``base64 rank`` lines.
    """
    ranks = _read_ranks(path)
    to_text = _byte_characters()
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        pieces = _replay_merges(token, ranks, below_rank=rank)
        if len(pieces) == 2:
            merges.append((_as_text(pieces[0], to_text), _as_text(pieces[1], to_text)))
    vocabulary = {_as_text(token, to_text): rank for token, rank in ranks.items()}
    return add_audio_tokens(_with_chat_tokens(_byte_level_tokenizer(BPE(vocab=vocabulary, merges=merges))))


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _byte_level_tokenizer(bpe: BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = qwen2_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_chat_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens([_special(token) for token in CHAT_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=END_OF_TEXT,
        eos_token=TURN_END,
        padding_side="left",
        model_max_length=MODEL_MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    if not path.is_file():
        raise CheckpointError(f"There is no vocabulary file '{path}'.")
    if path.stat().st_size > MAX_RANKS_BYTES:
        raise CheckpointError(
            f"'{path}' has {path.stat().st_size} bytes; more than {MAX_RANKS_BYTES} are not accepted."
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            encoded, rank = line.split()
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"Line {number} of '{path}' is not 'base64 rank': {line[:60]!r}.") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not {bytes([byte]) for byte in range(256)} <= ranks.keys():
        raise CheckpointError(f"'{path}' is not a full byte-level vocabulary: ranks or single bytes are missing.")
    return ranks


def _replay_merges(token: bytes, ranks: dict[bytes, int], below_rank: int) -> list[bytes]:
    """What byte-pair encoding with only the entries before ``below_rank`` leaves of ``token``: two pieces, usually."""
    pieces = [bytes([byte]) for byte in token]
    while True:
        best_rank, best_index = below_rank, -1
        for index in range(len(pieces) - 1):
            rank = ranks.get(pieces[index] + pieces[index + 1], below_rank)
            if rank < best_rank:
                best_rank, best_index = rank, index
        if best_index < 0:
            return pieces
        pieces[best_index : best_index + 2] = [pieces[best_index] + pieces[best_index + 1]]


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 bytes stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


def _as_text(token: bytes, to_text: dict[int, str]) -> str:
    return "".join(to_text[byte] for byte in token)
