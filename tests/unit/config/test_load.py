"""Hydra in, frozen dataclasses out."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qwen_audio_train.config import load
from qwen_audio_train.config.load import CONFIG_DIR, SCHEMAS, compose, to_plain, to_yaml, typed
from qwen_audio_train.config.model import ModelSize
from qwen_audio_train.errors import CheckpointError, ConfigError, PreemptedError
from scripts.update_golden import GOLDEN, composed_primaries

ROOT = CONFIG_DIR.parent
EXPERIMENTS = sorted(
    path.relative_to(CONFIG_DIR / "experiment").with_suffix("").as_posix()
    for path in (CONFIG_DIR / "experiment").rglob("*.yaml")
)
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "hydra")
)


def raw(name: str, *overrides: str):
    load.register_schemas()
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return hydra.compose(config_name=name, overrides=list(overrides))


@pytest.fixture(scope="module")
def primaries() -> dict[str, str]:
    return composed_primaries()


@pytest.mark.parametrize("name", SCHEMAS)
def test_primary_composes_to_what_the_golden_file_says(primaries, name):
    """After a wanted change: python scripts/update_golden.py, and read the difference."""
    file = f"config_{name}.yaml"
    assert primaries[file] == (GOLDEN / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCHEMAS)
def test_primary_is_typed_when_it_lacks_nothing(name, monkeypatch):
    monkeypatch.setattr(load, "problems_of", lambda config: [])
    config = typed(raw(name), SCHEMAS[name])
    assert isinstance(config, SCHEMAS[name])
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model = None


def test_there_are_experiments_and_options_to_test():
    assert len(EXPERIMENTS) >= 4
    assert len(OPTIONS) >= 20


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_lacks_only_its_data(experiment):
    recipe = experiment.rpartition("/")[2]
    with pytest.raises(ConfigError) as error:
        compose(recipe, [f"experiment={experiment}"])
    # What an experiment cannot know: sets and folders that do not exist here, and where output goes.
    expected = ("data.train is empty", "model.start_from", "evaluation.output", "evaluation.pretrain_set")
    assert all(problem.startswith(expected) for problem in error.value.problems), error.value.problems


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes(group, option):
    composed = raw("dpo", f"{group}={option}")
    chosen = OmegaConf.load(CONFIG_DIR / group / f"{option}.yaml")
    got = OmegaConf.to_container(composed[group], enum_to_str=True)
    assert chosen_of(got, OmegaConf.to_container(chosen)) == OmegaConf.to_container(chosen)


def chosen_of(got, chosen):
    """What was composed, as far as the option names it."""
    if not isinstance(chosen, dict):
        return got
    return {key: chosen_of(got[key], value) for key, value in chosen.items()}


def test_deepspeed_files_of_the_options_exist():
    files = [OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml") for group, name in OPTIONS if group == "runtime"]
    named = [file.deepspeed for file in files if file.get("deepspeed")]
    assert len(named) == 5
    assert all((ROOT / path).is_file() for path in named)


@pytest.mark.parametrize("override", ["run.steps=3", "modle.size=tiny", "optim.learning_rate=fast", "model.size=huge"])
def test_unknown_keys_and_wrong_types_are_refused_at_composition(override):
    with pytest.raises(HydraException):
        raw("pretrain", override)


def test_a_key_added_by_force_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"run\.steps is no setting.*known in run: dir, "):
        compose("pretrain", ["+run.steps=3"])


def test_values_arrive_typed(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    data = f"data.train={tmp_path}"
    config = compose("sft", ["run.dir=x", "run.epochs=0.5", "model=tiny", "model.start_from=a/b", data])
    assert config.run.epochs == 0.5
    assert config.run.max_steps is None
    assert config.model.size is ModelSize.tiny
    assert to_plain(config)["model"]["size"] == "tiny"
    assert OmegaConf.create(to_yaml(config)).data.train == str(tmp_path)


def test_recipe_command_line_lists_every_problem_and_exits_2_without_loading_a_model(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "sft.py"), "optim.learning_rate=-1", "run.max_steps=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr[-2000:]
    # Libraries may say something of their own while they are imported (bitsandbytes without a GPU does).
    lines = done.stderr[max(0, done.stderr.find("The configuration has")) :].splitlines()
    assert lines[0] == "The configuration has 4 problem(s):"
    assert [line.split()[1].split("=")[0] for line in lines[1:]] == [
        "run.max_steps", "data.train", "optim.learning_rate", "model.start_from",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [], "a refused configuration must leave nothing behind"


def test_help_shows_groups_settings_and_examples(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dpo.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        load.recipe("dpo")(lambda config: pytest.fail("--help must not run the recipe"))()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for expected in (
        "preference: ipo, sigmoid",
        "runtime: auto, cpu",
        "learning_rate: 1.0e-06",
        "group=option",
        "Examples",
    ):
        assert expected in shown


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (CheckpointError("no such checkpoint"), 1, "CheckpointError: no such checkpoint"),
        (KeyboardInterrupt(), 130, "goes on from the last checkpoint"),
        (RuntimeError("connection closed by peer"), 70, "connection closed by peer"),
        (PreemptedError("r: a checkpoint of step 2 of 4 is saved"), 75, "The same command again goes on from it"),
    ],
)
def test_what_a_recipe_raises_becomes_a_sentence_and_an_exit_code(monkeypatch, capsys, raised, code, says):
    def main(config):
        raise raised

    monkeypatch.setattr(load, "problems_of", lambda config: [])
    monkeypatch.setattr(sys, "argv", ["export.py"])
    with pytest.raises(SystemExit) as ended:
        load.recipe("export")(main)()
    assert ended.value.code == code
    assert says in capsys.readouterr().err
