"""The folder a stage starts from: the previous stage's, a hub id, or a fresh model built from parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from qwen_audio_train.config.model import DemoLanguageModelConfig, ModelConfig, ModelSize
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.model import sizes
from qwen_audio_train.model.build import Built, save_built
from qwen_audio_train.model.load import is_adapter, load_model, load_processor
from qwen_audio_train.pipeline.encoded_clips import EncodedClips, encode_sets
from qwen_audio_train.pipeline.sources import stage_sources
from qwen_audio_train.pipeline.texts import fixed_phrases, texts_of
from qwen_audio_train.training.arguments import INITIAL
from qwen_audio_train.training.runtime import Ranks

logger = logging.getLogger(__name__)


def initial_model(config: StageConfig, ranks: Ranks) -> str:
    """Folder or hub id of the model that training starts from.

    What has to be made first (a model from parts, an adapter merged into its base) is made once, by the first rank, in
    ``<run.dir>/initial``: before TrainingArguments exist, because ZeRO-3 partitions every model that is built after.
    """
    source = config.model.start_from
    if source is None and config.model.size is ModelSize.qwen2_audio_7b:
        return sizes.RELEASED_ID
    if source is not None and not is_adapter(source):
        return source
    folder = Path(config.run.dir) / INITIAL
    if ranks.is_first and not (folder / "config.json").exists():
        if source is not None:
            logger.info("Merging the adapter %s into its base", source)
            save_built(load_model(source), load_processor(source), folder)
        else:
            logger.info("Building %s from parts", config.model.size.value)
            texts = (text for set_ in _sets(config) for text in texts_of(set_, remote=config.data.remote))
            model, processor = build(config.model, texts, seed=config.run.seed)
            save_built(model, processor, folder)
    ranks.wait()
    return str(folder)


def build(model: ModelConfig, texts: Iterable[str], *, seed: int) -> Built:
    """A fresh model of one of the sizes, and its processor. ``texts``: what a tokenizer is trained on."""
    match model.size:
        case ModelSize.tiny:
            return sizes.build_tiny(seed=seed, languages=model.languages)
        case ModelSize.demo:
            return sizes.build_demo(
                _units(texts, joins_characters=model.demo_lm.joins_characters),
                language_model=_new_language_model(model.demo_lm),
                phrases=fixed_phrases(),
                whisper=model.whisper,
                seed=seed,
                languages=model.languages,
            )
        case _:
            return sizes.build_pretrained(
                whisper=model.whisper, language_model=model.llm, seed=seed, languages=model.languages
            )


def _units(texts: Iterable[str], *, joins_characters: bool) -> Iterable[str]:
    """What a BPE is trained on: texts, or single characters, whose bytes are then all that it can join."""
    return texts if joins_characters else (character for text in texts for character in text)


def _new_language_model(demo_lm: DemoLanguageModelConfig) -> sizes.NewLanguageModel:
    return sizes.NewLanguageModel(
        hidden_size=demo_lm.hidden_size,
        num_layers=demo_lm.num_layers,
        num_heads=demo_lm.num_heads,
        num_key_value_heads=demo_lm.num_heads,
        intermediate_size=demo_lm.intermediate_size,
        vocab_size=demo_lm.vocab_size,
        dropout=demo_lm.attention_dropout,
    )


def _sets(config: StageConfig) -> list[str]:
    return [source.set for source in stage_sources(config).values()]


def encoded_clips(config: StageConfig, source: str, ranks: Ranks) -> EncodedClips | None:
    """Outputs of the frozen encoder for all training clips; the first rank encodes what is missing."""
    if not config.data.encode_once:
        return None
    note = Path(config.run.dir) / "encoded_clips.txt"
    if ranks.is_first:
        model = load_model(source).eval()
        if not ranks.uses_cpu:
            model.to("cuda")
        encoded = encode_sets(
            model,
            _sets(config),
            config.data.cache_dir,
            most_gb=config.data.encoded_cache_gb,
            remote=config.data.remote,
            shows_progress=config.tracking.progress_bar,
        )
        note.write_text(str(encoded.folder.absolute()), encoding="utf-8")
    ranks.wait()
    return EncodedClips(Path(note.read_text(encoding="utf-8")))
