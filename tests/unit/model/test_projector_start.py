from __future__ import annotations

import pytest
import torch

from qwen_audio_train.model.build import _new_projector


def test_projected_audio_starts_with_the_spread_of_text_whatever_the_encoders_gains():
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(64)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 8.0)
        norm.bias.uniform_(-3.0, 3.0)
        embeddings = torch.randn(500, 48) * 0.02
        projected = _new_projector(norm, embeddings)(norm(torch.randn(400, 64)))
        assert float(projected.pow(2).mean().sqrt()) == pytest.approx(0.02, rel=0.2)
        assert float(projected.mean().abs()) < 0.005
