"""The Whisper encoder at a clip's true length, equal to the 30 s-padded run of stock transformers to float rounding.

What it costs is what the clip lasts: linear layers fall to feat/1500 of the padded cost and attention to its square.
The recipe, and why each extra mel frame is needed, is in ``audio/lengths.py``: the mels carry two real frames beyond
the clip, so the stem's convolutions see at the clip's end just what they see in the padded run.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder


def encode_clips(encoder: Qwen2AudioEncoder, mels_NMF: torch.Tensor, mel_frames_N: torch.Tensor) -> torch.Tensor:
    """Run the encoder over clips padded only to the longest of them.

    Args:
        encoder: a stock encoder; its submodules are called one by one, so that hooks of ZeRO, adapters and activation
            checkpointing work as they do under its own forward.
        mels_NMF: log-mels of ``input_mel_frames`` each, zeros behind. Odd trailing padding does not matter.
        mel_frames_N: valid mel frames of each clip (without the context frames).

    Returns:
        Pooled and normalised states of shape (N, A, D), where A = longest clip's tokens; rows beyond a clip's own
        tokens are meaningless and must not be read.
    """
    encoder_frames_N = (mel_frames_N - 1) // 2 + 1
    longest_frames = (mels_NMF.shape[-1] - 1) // 2 + 1
    mels_NMF = mels_NMF.to(dtype=encoder.conv1.weight.dtype)
    hidden = nn.functional.gelu(encoder.conv1(mels_NMF))
    hidden = nn.functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    # The context frames have done their work in the convolutions; an even count keeps the pooling aligned.
    longest_frames = min(longest_frames, encoder.max_source_positions)
    hidden = hidden[:, :longest_frames]
    positions = torch.arange(longest_frames, device=hidden.device)
    hidden = hidden + encoder.embed_positions(positions)
    hidden = nn.functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    mask = create_bidirectional_mask(
        config=encoder.config,
        inputs_embeds=hidden,
        attention_mask=(positions[None] < encoder_frames_N[:, None]).long(),
    )
    for layer in encoder.layers:
        if encoder.training and encoder.layerdrop > 0 and torch.rand([]) < encoder.layerdrop:
            continue
        hidden = layer(hidden, mask)
    pooled = encoder.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1)
    return encoder.layer_norm(pooled)
