"""Bytes that training needs on each GPU, from a model's dimensions alone. scripts/memory.py prints them.

States follow the ZeRO paper (Rajbhandari et al. 2020, arXiv:1910.02054, section 3): with P weights, T of them trained,
N ranks, and AdamW's two fp32 moments. Activations are counted tensor by tensor, as autograd keeps them for
the modules of transformers 5.23 under SDPA attention without dropout; tests/unit/model/test_memory.py measures both.
Not counted: the CUDA context and NCCL's buffers (1 to 2 GB), fragmentation, and what a kernel needs while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.model import Precision
from qwen_audio_train.config.trainable import TrainableConfig

GIB = 2**30
BUCKET_ELEMENTS = 50_000_000
"""reduce_bucket_size, allgather_bucket_size and stage3_prefetch_bucket_size of configs/deepspeed/."""
LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: gathered weights that may lie about before some are let go."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Dimensions of a Qwen2-Audio-style model."""

    mel_bins: int
    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    encoder_positions: int
    llm_width: int
    llm_layers: int
    llm_heads: int
    llm_key_value_heads: int
    llm_ffn: int
    vocab: int
    ties_embeddings: bool = False

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """From a transformers Qwen2AudioConfig."""
        audio, text = config.audio_config, config.text_config
        return cls(
            mel_bins=audio.num_mel_bins,
            encoder_width=audio.d_model,
            encoder_layers=audio.encoder_layers,
            encoder_heads=audio.encoder_attention_heads,
            encoder_ffn=audio.encoder_ffn_dim,
            encoder_positions=audio.max_source_positions,
            llm_width=text.hidden_size,
            llm_layers=text.num_hidden_layers,
            llm_heads=text.num_attention_heads,
            llm_key_value_heads=text.num_key_value_heads,
            llm_ffn=text.intermediate_size,
            vocab=text.vocab_size,
            ties_embeddings=text.tie_word_embeddings,
        )

    @property
    def key_value_width(self) -> int:
        """Of keys, and of values."""
        return self.llm_width * self.llm_key_value_heads // self.llm_heads

    @property
    def encoder_parameters(self) -> int:
        """The sinusoid table, which never trains, not among them."""
        width, ffn = self.encoder_width, self.encoder_ffn
        stem = 3 * self.mel_bins * width + 3 * width * width + 2 * width
        attention = 4 * width * width + 3 * width  # keys have no bias
        layer = attention + 2 * width * ffn + ffn + width + 4 * width
        return stem + self.encoder_layers * layer + 2 * width

    @property
    def projector_parameters(self) -> int:
        """One linear layer."""
        return (self.encoder_width + 1) * self.llm_width

    @property
    def llm_parameters(self) -> int:
        """Embeddings and head too."""
        width, pairs = self.llm_width, self.key_value_width
        layer = 2 * width * width + 2 * width * pairs + width + 2 * pairs + 3 * width * self.llm_ffn + 2 * width
        return self.llm_layers * layer + width + self.vocab * width * (1 if self.ties_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All of them."""
        positions = self.encoder_positions * self.encoder_width
        return self.encoder_parameters + positions + self.projector_parameters + self.llm_parameters

    def trained(self, trainable: TrainableConfig, adapter: AdapterConfig) -> int:
        """How many train. A projector beside adapters is copied and trained in full."""
        projector = self.projector_parameters if trainable.projector else 0
        if adapter.kind is AdapterKind.none:
            encoder = self.encoder_parameters if trainable.encoder else 0
            return encoder + projector + (self.llm_parameters if trainable.llm else 0)
        return projector + self.adapter_parameters(trainable, adapter)

    def adapter_parameters(self, trainable: TrainableConfig, adapter: AdapterConfig) -> int:
        """Of the LoRA matrices: rank times (inputs + outputs) of each linear layer."""
        width, pairs, ffn = self.llm_width, self.key_value_width, self.llm_ffn
        llm = {"q_proj": 2 * width, "k_proj": width + pairs, "v_proj": width + pairs, "o_proj": 2 * width}
        llm |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), width + ffn)
        heard = self.encoder_width
        encoder = dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), 2 * heard)
        encoder |= dict.fromkeys(("fc1", "fc2"), heard + self.encoder_ffn)
        count = 0
        if trainable.llm:
            count += self.llm_layers * sum(llm[name] for name in adapter.llm_modules)
        if trainable.encoder:
            count += self.encoder_layers * sum(encoder[name] for name in adapter.encoder_modules)
        return count * adapter.rank


RELEASED_7B = ModelShape(128, 1280, 32, 20, 5120, 1500, 4096, 32, 32, 32, 11_008, 156_032)
"""Qwen/Qwen2-Audio-7B: 8.4 G parameters."""
FROM_PARTS_7B = ModelShape(128, 1280, 32, 20, 5120, 1500, 3584, 28, 28, 4, 18_944, 152_064)
"""Whisper-large-v3 and Qwen2.5-7B (before audio tokens and language tags)."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """How weights, gradients and optimiser are spread."""

    stage: int | None = None
    """DeepSpeed's ZeRO stage; None: plain data parallel, every rank holds everything."""
    world: int = 1
    offloads: bool = False
    """Optimiser (and weights, in stage 3) in the CPU's memory."""
    weight_group: int | None = None
    """hpZ: weights of the forward pass are also kept whole among so many ranks, those of a node (stage 3)."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one rank runs at once, padding included."""

    llm_tokens: int
    encoder_frames: int
    """Of 20 ms."""
    scored_tokens: int
    """Labelled ones, which alone are projected to the vocabulary."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes on one GPU; ``host`` in the CPU's memory, per rank."""

    weights: float
    gradients: float
    optimiser: float
    """Moments, and fp32 weights where they are kept beside others."""
    buffers: float
    """Buckets of collectives, and gathered weights of stage 3."""
    activations: float
    logits: float
    """Of the labelled positions, and their gradients."""
    host: float = 0.0

    @property
    def total(self) -> float:
        """On the GPU, at the peak: the backward pass behind the loss."""
        return self.weights + self.gradients + self.optimiser + self.buffers + self.activations + self.logits


def memory_use(
    shape: ModelShape,
    batch: MicroBatch,
    *,
    trained: int,
    added: int = 0,
    trains_encoder: bool,
    precision: Precision,
    sharding: Sharding,
    checkpointing: bool,
) -> MemoryUse:
    """Of one training step.

    Args:
        trained: parameters that train (``ModelShape.trained``).
        added: parameters beside the model's own: adapters, a projector's copy.
    """
    element = 2 if precision is Precision.bfloat16 else 4
    weights, gradients, optimiser, buffers = state_bytes(shape.parameters + added, trained, element, sharding)
    host = 0.0
    if sharding.offloads:
        host, optimiser = optimiser, 0.0
        if sharding.stage == 3:
            host, weights = host + weights, 0.0
    return MemoryUse(
        weights=weights,
        gradients=gradients,
        optimiser=optimiser,
        buffers=buffers,
        activations=activation_bytes(shape, batch, element, trains_encoder=trains_encoder, checkpointing=checkpointing),
        logits=logit_bytes(shape, batch, element),
        host=host,
    )


def state_bytes(parameters: int, trained: int, element: int, sharding: Sharding) -> tuple[float, float, float, float]:
    """(weights, gradients, optimiser, buffers) in bytes on one rank.

    Under DeepSpeed the optimiser updates fp32 weights of its own, 4 + 8 bytes each, split among the ranks from stage 1
    on; gradients are split from stage 2 on, weights in stage 3. Without it there are moments alone.
    """
    ranks, stage = sharding.world, sharding.stage
    if stage is None:
        reducer = element * trained if ranks > 1 else 0  # DDP's buckets hold every gradient a second time
        return element * parameters, element * trained, 2 * element * trained, reducer
    optimiser = 12 * trained / ranks
    gradients = element * (trained if stage == 1 else trained / ranks)
    if stage < 3:
        return element * parameters, gradients, optimiser, 2 * element * min(BUCKET_ELEMENTS, trained)
    weights = element * parameters / ranks
    if sharding.weight_group is not None:
        weights += element * parameters / sharding.weight_group
    live = min(parameters, LIVE_ELEMENTS + BUCKET_ELEMENTS) if ranks > 1 else 0
    return weights, gradients, optimiser, element * (live + min(BUCKET_ELEMENTS, trained))


def activation_bytes(
    shape: ModelShape, batch: MicroBatch, element: int, *, trains_encoder: bool, checkpointing: bool
) -> float:
    """What autograd keeps between forward and backward, logits apart; an upper bound where weights are frozen.

    Language model, a token and layer: the two norms' outputs, q, k and v (repeated for every query head, as attention
    span by span keeps them), attention's output twice, two residuals, and the four of the gated unit; in bf16 the norms
    keep fp32 copies of their inputs. Encoder: likewise, with one hidden layer before and behind GELU; its stem keeps
    the first convolution's output and what the second one reads (two frames each), and the second one's output. With
    checkpointing a layer keeps its input, and one layer at a time is run again.
    """
    width = shape.llm_width
    llm_layer = element * (10 * width + 4 * shape.llm_ffn) + 8 + 4 * shape.llm_heads
    if element == 2:
        llm_layer += 4 * width
    llm = batch.llm_tokens * (
        _layers(llm_layer, shape.llm_layers, element * width, checkpointing) + 2 * element * width
    )
    if not trains_encoder:
        return llm
    heard = shape.encoder_width
    layer = element * (9 * heard + 2 * shape.encoder_ffn) + 4 * element + 4 * shape.encoder_heads
    stem = element * (5 * heard + 2 * shape.mel_bins + width / 2)
    return llm + batch.encoder_frames * (_layers(layer, shape.encoder_layers, element * heard, checkpointing) + stem)


def logit_bytes(shape: ModelShape, batch: MicroBatch, element: int) -> float:
    """fp32 logits, their fp32 gradient, and that gradient in the weights' precision."""
    per_token = shape.vocab * (8 + (element if element == 2 else 0)) + element * shape.llm_width + 12
    return batch.scored_tokens * per_token


def _layers(layer: float, count: int, boundary: float, checkpointing: bool) -> float:
    return count * boundary + layer if checkpointing else count * layer
