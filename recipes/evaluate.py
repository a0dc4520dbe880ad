"""Score a model on held-out clips: error rates, translation, language identification, chat forms, DPO rewards.

    python recipes/evaluate.py model.start_from=runs/sft/final evaluation.pretrain_set=data/my_test \
        evaluation.form=chat evaluation.output=runs/sft/evaluation
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from qwen_audio_train.config.evaluation import EvaluationConfig
from qwen_audio_train.config.load import recipe
from qwen_audio_train.config.stages import EvaluateConfig
from qwen_audio_train.evaluation import tasks
from qwen_audio_train.evaluation.generate import Generator
from qwen_audio_train.evaluation.report import DpoScores, scores_table
from qwen_audio_train.evaluation.rewards import pair_rewards
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline.batches import BatchBuilder, SampleSource
from qwen_audio_train.pipeline.encoded_clips import EncodedClips, Encoder, encode_sets
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import PretrainRecord
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.training import runtime


@recipe("evaluate")
def main(config: EvaluateConfig) -> None:
    assert config.model.start_from is not None
    ranks = runtime.start(config.runtime, seed=0)
    wanted = config.evaluation
    processor = load_processor(config.model.start_from)
    model = load_model(config.model.start_from, config.model).eval().to("cpu" if ranks.uses_cpu else "cuda")

    scores = DpoScores()
    lines: list[dict[str, object]] = []
    if wanted.pretrain_set:
        shards = ShardSet.open(wanted.pretrain_set, remote=wanted.remote)
        front = Front.of(processor, encoded(model, wanted.pretrain_set, wanted))
        generator = Generator(
            model, front.tokenizer, front.collator(), wanted.max_new_tokens, wanted.llm_tokens_per_batch
        )
        records = [shards.record(i) for i in range(min(len(shards), wanted.limit or len(shards)))]
        spoken = [record for record in records if isinstance(record, PretrainRecord)]
        predictions = tasks.ask(spoken, generator, Renderer(front.tokenizer), front.clips(shards), wanted.form)
        lines = tasks.as_lines(predictions)
        scores = dataclasses.replace(scores, **dataclasses.asdict(tasks.score(predictions, wanted.form)))
    if wanted.preference_set:
        shards = ShardSet.open(wanted.preference_set, remote=wanted.remote)
        front = Front.of(processor, encoded(model, wanted.preference_set, wanted))
        source = SampleSource(shards.name, shards, front.clips(shards))
        builder = BatchBuilder(
            (source,), Renderer(front.tokenizer), front.collator(), is_preference=True, is_strict=True
        )
        reference = load_model(wanted.reference, config.model).eval().to(model.device)
        samples = range(min(len(shards), wanted.limit or len(shards)))
        rewards = pair_rewards(model, reference, builder, samples, beta=wanted.beta)
        scores = dataclasses.replace(scores, reward_accuracy=rewards.accuracy, reward_margin=rewards.margin)
    write(wanted, scores, lines)


def encoded(model: Encoder, location: str, wanted: EvaluationConfig) -> EncodedClips | None:
    """The encoder's outputs for a set's clips, if they are to be kept."""
    if not wanted.encode_once:
        return None
    return encode_sets(model, [location], wanted.cache_dir, most_gb=wanted.encoded_cache_gb, remote=wanted.remote)


def write(wanted: EvaluationConfig, scores: DpoScores, lines: list[dict[str, object]]) -> None:
    """scores.json and predictions.jsonl; the numbers on the terminal."""
    output = Path(wanted.output)
    output.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (output / "predictions.jsonl").write_text(text, encoding="utf-8")
    values = dataclasses.asdict(scores)
    (output / "scores.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print(scores_table(wanted.name, scores))
    print(f"  {output / 'scores.json'}\n  {output / 'predictions.jsonl'}")


if __name__ == "__main__":
    main()
