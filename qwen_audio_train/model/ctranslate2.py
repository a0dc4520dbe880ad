"""Whisper weights from a CTranslate2 ``model.bin``, as a Hugging Face state dict.

The format is a flat list of named arrays, so it is read here in full: no pickle, no CTranslate2. A Whisper-base file
(145 MB, fp16) takes about a second. Layout, little-endian: version, spec name, spec revision, number of arrays; per
array its name, rank, shape, dtype and bytes; then aliases (name, target). Texts are length-prefixed and end in NUL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.byte_cursor import ByteCursor

MAX_FILE_BYTES = 8 << 30
MAX_RANK = 8
_VERSION = 6
_SPEC = "WhisperSpec"
_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_LEAST_VARIABLE_BYTES = 9  # name length, NUL, rank, dtype, number of bytes

Arrays = dict[str, torch.Tensor]
StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class WhisperShape:
    """What the arrays alone say about the model; enough for a WhisperConfig."""

    num_mel_bins: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    ffn_dim: int
    vocab_size: int
    max_source_positions: int
    max_target_positions: int


def read_whisper(path: Path) -> tuple[WhisperShape, StateDict]:
    """Weights of ``path`` in fp32 under the names of ``WhisperForConditionalGeneration``.

    Raises CheckpointError when the file is missing, damaged, of another model or of another version.
    """
    arrays = read_arrays(path)
    try:
        return _shape_of(arrays), _to_state_dict(arrays, path)
    except KeyError as error:
        raise CheckpointError(f"'{path}' is not a Whisper model: it has no array {error}.") from error


def read_arrays(path: Path) -> Arrays:
    """All arrays of a CTranslate2 Whisper file by name, aliases resolved."""
    if not path.is_file():
        raise CheckpointError(f"There is no weight file '{path}'.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"'{path}' has {path.stat().st_size} bytes; more than {MAX_FILE_BYTES} are not accepted.")
    # A writable buffer, because torch.frombuffer shares it and warns about read-only memory.
    cursor = ByteCursor(memoryview(bytearray(path.read_bytes())), path)
    version, spec = cursor.unsigned(4, "version"), _name(cursor, "spec")
    if (version, spec) != (_VERSION, _SPEC):
        raise cursor.error(f"expected {_SPEC} version {_VERSION}, found '{spec}' version {version}")
    cursor.unsigned(4, "spec revision")
    arrays: Arrays = {}
    for _ in range(cursor.count(4, _LEAST_VARIABLE_BYTES, "number of arrays")):
        name = _name(cursor, "array name")
        if name in arrays:
            raise cursor.error(f"array '{name}' comes twice")
        arrays[name] = _array(cursor, name)
    for _ in range(cursor.count(4, 4, "number of aliases")):
        alias, target = _name(cursor, "alias"), _name(cursor, "alias target")
        if target not in arrays:
            raise cursor.error(f"alias '{alias}' points to '{target}', which is not there")
        arrays[alias] = arrays[target]
    if cursor.left_bytes:
        raise cursor.error(f"{cursor.left_bytes} bytes follow the end")
    return arrays


def _name(cursor: ByteCursor, what: str) -> str:
    return cursor.text(2, what).removesuffix("\0")


def _array(cursor: ByteCursor, name: str) -> torch.Tensor:
    rank = cursor.unsigned(1, f"rank of '{name}'")
    if rank > MAX_RANK:
        raise cursor.error(f"'{name}' claims {rank} dimensions")
    shape = [cursor.unsigned(4, f"shape of '{name}'") for _ in range(rank)]
    dtype_id = cursor.unsigned(1, f"dtype of '{name}'")
    if dtype_id >= len(_DTYPES):
        raise cursor.error(f"'{name}' has the unknown dtype {dtype_id}")
    dtype = _DTYPES[dtype_id]
    num_bytes = cursor.unsigned(4, f"size of '{name}'")
    if num_bytes != math.prod(shape) * dtype.itemsize:
        raise cursor.error(f"'{name}' of shape {shape} and dtype {dtype} cannot have {num_bytes} bytes")
    content = cursor.take(num_bytes, f"array '{name}'")
    if not num_bytes:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype).reshape(shape)


def _num_layers(arrays: Arrays, side: str) -> int:
    num_layers = 0
    while f"{side}/layer_{num_layers}/ffn/linear_0/weight" in arrays:
        num_layers += 1
    return num_layers


def _shape_of(arrays: Arrays) -> WhisperShape:
    d_model, num_mel_bins, _ = arrays["encoder/conv1/weight"].shape
    return WhisperShape(
        num_mel_bins=num_mel_bins,
        d_model=d_model,
        encoder_layers=_num_layers(arrays, "encoder"),
        decoder_layers=_num_layers(arrays, "decoder"),
        encoder_attention_heads=int(arrays["encoder/num_heads"]),
        decoder_attention_heads=int(arrays["decoder/num_heads"]),
        ffn_dim=arrays["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        vocab_size=arrays["decoder/embeddings/weight"].shape[0],
        max_source_positions=arrays["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=arrays["decoder/position_encodings/encodings"].shape[0],
    )


def _weight(arrays: Arrays, name: str) -> torch.Tensor:
    """Weight of a layer in fp32; int8 files carry one scale a row."""
    weight = arrays[f"{name}/weight"]
    if weight.dtype is torch.int8:
        return weight.float() / arrays[f"{name}/weight_scale"].float().unsqueeze(-1)
    return weight.float()


def _linear(arrays: Arrays, source: str, target: str) -> StateDict:
    return {f"{target}.weight": _weight(arrays, source), f"{target}.bias": arrays[f"{source}/bias"].float()}


def _layer_norm(arrays: Arrays, source: str, target: str) -> StateDict:
    return {f"{target}.weight": arrays[f"{source}/gamma"].float(), f"{target}.bias": arrays[f"{source}/beta"].float()}


def _split_linear(arrays: Arrays, source: str, targets: tuple[str, ...], path: Path) -> StateDict:
    """CTranslate2 fuses projections of one input. Whisper's key projection has no bias, so its part must be zero."""
    state: StateDict = {}
    weights = _weight(arrays, source).chunk(len(targets))
    biases = arrays[f"{source}/bias"].float().chunk(len(targets))
    for target, weight, bias in zip(targets, weights, biases, strict=True):
        state[f"{target}.weight"] = weight.clone()
        if not target.endswith("k_proj"):
            state[f"{target}.bias"] = bias.clone()
        elif bias.abs().max() > 0:
            raise CheckpointError(f"'{path}' is not a Whisper model: '{source}' has a bias for the keys.")
    return state


def _to_state_dict(arrays: Arrays, path: Path) -> StateDict:
    state: StateDict = {}
    for conv in ("conv1", "conv2"):
        state |= _linear(arrays, f"encoder/{conv}", f"model.encoder.{conv}")
    state["model.decoder.embed_tokens.weight"] = _weight(arrays, "decoder/embeddings")
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = arrays[f"{side}/position_encodings/encodings"].float()
        state |= _layer_norm(arrays, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(_num_layers(arrays, side)):
            source, target = f"{side}/layer_{layer}", f"model.{side}.layers.{layer}"
            own, attention = f"{source}/self_attention", f"{target}.self_attn"
            qkv = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
            state |= _split_linear(arrays, f"{own}/linear_0", qkv, path)
            state |= _linear(arrays, f"{own}/linear_1", f"{attention}.out_proj")
            state |= _layer_norm(arrays, f"{own}/layer_norm", f"{target}.self_attn_layer_norm")
            if side == "decoder":
                state |= _cross_attention(arrays, source, target, path)
            state |= _linear(arrays, f"{source}/ffn/linear_0", f"{target}.fc1")
            state |= _linear(arrays, f"{source}/ffn/linear_1", f"{target}.fc2")
            state |= _layer_norm(arrays, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _cross_attention(arrays: Arrays, source: str, target: str, path: Path) -> StateDict:
    cross, attention = f"{source}/attention", f"{target}.encoder_attn"
    return {
        **_linear(arrays, f"{cross}/linear_0", f"{attention}.q_proj"),
        **_split_linear(arrays, f"{cross}/linear_1", (f"{attention}.k_proj", f"{attention}.v_proj"), path),
        **_linear(arrays, f"{cross}/linear_2", f"{attention}.out_proj"),
        **_layer_norm(arrays, f"{cross}/layer_norm", f"{target}.encoder_attn_layer_norm"),
    }
