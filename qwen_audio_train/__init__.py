"""Train Qwen2-Audio-style models: Whisper encoder, linear projector, causal LM; pretraining, SFT, DPO."""

__version__ = "0.1.0"
