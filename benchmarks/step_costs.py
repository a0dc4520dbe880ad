"""What a training step costs by counting: floating-point operations of matrix products (two a multiply-add), and bytes
of tensors that a backward pass needs. Knows nothing of memory traffic, launches, or how well a product runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.random_model import Dimensions
from benchmarks.step_flops import PADDED_FRAMES, encoder_flops, llm_flops
from qwen_audio_train.samples import BatchSizes


@dataclass(frozen=True)
class Load:
    """How much of everything one forward pass runs."""

    encoder_frames: int
    encoder_attended: int
    """(query, key) pairs of frames."""
    llm_tokens: int
    llm_attended: int
    projected: int
    """Tokens at which the vocabulary is projected."""

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @classmethod
    def of_stock(cls, rows: int, longest: int) -> Load:
        """``rows`` rows padded to the longest, each with a clip padded to 30 s; dense masks, logits everywhere."""
        tokens = rows * longest
        return cls(rows * PADDED_FRAMES, rows * PADDED_FRAMES**2, tokens, tokens * longest, tokens)

    @classmethod
    def of_ours(cls, sizes: BatchSizes) -> Load:
        """What the collator says that a batch holds."""
        return cls(
            sizes.encoder_positions,
            sizes.encoder_attended,
            sizes.llm_positions,
            sizes.llm_attended,
            sizes.supervised_tokens,
        )


@dataclass(frozen=True)
class Training:
    """Which parts of the model train, and whether a reference runs beside it."""

    encoder: bool
    llm_by_adapter: bool = False
    """Only adapters of the language model train: gradients pass its weights, which get none."""
    reference: bool = False


def load_flops(dims: Dimensions, load: Load, training: Training) -> float:
    """A part that trains costs three forwards (one more for each of two gradients), one that gradients only pass two,
    a frozen one before everything that trains one. A reference adds a forward of everything."""
    encoder = encoder_flops(dims, load.encoder_frames, load.encoder_attended)
    llm = llm_flops(dims, load.llm_tokens, load.llm_attended) + 2.0 * load.projected * dims.llm_width * dims.vocab
    reference = 1 if training.reference else 0
    passes = 2 if training.llm_by_adapter else 3
    return encoder * ((3 if training.encoder else 1) + reference) + llm * (passes + reference)


def total_flops(dims: Dimensions, loads: Sequence[Load], training: Training) -> float:
    """Of all batches of a step."""
    return sum(load_flops(dims, load, training) for load in loads)


def kept_values(dims: Dimensions, load: Load, training: Training) -> float:
    """Numbers that the forward pass keeps for the backward pass, and the logits at their most.

    Of a layer: inputs and outputs of norms, queries, keys, values, what attention gives, and the parts of the gated or
    plain MLP. Of the logits: themselves, a copy or a log-softmax, and their gradient.
    """
    encoder_layer = 9 * dims.encoder_width + 2 * dims.encoder_ffn
    llm_layer = 11 * dims.llm_width + 4 * dims.llm_ffn
    encoder = load.encoder_frames * dims.encoder_layers * encoder_layer if training.encoder else 0
    return encoder + load.llm_tokens * dims.llm_layers * llm_layer + 3.0 * load.projected * dims.vocab
