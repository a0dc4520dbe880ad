from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.gguf import read_gguf
from qwen_audio_train.model.gguf_llama import load_llama_gguf
from qwen_audio_train.model.tokenizer import train_byte_level_bpe

F32, F16, Q4_0, Q4_1, Q8_0 = 0, 1, 2, 3, 8
SPECIAL, ORDINARY = 3, 1


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _typed(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case list():
            elements = [_typed(element) for element in value]
            kind = elements[0][:4] if elements else struct.pack("<I", 4)
            return struct.pack("<I", 9) + kind + struct.pack("<Q", len(value)) + b"".join(e[4:] for e in elements)
    raise TypeError(value)


def _gguf(metadata: dict[str, Any], tensors: dict[str, tuple[list[int], int, bytes]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _typed(value) for key, value in metadata.items())
    data = b""
    for name, (shape, format_id, content) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape[::-1])
        head += struct.pack("<IQ", format_id, len(data))
        data += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + data


def _half(value: float) -> bytes:
    return np.float16(value).tobytes()


def _nibbles(values: list[int]) -> bytes:
    return bytes(low | high << 4 for low, high in zip(values[:16], values[16:], strict=True))


LEVELS = [(7 * index) % 16 for index in range(32)]
SIGNED = [index * 8 - 128 for index in range(32)]


@pytest.mark.parametrize(
    ("format_id", "block", "expected"),
    [
        (F32, np.arange(32, dtype=np.float32).tobytes(), list(range(32))),
        (F16, np.arange(32, dtype=np.float16).tobytes(), list(range(32))),
        (Q4_0, _half(0.5) + _nibbles(LEVELS), [0.5 * (level - 8) for level in LEVELS]),
        (Q4_1, _half(0.5) + _half(-3) + _nibbles(LEVELS), [0.5 * level - 3 for level in LEVELS]),
        (Q8_0, _half(0.25) + np.array(SIGNED, dtype=np.int8).tobytes(), [0.25 * value for value in SIGNED]),
    ],
)
def test_each_format(tmp_path: Path, format_id: int, block: bytes, expected: list[float]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(
        _gguf({"general.name": "x"}, {"first": ([1], F32, bytes(4)), "t": ([2, 32], format_id, block * 2)})
    )
    tensor = read_gguf(path).tensors["t"]
    assert tensor.dtype is torch.float32
    assert tensor.tolist() == [expected, expected]


def test_metadata_types(tmp_path: Path) -> None:
    metadata = {"a": 7, "b": 0.5, "c": True, "d": "text", "e": ["x", "y z"], "f": [], "g": [[1, 2], [3]]}
    path = tmp_path / "m.gguf"
    path.write_bytes(_gguf(metadata, {}))
    assert read_gguf(path).metadata == metadata


def test_every_cut_of_a_file_is_an_error(tmp_path: Path) -> None:
    content = _gguf({"a": ["x", "y"], "b": 1.0}, {"t": ([32], Q8_0, bytes(34)), "u": ([8], F32, bytes(32))})
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert set(read_gguf(path).tensors) == {"t", "u"}
    for num_bytes in range(len(content)):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(CheckpointError):
            read_gguf(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML" + bytes(20), "does not start with"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "number of metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + bytes(64), "metadata key"),
        (_gguf({"general.alignment": 0}, {}), "alignment"),
        (_gguf({}, {"t": ([32], 12, bytes(64))}), "format 12"),
        (_gguf({}, {"t": ([31], Q8_0, bytes(64))}), "whole blocks"),
        (_gguf({}, {"t": ([2**40, 2**40], F32, bytes(64))}), "needs"),
        (_gguf({"a": [[[1]]]}, {}), "deeper"),
    ],
)
def test_false_claims_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_gguf(path)


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _llama_file(model: LlamaForCausalLM) -> tuple[bytes, Any]:
    """As llama.cpp's converter writes it: rotary halves of q and k interleaved, tied head left out."""
    tensors = {}
    for name, tensor in model.model.state_dict().items():
        weight, target = (
            tensor,
            {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}.get(name),
        )
        if target is None:
            _, layer, rest = name.split(".", 2)
            part = rest.removesuffix(".weight")
            target = f"blk.{layer}.{GGUF_NAMES[part]}.weight"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = 4 if "q_proj" in part else 2
                weight = tensor.view(heads, 2, -1, 16).transpose(1, 2).reshape(tensor.shape)
        tensors[target] = (list(weight.shape), F32, weight.contiguous().numpy().tobytes())
    tokenizer = train_byte_level_bpe(["low lower lowest 12 new newer"], 300)
    tokens = [tokenizer.convert_ids_to_tokens(token_id) for token_id in range(len(tokenizer))]
    metadata = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 64,
        "llama.embedding_length": 16, "llama.feed_forward_length": 24, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 5000.0, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [SPECIAL if token.startswith("<|") else ORDINARY for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(tokenizer)],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
    }  # fmt: skip
    tensors["token_embd.weight"] = (
        [len(tokens), 16],
        F32,
        model.model.embed_tokens.weight[: len(tokens)].detach().numpy().tobytes(),
    )
    return _gguf(metadata, tensors), tokenizer


def _merges(tokenizer: Any) -> list[list[str]]:
    import json

    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def test_llama_computes_the_same_as_its_source(tmp_path: Path) -> None:
    source = _llama()
    path = tmp_path / "m.gguf"
    content, source_tokenizer = _llama_file(source)
    path.write_bytes(content)

    model, tokenizer = load_llama_gguf(path)

    text = "<|im_start|>lower newest 127<|im_end|>"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.tolist() == [source_tokenizer(text).input_ids]
    assert tokenizer.get_vocab() == source_tokenizer.get_vocab()
    assert tokenizer.eos_token == "<|im_end|>"
    with torch.no_grad():
        expected = source(input_ids=ids).logits[..., : len(tokenizer)]
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-6)


def test_llama_file_of_other_numbers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content, _ = _llama_file(_llama())
    wrong = content.replace(_text("llama.block_count") + _typed(2), _text("llama.block_count") + _typed(3))
    path.write_bytes(wrong)
    with pytest.raises(CheckpointError, match="do not fit its metadata"):
        load_llama_gguf(path)
    path.write_bytes(content.replace(_typed("llama"), _typed("lluma")))
    with pytest.raises(CheckpointError, match="lluma"):
        load_llama_gguf(path)
