"""What we assume of trl's DPOTrainer: when it fails, read what changed before lifting the pin."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
import transformers
import trl
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.utils import add_fused_lm_head

from qwen_audio_train.model.efficient import EfficientQwen2Audio, TokenScores
from qwen_audio_train.pipeline.batches import Draw
from qwen_audio_train.pipeline.collate import Collator, silent_clip
from qwen_audio_train.samples import Rendered
from qwen_audio_train.training.dpo_trainer import _answer_by_own_forward
from tests import builders

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")


def test_version():
    assert trl.__version__.startswith("1.16.")


def test_models_are_called_with_labels_and_fused_lm_head_and_answer_by_fields():
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert source.count("labels=labels, fused_lm_head=True)") == 3, "policy, adapter switched off, reference"
    for field in FIELDS:
        assert f"outputs.{field}[:, -seq_len:]" in source
    assert 'labels = inputs["input_ids"].masked_fill(completion_mask == 0, -100)' in source
    assert '_non_model_keys = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps"}' in source
    assert set(FIELDS) == set(TokenScores.__dataclass_fields__)


def test_compute_loss_leaves_dividing_to_us():
    assert "num_items_in_batch" not in inspect.getsource(DPOTrainer._compute_loss)


@pytest.mark.parametrize("name", ["_prepare_dataset", "log", "create_model_card", "compute_loss"])
def test_there_is_what_we_override(name):
    assert callable(getattr(DPOTrainer, name))


def test_fused_head_is_put_on_the_instance_and_comes_off():
    model = EfficientQwen2Audio(builders.tiny_config(max_clip_seconds=1))
    own = model.forward
    add_fused_lm_head(model, outputs=FIELDS)
    assert "forward" in model.__dict__
    _answer_by_own_forward(model)
    assert model.forward == own


def test_our_fields_equal_those_of_trls_fused_head():
    """On text only, where both can be asked the same."""
    model = EfficientQwen2Audio(builders.tiny_config(max_clip_seconds=1))
    model.load_state_dict(builders.stock_model(max_clip_seconds=1).state_dict())
    torch.manual_seed(0)
    ids = torch.randint(0, 200, (3, 9))
    labels = ids.masked_fill(torch.rand(3, 9) < 0.4, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    renders = [
        Rendered(row.numpy().astype("int32"), (of_row != -100).numpy(), ())
        for row, of_row in zip(ids, labels, strict=True)
    ]
    rows = Collator(0, builders.AUDIO_ID, silent_clip(80)).rows(renders, [[]] * 3)[0]["rows"]
    rows["label_places"] = (labels[:, 1:] != -100).flatten().nonzero().flatten()
    ours = model(**inputs, rows=rows, labels=labels, fused_lm_head=True, use_cache=False)
    add_fused_lm_head(model, outputs=FIELDS)
    theirs = model(**inputs, labels=labels, fused_lm_head=True)
    for field in FIELDS:
        got, expected = getattr(ours, field), getattr(theirs, field)
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=field)


def test_metrics_are_lists_of_a_number_a_micro_batch_except_a_running_token_count(workshop, tmp_path):
    trainer = workshop.trainer("dpo", workshop.config("dpo", tmp_path))
    trainer.model.train()  # metrics are kept by the model's mode
    builder = trainer.batches.builder
    for samples in ([0, 1], [2], []):
        trainer.compute_loss(trainer.model, builder.build([Draw(0, i, 0) for i in samples]), num_items_in_batch=3)
    metrics = trainer._metrics["train"]
    assert all(len(values) == 3 for name, values in metrics.items() if name != "num_tokens"), metrics
    assert len(metrics["num_tokens"]) == 1
    assert trainer._pairs_of_metrics == [2, 1, 0]
    trainer.log({"loss": 1.0})
    assert not metrics
    assert not trainer._pairs_of_metrics


def test_metrics_are_means_over_pairs_not_over_micro_batches(workshop, tmp_path):
    trainer = workshop.trainer("dpo", workshop.config("dpo", tmp_path))
    trainer.model.train()  # metrics are kept by the model's mode
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    builder = trainer.batches.builder

    def logged(*bins: list[int]) -> dict[str, float]:
        for samples in bins:
            trainer.compute_loss(trainer.model, builder.build([Draw(0, i, 0) for i in samples]), num_items_in_batch=4)
        logs = {"loss": 1.0}
        trainer.log(logs)
        return logs

    whole, cut = logged([0, 1, 2, 3]), logged([0], [], [1, 2, 3])
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"):
        assert cut[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name
    assert not math.isclose(whole["rewards/chosen"], 0, abs_tol=1e-3)


def test_a_micro_batch_without_a_number_has_no_part_in_the_means(workshop, tmp_path):
    trainer = workshop.trainer("dpo", workshop.config("dpo", tmp_path))
    trainer.model.train()  # metrics are kept by the model's mode
    values = {
        "rewards/margins": [1.0, math.nan, 3.0],
        "rewards/chosen": [math.inf] * 3,
        "entropy": [2.0, 2.0, math.nan],
    }
    trainer._metrics["train"].update(values)
    trainer._pairs_of_metrics = [1, 5, 3]
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["rewards/margins"] == (1 * 1.0 + 3 * 3.0) / 4
    assert logs["entropy"] == 2.0
    assert "rewards/chosen" not in logs


def test_every_metric_is_gathered_by_the_accelerator_we_take_away():
    source = inspect.getsource(DPOTrainer._compute_loss)
    gathers = source.count("self.accelerator.gather(") + source.count("self.accelerator.gather_for_metrics(")
    assert gathers >= 10
    assert "all_reduce" not in source
    assert "self.accelerator.reduce(" not in source


def test_dropout_is_disabled_only_in_modules():
    """Attention's own dropout, a number, is left on by trl; that is why our trainer disables it too."""
    source = inspect.getsource(dpo_trainer.disable_dropout_in_model)
    assert "isinstance(module, torch.nn.Dropout)" in source or "nn.Dropout" in source
    assert "attention_dropout" not in source


def test_stored_reference_is_read_from_the_batch_and_no_model_is_asked():
    source = inspect.getsource(DPOTrainer._compute_loss)
    read = 'ref_chosen_logps, ref_rejected_logps = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]'
    before, after = source.split(read)
    assert before.rstrip().endswith("if self.precompute_ref_logps:")
    assert after.lstrip().startswith("else:"), "the reference is asked in the other branch alone"
    assert "chosen_logps - ref_chosen_logps" in after
    assert "rejected_logps - ref_rejected_logps" in after
    assert DPOConfig(bf16=False).ld_alpha is None, "else the sums that are stored would be weighted ones"


def test_trl_would_compute_and_keep_a_data_set_of_its_own():
    """Its one pass over the data is the method that we replace; it is told by the argument that we set."""
    source = inspect.getsource(DPOTrainer.__init__)
    assert "self.precompute_ref_logps = args.precompute_ref_log_probs" in source
    assert source.count("self._precompute_ref_logps(") == 3, "training set, and evaluation sets, which we have none of"
    assert "def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:" in (
        inspect.getsource(DPOTrainer._precompute_ref_logps)
    )


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_trl_loads_no_reference_where_it_is_precomputed(workshop, tmp_path, monkeypatch, adapter):
    def never(*args, **kwargs):
        raise AssertionError("a reference was loaded")

    monkeypatch.setattr(dpo_trainer, "create_model_from_path", never)
    overrides = ("preference.reference=stored", f"adapter={adapter}", f"data.cache_dir={tmp_path}")
    trainer = workshop.trainer("dpo", workshop.config("dpo", tmp_path / "run", *overrides))
    assert trainer.precompute_ref_logps
    assert trainer.ref_model is None
    assert trainer.reference_passes == 0, "of what a step costs"
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names


def test_the_library_casts_floats_of_a_batch_under_deepspeed():
    """Why stored log-probabilities are put back as they were (AudioDPOTrainer._prepare_inputs)."""
    source = inspect.getsource(transformers.Trainer._prepare_input)
    assert "if self.is_deepspeed_enabled and (torch.is_floating_point(data)" in source
    assert 'kwargs.update({"dtype": self.accelerator.state.deepspeed_plugin.hf_ds_config.dtype()})' in source


def test_stored_log_probabilities_stay_in_full_precision(workshop, tmp_path, monkeypatch):
    overrides = ("preference.reference=stored", f"data.cache_dir={tmp_path}")
    trainer = workshop.trainer("dpo", workshop.config("dpo", tmp_path / "run", *overrides))
    cast = transformers.Trainer._prepare_input

    def as_under_deepspeed(self, data):
        data = cast(self, data)
        return data.bfloat16() if isinstance(data, torch.Tensor) and data.is_floating_point() else data

    monkeypatch.setattr(transformers.Trainer, "_prepare_input", as_under_deepspeed)
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in range(3)])
    prepared = trainer._prepare_inputs(batch)
    assert prepared["rows"]["mels"].dtype == torch.bfloat16
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert torch.equal(prepared[name], batch[name])
        assert prepared[name].dtype == torch.float32
