"""The Whisper encoder at the clips' true lengths, packed into one row, equal to stock's 30 s-padded run to rounding.

What it costs is what the clips last: linear layers see no padding, attention sees each clip alone. The recipe, and why
each extra mel frame is needed, is in ``audio/lengths.py``: the mels carry two real frames beyond the clip, so the
stem's convolutions see at the clip's end just what they see in the padded run. Where one clip's frames end and the
next one's begin is worked out beforehand (``audio/pack_clips.py``); nothing here asks the device.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

from qwen_audio_train.model.span_attention import PackedRow


def encode_clips(
    encoder: Qwen2AudioEncoder,
    mels: torch.Tensor,
    mel_is_clip: torch.Tensor,
    frame_source: torch.Tensor,
    frame_position: torch.Tensor,
    pool_source: torch.Tensor,
    row: PackedRow,
) -> torch.Tensor:
    """Run the encoder over clips that lie one after another.

    Args:
        encoder: a stock encoder; its submodules are called one by one, so that hooks of ZeRO, adapters and activation
            checkpointing work as they do under its own forward.
        mels: (M, F) log-mels of all clips, each beginning at an even frame, zeros between them.
        mel_is_clip: (F,) 1 where a frame is a clip's (its context included), 0 between clips.
        frame_source: (E,) output frames of the stem that belong to clips, of F / 2.
        frame_position: (E,) place of each within its clip.
        pool_source: (A,) of each audio token, the first of the two frames, of E, that are pooled into it.
        row: the clips as spans of the E frames.

    Returns:
        Pooled and normalised states (A, D), clip after clip.
    """
    dtype = encoder.conv1.weight.dtype
    hidden = nn.functional.gelu(encoder.conv1(mels[None].to(dtype)))
    # A clip's neighbours are silence to the second convolution, as its zero padding is in a clip of its own.
    hidden = hidden * mel_is_clip.to(hidden.dtype)
    hidden = nn.functional.gelu(encoder.conv2(hidden))[0].transpose(0, 1)
    hidden = hidden.index_select(0, frame_source) + encoder.embed_positions(frame_position)
    hidden = nn.functional.dropout(hidden[None], p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        if encoder.training and encoder.layerdrop > 0 and torch.rand([]) < encoder.layerdrop:
            continue
        hidden = layer(hidden, None, spans=row)
    frames = hidden[0]
    pooled = (frames.index_select(0, pool_source) + frames.index_select(0, pool_source + 1)) / 2
    normalised: torch.Tensor = encoder.layer_norm(pooled)
    return normalised
