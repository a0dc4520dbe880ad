"""A Llama-architecture language model with its tokenizer from a GGUF file (for instance SmolLM2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.gguf import GgufFile, read_gguf
from qwen_audio_train.model.tokenizer import qwen2_pre_tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_llama_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Model in fp32 and its tokenizer, whose ids are the file's.

    Raises CheckpointError when the file is not a byte-level-BPE Llama model or its tensors do not fit its own numbers.
    """
    gguf = read_gguf(path)
    try:
        config, state = llama_config(gguf), llama_state_dict(gguf)
        tokenizer = llama_tokenizer(gguf)
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"'{path}' is not a usable Llama GGUF file: {type(error).__name__} {error}.") from error
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    if expected != found:
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        raise CheckpointError(f"Tensors of '{path}' do not fit its metadata, for instance '{wrong[0]}'.")
    # Rotary tables are no parameters; from_pretrained makes them where a meta model would leave them empty.
    model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    return model.eval(), tokenizer


def llama_config(gguf: GgufFile) -> LlamaConfig:
    metadata = gguf.metadata
    if metadata["general.architecture"] != "llama":
        raise ValueError(f"architecture '{metadata['general.architecture']}', expected 'llama'")
    for name in metadata:
        if name.startswith("llama.rope.scaling"):
            raise ValueError(f"'{name}': scaled rotary positions are not read here")
    num_heads = metadata["llama.attention.head_count"]
    return LlamaConfig(
        vocab_size=gguf.tensors["token_embd.weight"].shape[0],
        hidden_size=metadata["llama.embedding_length"],
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=num_heads,
        num_key_value_heads=metadata.get("llama.attention.head_count_kv", num_heads),
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": metadata.get("llama.rope.freq_base", 10_000.0)},
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings="output.weight" not in gguf.tensors,
    )


def llama_state_dict(gguf: GgufFile) -> dict[str, torch.Tensor]:
    num_heads = gguf.metadata["llama.attention.head_count"]
    num_kv_heads = gguf.metadata.get("llama.attention.head_count_kv", num_heads)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in gguf.tensors.items():
        match name.split("."):
            case ["blk", layer, part, "weight"]:
                if part in ("attn_q", "attn_k"):
                    weight = _interleaved_to_halves(tensor, num_heads if part == "attn_q" else num_kv_heads)
                else:
                    weight = tensor
                state[f"model.layers.{int(layer)}.{_BLOCK_NAMES[part]}.weight"] = weight
            case [part, "weight"]:
                state[f"{_TOP_NAMES[part]}.weight"] = tensor
            case _:
                raise ValueError(f"unknown tensor '{name}'")
    return state


def _interleaved_to_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF stores each head's rotary pairs side by side, transformers as first halves then second halves."""
    rows = weight.shape[0]
    return weight.reshape(num_heads, rows // num_heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def llama_tokenizer(gguf: GgufFile) -> PreTrainedTokenizerFast:
    metadata = gguf.metadata
    if metadata["tokenizer.ggml.model"] != "gpt2":
        raise ValueError(f"tokenizer model '{metadata['tokenizer.ggml.model']}', expected byte-level BPE ('gpt2')")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("a token comes twice in the vocabulary")
    merges = [_merge_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _pre_tokenization(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    tokenizer.decoder = decoders.ByteLevel()
    token_types = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token_type == _CONTROL, normalized=False)
            for token, token_type in zip(tokens, token_types, strict=True)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    named = {
        f"{role}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


def _merge_pair(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def _pre_tokenization(name: str) -> tuple[Any, Any]:
    """Normaliser and pre-tokeniser that the GGUF field ``tokenizer.ggml.pre`` names."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match name:
        case "gpt-2" | "gpt2" | "default":
            return None, byte_level
        case "smollm":
            return None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        case "qwen2":
            return normalizers.NFC(), qwen2_pre_tokenizer()
        case _:
            raise ValueError(f"pre-tokenisation '{name}'; known are gpt-2, smollm, qwen2")
