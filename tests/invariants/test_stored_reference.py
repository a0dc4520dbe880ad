"""Stored reference log-probabilities train like a live reference, are refused when stale, and survive interruptions."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen_audio_train.config.preference import LOSS_TYPES
from qwen_audio_train.errors import CheckpointError, ConfigError, ShardError
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.model.sizes import build_tiny
from qwen_audio_train.pipeline import reference_scores as kept
from qwen_audio_train.pipeline.loading import Draw
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training import reference_identity, reference_scores
from qwen_audio_train.training.reference_scores import store_reference_scores
from qwen_audio_train.training.runtime import Ranks
from tests import sets

STORED = "preference.reference=stored"
FULL = ("trainable=all",)
LORA = ("adapter=lora", "trainable.encoder=true", "trainable.llm=true")
BOTH = pytest.mark.parametrize("how", [FULL, LORA], ids=["full", "lora"])
SAMPLES = [3, 1, 2, 4, 9]
ALONE = Ranks(rank=0, world=1, uses_cpu=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """A set of this module's own: scores come to lie beside it."""
    return sets.preference_set(tmp_path_factory.mktemp("stored") / "pairs")


@pytest.fixture
def of_my_own(tmp_path) -> Path:
    return sets.preference_set(tmp_path / "own")


def config_of(workshop: Any, folder: Path, pairs: Path, *overrides: str, **options: Any) -> Any:
    return workshop.config("dpo", folder, f"data.train={pairs}", *overrides, **options)


def stored(workshop: Any, folder: Path, pairs: Path, *overrides: str) -> Any:
    """Batches that bring what the reference said; computes it if need be."""
    config = config_of(workshop, folder, pairs, STORED, *overrides)
    folder.mkdir(parents=True, exist_ok=True)
    processor = load_processor(str(config.model.start_from))
    batches = stage_batches(config, Front.of(processor), rank=0, world=1)
    store_reference_scores(config, str(config.model.start_from), processor.tokenizer, batches, ALONE)
    return batches


def files(pairs: Path) -> list[Path]:
    return sorted((pairs / kept.FOLDER).glob("*.safetensors"))


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the reference was loaded")


def perturb(model: Any) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def one_step(trainer: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Loss with trl's metrics, and gradients, away from the reference."""
    trainer.model.train()
    perturb(trainer.model)
    batch = trainer.batches.builder.build([Draw(0, i, 0) for i in SAMPLES])
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch), num_items_in_batch=len(SAMPLES))
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return {"loss": float(loss.detach()), **metrics}, gradients


def compare(workshop: Any, folder: Path, pairs: Path, *how: str) -> None:
    live = one_step(workshop.trainer("dpo", config_of(workshop, folder / "live", pairs, *how)))
    trainer = workshop.trainer("dpo", config_of(workshop, folder / "stored", pairs, *how, STORED))
    assert trainer.ref_model is None
    got = one_step(trainer)
    assert got[0] == {name: pytest.approx(value, rel=2e-5, abs=2e-6) for name, value in live[0].items()}
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in live[1].values()))
    assert got[1].keys() == live[1].keys()
    for name, gradient in live[1].items():
        assert float((got[1][name] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1e-2 * norm), name


@BOTH
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_loss_metrics_and_gradients_equal_those_of_a_live_reference(workshop, tmp_path, pairs, how, layout):
    compare(workshop, tmp_path, pairs, *how, f"batching={layout}")


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_type_equals_that_of_a_live_reference(workshop, tmp_path, pairs, loss_type):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    how = (f"preference.loss_types=[{loss_type}]", f"preference.label_smoothing={smoothing}")
    compare(workshop, tmp_path, pairs, *FULL, *how)


@pytest.mark.parametrize(
    "how",
    [FULL, LORA, ("trainable=projector_llm", "data.encode_once=true"), ("trainable=llm", "adapter=lora")],
    ids=["full", "lora", "encoded once", "lora under a frozen encoder"],
)
def test_two_optimiser_steps_equal_those_of_a_live_reference(workshop, tmp_path, of_my_own, how):
    """The run that computes, the run that finds the file, and the run with a live reference."""
    histories = []
    for name, reference in (("live", "live"), ("computes", "stored"), ("finds", "stored")):
        config = config_of(workshop, tmp_path / name, of_my_own, *how, f"preference.reference={reference}", steps=2)
        trainer = workshop.train("dpo", config)
        weights = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        logged = [
            {k: v for k, v in line.items() if k != "epoch" and "second" not in k} for line in trainer.state.log_history
        ]
        histories.append((logged, weights))
    live, computes, finds = histories
    names = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen")
    for step in range(2):
        for name in names:
            expected = pytest.approx(live[0][step][name], rel=1e-4, abs=2e-6)
            assert computes[0][step][name] == expected, (step, name)
            assert finds[0][step][name] == computes[0][step][name], (step, name)
    assert abs(live[0][1]["rewards/margins"]) > 1e-3, "nothing was learnt, so equality would show nothing"
    for name, tensor in live[1].items():
        torch.testing.assert_close(computes[1][name], tensor, rtol=1e-4, atol=1e-4, msg=name)
        assert torch.equal(computes[1][name], finds[1][name]), name


def test_a_run_that_finds_the_file_loads_one_model(workshop, tmp_path, of_my_own, monkeypatch):
    stored(workshop, tmp_path / "first", of_my_own, *FULL)
    (file,) = files(of_my_own)
    before = file.stat().st_mtime_ns
    monkeypatch.setattr(reference_scores, "load_model", never)
    config = config_of(workshop, tmp_path / "second", of_my_own, *FULL, STORED, steps=1)
    trainer = workshop.train("dpo", config)
    assert trainer.ref_model is None
    assert files(of_my_own) == [file]
    assert file.stat().st_mtime_ns == before
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_other_budgets_layouts_seeds_and_losses_use_the_same_file(workshop, tmp_path, of_my_own, monkeypatch):
    stored(workshop, tmp_path / "first", of_my_own, *FULL)
    monkeypatch.setattr(reference_scores, "load_model", never)
    others = ("batching=padded", "run.seed=7", "preference.loss_types=[ipo]", "batching.llm_tokens_per_bin=512")
    stored(workshop, tmp_path / "second", of_my_own, *LORA, *others)
    assert len(files(of_my_own)) == 1


def test_scores_lie_in_the_cache_where_the_set_cannot_be_written(workshop, tmp_path, of_my_own, monkeypatch):
    monkeypatch.setattr(kept.os, "access", lambda path, mode: False)
    batches = stored(workshop, tmp_path / "run", of_my_own, f"data.cache_dir={tmp_path / 'cache'}")
    path = batches.builder.sources[0].reference.path
    assert path.is_relative_to(tmp_path / "cache" / kept.FOLDER)
    assert not (of_my_own / kept.FOLDER).exists()
    # A set that cannot be written may come with scores all the same.
    (of_my_own / kept.FOLDER).mkdir()
    path.rename(of_my_own / kept.FOLDER / path.name)
    monkeypatch.setattr(reference_scores, "load_model", never)
    again = stored(workshop, tmp_path / "again", of_my_own, f"data.cache_dir={tmp_path / 'cache'}")
    assert again.builder.sources[0].reference.path == of_my_own / kept.FOLDER / path.name


def test_interrupted_computing_goes_on_with_what_is_missing(workshop, tmp_path, of_my_own, monkeypatch):
    asked: list[int] = []
    log_probs = reference_scores._Reference.log_probs

    def counting(self, batch):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(batch["input_ids"]) // 2)
        return log_probs(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(reference_scores._Reference, "log_probs", counting)
        with pytest.raises(KeyboardInterrupt):
            stored(workshop, tmp_path / "a", of_my_own)
    assert files(of_my_own) == []
    (parts,) = (of_my_own / kept.FOLDER).glob(".*.parts")
    (part,) = parts.glob("*.part")
    part.write_bytes(part.read_bytes() + b"\7" * 30)  # a frame that was cut off
    rest: list[int] = []

    def counting_the_rest(self, batch):
        rest.append(len(batch["input_ids"]) // 2)
        return log_probs(self, batch)

    monkeypatch.setattr(reference_scores._Reference, "log_probs", counting_the_rest)
    resumed = stored(workshop, tmp_path / "b", of_my_own)
    assert sum(asked) + sum(rest) == 24
    assert asked
    assert not parts.exists()
    whole = stored(workshop, tmp_path / "c", sets.preference_set(tmp_path / "other" / "own"))
    np.testing.assert_allclose(scores_of(resumed), scores_of(whole), rtol=1e-5, atol=1e-4)


def scores_of(batches: Any) -> np.ndarray:
    return batches.builder.sources[0].reference.log_probs


def spoil_clip(folder: Path, number: int) -> None:
    """Change a byte in the middle of a sample's clip."""
    from qwen_audio_train.shards.reader import ShardSet

    (clip,) = ShardSet.open(folder).clips(number)
    data = bytearray(clip.shard_path.read_bytes())
    data[clip.offset_bytes + clip.num_bytes // 2] ^= 0xFF
    clip.shard_path.write_bytes(data)


def test_a_pair_that_cannot_be_used_is_listed_and_left_out(workshop, tmp_path, of_my_own):
    copy = tmp_path / "sound"
    shutil.copytree(of_my_own, copy)
    spoil_clip(of_my_own, 4)
    batches = stored(workshop, tmp_path / "run", of_my_own)
    assert np.flatnonzero(np.isnan(scores_of(batches)).any(axis=1)).tolist() == [4]
    header = kept._header(files(of_my_own)[0])
    assert header["num_unusable"] == "1"
    (reason,) = json.loads(header["unusable"])
    assert (reason["sample"], reason["key"]) == (4, "d-4")
    assert "checksum" in reason["reason"]
    # The audio is mended: what has no score is still left out, and says why.
    for shard in copy.glob("*.tar"):
        shutil.copy(shard, of_my_own / shard.name)
    again = stored(workshop, tmp_path / "again", of_my_own)
    built = again.builder.build([Draw(0, i, 0) for i in (3, 4, 6)])
    assert built.usable == (True, False, True)
    assert "no log-probability of the reference" in built.failures[0].reason
    np.testing.assert_array_equal(built["ref_chosen_logps"].numpy(), scores_of(again)[[3, 6], 0])
    np.testing.assert_array_equal(built["ref_rejected_logps"].numpy(), scores_of(again)[[3, 6], 1])
    empty = again.builder.build([])
    assert empty["ref_chosen_logps"].tolist() == [0.0], "the pair that stands for none has one too"


def test_too_many_that_cannot_be_used_stop_before_a_file_is_there(workshop, tmp_path, of_my_own):
    spoil_clip(of_my_own, 4)
    with pytest.raises(ShardError, match=r"(?s)too many unusable samples: 1 of 24.*checksum"):
        stored(workshop, tmp_path / "run", of_my_own, "data.max_bad_share=0")
    assert files(of_my_own) == []


def test_a_reference_without_finite_numbers_is_refused(workshop, tmp_path, of_my_own, monkeypatch):
    monkeypatch.setattr(
        reference_scores._Reference, "log_probs", lambda _, batch: np.full((len(batch["input_ids"]) // 2, 2), np.nan)
    )
    with pytest.raises(CheckpointError, match=r"the reference gives .*nan.* its weights are broken"):
        stored(workshop, tmp_path / "run", of_my_own)
    assert files(of_my_own) == []


def other_model(folder: Path, change: Any) -> str:
    from qwen_audio_train.model.build import save_built

    model, processor = build_tiny(seed=1)
    change(model)
    save_built(model, processor, folder)
    return str(folder)


def nudge(model: Any) -> None:
    with torch.no_grad():
        model.model.language_model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3


def change_norm(model: Any) -> None:
    model.config.text_config.rms_norm_eps = 1e-3


STALE = {
    "weights": lambda folder, patch: [f"model.start_from={other_model(folder / 'model', nudge)}"],
    "architecture": lambda folder, patch: [f"model.start_from={other_model(folder / 'model', change_norm)}"],
    "precision": lambda folder, patch: ["model.precision=bfloat16", "adapter=lora"],
    "autocast": lambda folder, patch: ["runtime.autocast_bfloat16=true"],
    "settings": lambda folder, patch: patch.setattr(reference_identity, "NOT_NUMERIC", ("attention",)) or [],
    "format": lambda folder, patch: patch.setattr(kept, "FORMAT_VERSION", 2) or [],
    "rendering": lambda folder, patch: (
        patch.setattr("qwen_audio_train.prompts.messages.DEFAULT_SYSTEM", "You are someone else.")
        or patch.setattr("qwen_audio_train.pipeline.measure.RULES_VERSION", 99)
        or []
    ),
    "selection": lambda folder, patch: ["data.num_wordings=3"],
}


@pytest.mark.parametrize("part", STALE)
def test_what_was_computed_for_something_else_is_not_used(workshop, tmp_path, pairs, monkeypatch, caplog, part):
    first = stored(workshop, tmp_path / "first", pairs)
    path = first.builder.sources[0].reference.path
    overrides = STALE[part](tmp_path, monkeypatch)
    caplog.clear()
    second = stored(workshop, tmp_path / "second", pairs, *overrides)
    other = second.builder.sources[0].reference.path
    assert other != path
    assert f"differ(s) in {part}" in caplog.text
    identity = json.loads(kept._header(other)["identity"])
    with pytest.raises(CheckpointError, match=rf"is stale and not used.*{kept.WORDS[part]} \({part}: ") as error:
        kept.open_scores(path, identity, 24)
    assert "; " not in str(error.value).split("What differs: ")[1].split(". Remedy")[0], "one part differs"
    # Under the name of the other it is refused all the same.
    shutil.copy(path, other)
    with pytest.raises(CheckpointError, match=f"{part}: .*Remedy: delete it"):
        stored(workshop, tmp_path / "third", pairs, *overrides)
    other.unlink()


def test_another_set_or_tokenizer_is_another_identity(workshop, tmp_path, of_my_own, pairs):
    config = config_of(workshop, tmp_path, of_my_own, STORED)
    processor = load_processor(str(config.model.start_from))
    batches = stage_batches(config, Front.of(processor), rank=0, world=1)
    first = reference_identity.identity_of_pairs(batches.builder, 0, processor.tokenizer)
    processor.tokenizer.add_tokens(["<|new|>"])
    second = reference_identity.identity_of_pairs(batches.builder, 0, processor.tokenizer)
    assert [part for part in first if first[part] != second[part]] == ["tokenizer"]
    more = sets.preference_set(tmp_path / "more", num_samples=25)
    others = stage_batches(config_of(workshop, tmp_path, more, STORED), Front.of(processor), rank=0, world=1)
    third = reference_identity.identity_of_pairs(others.builder, 0, processor.tokenizer)
    assert {part for part in first if second[part] != third[part]} == {"set", "rendering"}


def test_a_change_of_rendering_is_found_without_a_raised_version(workshop, tmp_path, of_my_own, monkeypatch):
    config = config_of(workshop, tmp_path, of_my_own, STORED)
    processor = load_processor(str(config.model.start_from))
    batches = stage_batches(config, Front.of(processor), rank=0, world=1)
    first = reference_identity.identity_of_pairs(batches.builder, 0, processor.tokenizer)
    monkeypatch.setattr("qwen_audio_train.prompts.render.IM_END", "<|endoftext|>")
    second = reference_identity.identity_of_pairs(batches.builder, 0, processor.tokenizer)
    assert [part for part in first if first[part] != second[part]] == ["rendering"]


def test_what_a_set_says_is_encoded_once_is_an_identity_of_its_own(workshop, tmp_path, of_my_own):
    for name, override in (("live", "false"), ("once", "true")):
        config = config_of(
            workshop, tmp_path / name, of_my_own, STORED, "trainable=llm", f"data.encode_once={override}", steps=1
        )
        workshop.train("dpo", config)
    first, second = (json.loads(kept._header(file)["identity"]) for file in files(of_my_own))
    assert [part for part in first if first[part] != second[part]] == ["clips"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no header"])
def test_a_damaged_file_is_refused(workshop, tmp_path, of_my_own, damage):
    stored(workshop, tmp_path / "first", of_my_own)
    (file,) = files(of_my_own)
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes({"flipped": data, "cut": data[:-9], "empty": b"", "no header": b"\xff" * 64}[damage])
    with pytest.raises(CheckpointError, match=r"is damaged .*delete it, and the next run computes it again"):
        stored(workshop, tmp_path / "second", of_my_own)


def test_dpo_on_clips_that_change_is_refused(workshop, tmp_path, pairs):
    with pytest.raises(ConfigError, match=r"data\.augment changes clips .*preference\.reference=live"):
        config_of(workshop, tmp_path, pairs, STORED, "data.augment.gain_db_max=3")
    config_of(workshop, tmp_path, pairs, "data.augment.gain_db_max=3")


def test_autocast_scores_are_near_those_in_full_precision(workshop, tmp_path, pairs):
    exact, cast = (
        scores_of(stored(workshop, tmp_path / name, pairs, f"runtime.autocast_bfloat16={name}"))
        for name in ("false", "true")
    )
    assert not np.array_equal(exact, cast)
    np.testing.assert_allclose(cast, exact, rtol=0.02)


def spoil_metadata(folder: Path, number: int) -> None:
    from qwen_audio_train.shards.reader import ShardSet

    (shard,) = folder.glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[int(ShardSet.open(folder)._tables.samples[number]["json_offset"]) + 9] ^= 0xFF
    shard.write_bytes(data)


def test_a_mixture_brings_each_sources_own_also_where_samples_are_left_out(workshop, tmp_path, of_my_own):
    """Against the model asked about each pair alone."""
    more = sets.preference_set(tmp_path / "more", num_samples=30)
    spoil_metadata(of_my_own, 3)
    sources = f"a: {{set: {of_my_own}}}, b: {{set: {more}}}"
    mixture = ("data.train=''", f"+data.sources={{{sources}}}", f"data.cache_dir={tmp_path / 'cache'}")
    batches = stored(workshop, tmp_path / "run", of_my_own, *mixture)
    assert len(files(of_my_own)) == len(files(more)) == 1
    assert batches.builder.sources[0].numbers is not None
    draws = [Draw(0, 0, 0), Draw(1, 3, 0), Draw(0, 3, 0), Draw(1, 29, 0), Draw(0, 22, 1)]
    batch = batches.builder.build(draws)
    model = load_model(str(workshop.folder / "model")).eval()
    for row, draw in enumerate(draws):
        alone = batches.builder.build([draw])
        with torch.no_grad():
            expected = model(rows=alone["rows"], labels=alone["input_ids"]).log_probs.sum(dim=1)
        got = torch.stack([batch["ref_chosen_logps"][row], batch["ref_rejected_logps"][row]])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    assert np.flatnonzero(np.isnan(scores_of(batches)[:, 0])).tolist() == [3]
