"""What training really holds, tensor by tensor. Also a program: one rank of a ZeRO step, for torchrun.

torchrun --nproc-per-node 2 tests/unit/model/measured_memory.py STAGE float32|bfloat16    # prints JSON, a line a rank
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from typing import Any

import torch
from transformers import Qwen2AudioConfig, Qwen2AudioEncoderConfig, Qwen2Config

from qwen_audio_train.audio.pack_clips import pack_clips
from qwen_audio_train.config.runtime import Device, RuntimeConfig
from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.samples import AttentionSpans, ClipFeatures
from qwen_audio_train.training import runtime

CLIP_FRAMES = 400
"""Of 10 ms; an encoder frame is two of them, an audio token four."""


def small_model(dtype: torch.dtype = torch.float32, *, checkpointing: bool = False, wide: bool = False) -> Any:
    """Towers of different widths, grouped queries: no two terms of a formula are the same by accident."""
    config = Qwen2AudioConfig(
        audio_config=Qwen2AudioEncoderConfig(
            num_mel_bins=80, d_model=48, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=200
        ).to_dict(),
        text_config=Qwen2Config(
            hidden_size=96 if wide else 64,
            intermediate_size=160,
            num_hidden_layers=5 if wide else 4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=700,
            tie_word_embeddings=False,
        ).to_dict(),
        audio_token_index=699,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    model = EfficientQwen2Audio(config).to(dtype).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def small_batch(rows: int, row_tokens: int, clips: int, scored: int, dtype: torch.dtype) -> dict[str, Any]:
    """One of our batches, ``rows`` samples packed, with clips of 4 s in the first slots."""
    slots = clips * CLIP_FRAMES // 4
    noise = torch.randn(clips, 80, CLIP_FRAMES).numpy()
    heard = pack_clips([ClipFeatures(mel, CLIP_FRAMES) for mel in noise])
    rows_of_batch = {
        "input_ids": torch.zeros(1, rows * row_tokens, dtype=torch.long),
        "position_ids": torch.arange(row_tokens).repeat(rows)[None],
        "spans": AttentionSpans((row_tokens,) * rows),
        "audio_source": torch.arange(slots),
        "audio_target": torch.arange(slots),
        "predict_from": torch.arange(rows * row_tokens - scored - 1, rows * row_tokens - 1),
        "label_ids": torch.ones(scored, dtype=torch.long),
        **heard,
    }
    return {"rows": rows_of_batch | {"mels": heard["mels"].to(dtype)}}


def stored(tensors: Iterable[Any]) -> int:
    """Bytes of storages, each counted once."""
    kept = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


def saved_bytes(model: Any, batch: dict[str, Any]) -> int:
    """What autograd keeps of a forward pass, weights and inputs apart."""
    own = [*model.parameters(), *model.buffers(), *python_tensors()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = model(**batch).log_probs
        assert scores.requires_grad
    # A checkpointed layer's inputs are held by its closure, where no hook sees them.
    new = [tensor for tensor in python_tensors() if tensor.untyped_storage().data_ptr() not in known]
    return stored([*kept, *new])


def python_tensors() -> list[torch.Tensor]:
    """All that Python holds anywhere."""
    return [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]


def zero_states(stage: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes on this rank behind one step of DeepSpeed's engine."""
    runtime.start(RuntimeConfig(device=Device.cpu, deepspeed=f"zero{stage}"), seed=0)
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "contiguous_gradients": True, "stage3_param_persistence_threshold": 0},
    }
    model = small_model(dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    engine, wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=settings)
    engine.backward(-engine(**small_batch(1, 220, 1, 20, dtype)).log_probs.sum())
    engine.step()
    moments = [value for state in optimiser.state.values() for name, value in state.items() if name.startswith("exp")]
    if stage == 3:
        weights = [parameter.ds_tensor for parameter in model.parameters()]
        masters = list(wrapped.fp32_partitioned_groups_flat)
    else:
        weights = list(model.parameters())
        masters = list(wrapped.single_partition_of_fp32_groups)
    states = {"weights": stored(weights), "optimiser": stored([*masters, *moments])}
    runtime.stop()
    return states


if __name__ == "__main__":
    found = zero_states(int(sys.argv[1]), getattr(torch, sys.argv[2]))
    sys.stdout.write(f"STATES {json.dumps(found)}\n")
