"""Rules of mixtures: each with its own sentence, all at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_audio_train.config.augment import AugmentConfig
from qwen_audio_train.config.data import DataConfig, SourceConfig, Stage
from qwen_audio_train.config.load import compose
from qwen_audio_train.config.validate_data import changing_clips, data_problems, of_stage
from qwen_audio_train.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text("{}")
    return tmp_path


@pytest.fixture
def good(folder) -> DataConfig:
    return DataConfig(sources={name: SourceConfig(set=str(folder / name)) for name in ("a", "b")})


def problems(data: DataConfig, **first: object) -> list[str]:
    """Of the mixture after changing its source a."""
    sources = dict(data.sources)
    if first:
        sources["a"] = replace(sources["a"], **first)
    return list(data_problems(replace(data, sources=sources), Stage.sft))


def test_a_good_mixture_has_no_problem(good):
    assert problems(good) == []
    assert problems(good, set="https://host/set") == [], "a URL is only asked when it is opened"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"set": ""}, "data.sources.a.set is empty"),
        ({"set": "/nowhere"}, "data.sources.a.set=/nowhere is not a shard set"),
        ({"weight": 1.0}, "mixes weights (of a) with none (of b)"),
        ({"num_wordings": 0}, "data.sources.a.num_wordings=0 must be at least 1"),
        ({"prompt": " "}, "data.sources.a.prompt=' ' is empty"),
        ({"augment": AugmentConfig(telephone_probability=2)}, "data.sources.a.augment.telephone_probability=2"),
    ],
)
def test_a_mistake_in_a_source_is_the_one_problem(good, change, says):
    (problem,) = problems(good, **change)
    assert says in problem


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_above_nothing(good, weight):
    weighted = replace(good, sources={name: replace(source, weight=1.0) for name, source in good.sources.items()})
    (problem,) = problems(weighted, weight=weight)
    assert f"data.sources.a.weight={weight} must be above 0" in problem


def test_one_set_twice_needs_tasks_that_divide_it(good, folder):
    same = f"{folder}/./b"
    (problem,) = problems(good, set=same)
    assert "data.sources a, b name the same set" in problem
    divided = {"a": SourceConfig(set=same, tasks=["x"]), "b": SourceConfig(set=str(folder / "b"), tasks=["y"])}
    assert problems(replace(good, sources=divided)) == []


def test_a_stage_takes_its_own_and_those_of_no_stage(good):
    staged = {**good.sources, "c": SourceConfig(set="https://host/c", stage=Stage.dpo)}
    assert list(of_stage(staged, Stage.dpo)) == ["a", "b", "c"]
    assert list(of_stage(staged, Stage.sft)) == ["a", "b"]
    (problem,) = data_problems(DataConfig(sources={"c": staged["c"]}), Stage.sft)
    assert problem.startswith("data.sources has none for stage sft: there are c (dpo)")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": "x"}, "data.train=x and data.sources are both set"),
        ({"augment": AugmentConfig(gain_db_max=3.0)}, "data.augment concerns data.train only"),
        ({"slice_samples": 0}, "data.slice_samples=0 must be at least 1"),
        ({"max_bad_consecutive": 0}, "data.max_bad_consecutive=0 must be at least 1"),
        ({"max_bad_share": 1.5}, "data.max_bad_share=1.5 must lie in [0, 1]"),
        ({"skip_steps": [[5, 4]]}, "data.skip_steps has [5, 4]"),
        ({"skip_steps": [[5]]}, "data.skip_steps has [5]"),
        ({"skip_steps": [[8, 9], [3, 8]]}, "data.skip_steps has [3, 8] and another from 8 on"),
    ],
)
def test_a_mistake_beside_the_sources_is_the_one_problem(good, change, says):
    (problem,) = problems(replace(good, **change))
    assert problem.startswith(says)


def test_augmenting_what_is_encoded_once_is_refused(good):
    (problem,) = problems(replace(good, encode_once=True), augment=AugmentConfig(speed_factors=[0.9, 1.1]))
    assert problem.startswith("data.sources.a.augment changes clips that data.encode_once=true encodes but once")


def test_all_problems_come_at_once(good):
    both = {"a": SourceConfig(set="", weight=-1.0), "b": SourceConfig(set="/nowhere")}
    assert len(problems(replace(good, sources=both, slice_samples=0))) == 5


def test_sources_are_typed_when_composed_and_a_misspelt_setting_is_named(folder):
    fixed = ["run.dir=runs/x", "run.max_steps=1", "model=tiny"]
    source = f"+data.sources={{x: {{set: {folder / 'a'}, weight: 3, augment: {{gain_db_max: 2.0}}}}}}"
    data = compose("pretrain", [*fixed, source]).data
    assert data.sources["x"] == SourceConfig(set=str(folder / "a"), weight=3.0, augment=AugmentConfig(gain_db_max=2.0))
    with pytest.raises(ConfigError, match=r"data\.sources\.voice_chat\.wieght is no setting"):
        compose("sft", [*fixed, "data=mixture", "+data.sources.voice_chat.wieght=3"])


def test_stored_references_concern_the_augmentation_of_dpo_sources_only(good):
    augmented = AugmentConfig(speed_factors=[0.9, 1.1])
    staged = {
        "a": replace(good.sources["a"], stage=Stage.sft, augment=augmented),
        "b": replace(good.sources["b"], stage=Stage.dpo),
    }
    assert list(changing_clips(replace(good, sources=staged))) == []
    staged["b"] = replace(staged["b"], augment=augmented)
    (problem,) = changing_clips(replace(good, sources=staged))
    assert problem.startswith("data.sources.b.augment changes clips in every epoch")
