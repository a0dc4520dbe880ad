from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.model.ctranslate2 import read_arrays, read_whisper

DTYPE_IDS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4}


def _text(text: str) -> bytes:
    content = text.encode() + b"\0"
    return struct.pack("<H", len(content)) + content


def _array(name: str, array: torch.Tensor) -> bytes:
    content = array.contiguous().numpy().tobytes()
    shape = b"".join(struct.pack("<I", size) for size in array.shape)
    return (
        _text(name)
        + struct.pack("<B", array.dim())
        + shape
        + struct.pack("<BI", DTYPE_IDS[array.dtype], len(content))
        + content
    )


def _file(arrays: dict[str, torch.Tensor], aliases: dict[str, str], spec: str = "WhisperSpec") -> bytes:
    head = struct.pack("<I", 6) + _text(spec) + struct.pack("<II", 3, len(arrays))
    body = b"".join(_array(name, array) for name, array in arrays.items())
    tail = b"".join(_text(alias) + _text(target) for alias, target in aliases.items())
    return head + body + struct.pack("<I", len(aliases)) + tail


def _whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20, num_mel_bins=4, d_model=8, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=4, encoder_ffn_dim=16, decoder_ffn_dim=16, max_source_positions=6,
        max_target_positions=5, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.half()


def _as_ctranslate2(model: WhisperForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The fusing that CTranslate2's converter does, written independently of the reader."""
    state = model.state_dict()
    arrays = {
        "encoder/num_heads": torch.tensor(2, dtype=torch.int16),
        "decoder/num_heads": torch.tensor(4, dtype=torch.int16),
        "decoder/embeddings/weight": state["model.decoder.embed_tokens.weight"],
    }
    for conv in ("conv1", "conv2"):
        arrays[f"encoder/{conv}/weight"] = state[f"model.encoder.{conv}.weight"]
        arrays[f"encoder/{conv}/bias"] = state[f"model.encoder.{conv}.bias"]

    def linear(target: str, *sources: str) -> None:
        weights = [state[f"{source}.weight"] for source in sources]
        biases = [
            state.get(f"{source}.bias", torch.zeros(len(weight), dtype=torch.float16))
            for source, weight in zip(sources, weights, strict=True)
        ]
        arrays[f"{target}/weight"], arrays[f"{target}/bias"] = torch.cat(weights), torch.cat(biases)

    def norm(target: str, source: str) -> None:
        arrays[f"{target}/gamma"], arrays[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for side, num_layers in (("encoder", 1), ("decoder", 2)):
        arrays[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(num_layers):
            target, source = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
            own = f"{source}.self_attn"
            linear(f"{target}/self_attention/linear_0", f"{own}.q_proj", f"{own}.k_proj", f"{own}.v_proj")
            linear(f"{target}/self_attention/linear_1", f"{own}.out_proj")
            norm(f"{target}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            linear(f"{target}/ffn/linear_0", f"{source}.fc1")
            linear(f"{target}/ffn/linear_1", f"{source}.fc2")
            norm(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm")
            if side == "decoder":
                cross = f"{source}.encoder_attn"
                linear(f"{target}/attention/linear_0", f"{cross}.q_proj")
                linear(f"{target}/attention/linear_1", f"{cross}.k_proj", f"{cross}.v_proj")
                linear(f"{target}/attention/linear_2", f"{cross}.out_proj")
                norm(f"{target}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
    return arrays


def test_reads_every_whisper_weight_back(tmp_path: Path) -> None:
    model = _whisper()
    path = tmp_path / "model.bin"
    path.write_bytes(_file(_as_ctranslate2(model), {"decoder/projection/weight": "decoder/embeddings/weight"}))

    shape, state = read_whisper(path)

    expected = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, expected[name].float()), name
    assert (shape.encoder_layers, shape.decoder_layers, shape.d_model, shape.num_mel_bins) == (1, 2, 8, 4)
    assert (shape.encoder_attention_heads, shape.decoder_attention_heads, shape.max_source_positions) == (2, 4, 6)


def test_int8_weights_are_scaled_by_row(tmp_path: Path) -> None:
    arrays = _as_ctranslate2(_whisper())
    name = "encoder/layer_0/ffn/linear_0/weight"
    quantised = torch.arange(128, dtype=torch.int8).reshape(16, 8)
    arrays[name], arrays[f"{name}_scale"] = quantised, torch.full((16,), 4.0)
    path = tmp_path / "model.bin"
    path.write_bytes(_file(arrays, {}))
    assert torch.equal(read_whisper(path)[1]["model.encoder.layers.0.fc1.weight"], quantised.float() / 4)


def test_a_key_bias_is_refused(tmp_path: Path) -> None:
    arrays = _as_ctranslate2(_whisper())
    arrays["encoder/layer_0/self_attention/linear_0/bias"][9] = 1.0
    path = tmp_path / "model.bin"
    path.write_bytes(_file(arrays, {}))
    with pytest.raises(CheckpointError, match="bias for the keys"):
        read_whisper(path)


SMALL = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int8)}


def test_every_cut_of_a_file_is_an_error(tmp_path: Path) -> None:
    content = _file(SMALL, {"c": "a"})
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert set(read_arrays(path)) == {"a", "b", "c"}
    for num_bytes in range(len(content)):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(CheckpointError):
            read_arrays(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_file(SMALL, {}) + b"x", "follow the end"),
        (_file(SMALL, {"c": "nothing"}), "points to 'nothing'"),
        (_file(SMALL, {}, spec="TransformerSpec"), "TransformerSpec"),
        (struct.pack("<I", 6) + _text("WhisperSpec") + struct.pack("<II", 3, 2**32 - 1), "number of arrays"),
        (_file(SMALL, {}).replace(struct.pack("<II", 2, 3), struct.pack("<II", 2, 2**31)), "cannot have 24 bytes"),
    ],
    ids=["trailing", "alias", "spec", "count", "shape"],
)
def test_false_claims_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_arrays(path)


def test_another_model_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(_file(SMALL, {}))
    with pytest.raises(CheckpointError, match="not a Whisper model"):
        read_whisper(path)
