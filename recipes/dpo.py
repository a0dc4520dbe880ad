"""Stage 3, direct preference optimisation over (x, y_w, y_l) against the frozen model the stage starts from.

python recipes/dpo.py experiment=quickstart/dpo
accelerate launch --num_processes 8 recipes/dpo.py run.dir=runs/dpo model.start_from=runs/sft/final ...
"""

from __future__ import annotations

from trl import DPOConfig

from qwen_audio_train.config.load import recipe
from qwen_audio_train.config.preference import Reference
from qwen_audio_train.config.stages import DpoConfig as DpoRecipeConfig
from qwen_audio_train.model.knobs import compile_pointwise
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.model.trainable import choose_trainable, lora_config
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training import run, runtime
from qwen_audio_train.training.arguments import preference_arguments, trainer_arguments
from qwen_audio_train.training.dpo_trainer import AudioDPOTrainer
from qwen_audio_train.training.initial_model import encoded_clips, initial_model
from qwen_audio_train.training.reference_scores import store_reference_scores


@recipe("dpo")
@run.to_its_end
def main(config: DpoRecipeConfig) -> None:
    if run.is_finished(config):
        return
    ranks = runtime.start(config.runtime, seed=config.run.seed)
    runtime.check_world(ranks.world, config.batching.bins_per_step)
    run.open_run(config, ranks)

    source = initial_model(config, ranks)
    processor = load_processor(source)
    front = Front.of(processor, encoded_clips(config, source, ranks))
    batches = stage_batches(config, front, rank=ranks.rank, world=ranks.world)
    is_stored = config.preference.reference is Reference.stored
    if is_stored:
        store_reference_scores(config, source, processor.tokenizer, batches, ranks)

    arguments = DPOConfig(
        **trainer_arguments(config, ranks=ranks, num_steps=batches.num_steps), **preference_arguments(config.preference)
    )
    model = load_model(source, config.model)
    compile_pointwise(model, wanted=config.runtime.compile)
    choose_trainable(model, config.trainable)
    lora = lora_config(config.adapter, config.trainable)
    # Under a LoRA a live reference is the same model with its adapter switched off.
    needs_reference = lora is None and not is_stored
    reference = load_model(source, config.model).requires_grad_(False) if needs_reference else None
    trainer = AudioDPOTrainer(
        model=model,
        ref_model=reference,
        peft_config=lora,
        args=arguments,
        processing_class=processor.tokenizer,
        batches=batches,
        checkpoints=config.checkpoint,
    )
    run.train(trainer, config, ranks, title="dpo")
    run.save_final(trainer, processor, config, ranks)


if __name__ == "__main__":
    main()
