"""Hydra in, frozen dataclasses out: the only place where a DictConfig lives."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qwen_audio_train.config.run_name import default_run_dir
from qwen_audio_train.config.stages import (
    DpoConfig,
    EvaluateConfig,
    ExportRecipeConfig,
    PretrainConfig,
    SftConfig,
    StageConfig,
    stage_of,
)
from qwen_audio_train.config.validate import problems_of
from qwen_audio_train.errors import ConfigError, PreemptedError, QwenAudioTrainError

EXIT_SAVED = os.EX_TEMPFAIL
"""75, "temporary failure, try again later" (sysexits.h): scripts/slurm/ requeue a job that ends by it."""
EXIT_UNFORESEEN = os.EX_SOFTWARE
"""70: a device, the network, a bug. They try it again a few times."""
CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
SCHEMAS: dict[str, type[Any]] = {
    "pretrain": PretrainConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "evaluate": EvaluateConfig,
    "export": ExportRecipeConfig,
}
Config = TypeVar("Config")


def register_schemas() -> None:
    """Make each recipe's dataclass known to Hydra, so that unknown keys and wrong types fail at composition."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=_writable(OmegaConf.structured(schema)))


def _writable(node: DictConfig) -> DictConfig:
    """Lift the read-only flag that frozen dataclasses bring along, so that composition may fill values in."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _writable(child)
    return node


def typed(raw: DictConfig, schema: type[Config]) -> Config:
    """Composed config -> frozen dataclass, checked.

    Raises:
        ConfigError: with every problem found, before anything is downloaded or loaded.
    """
    unknown = list(_unknown_keys(raw, OmegaConf.structured(schema)))
    if unknown:
        raise ConfigError(unknown)
    try:
        config = OmegaConf.to_object(raw)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    assert isinstance(config, schema)
    config = _in_a_folder(config)
    problems = problems_of(config)
    if problems:
        raise ConfigError(problems)
    return config


def _in_a_folder(config: Any) -> Any:
    """With the folder of its own that a run gets which names none."""
    if not isinstance(config, StageConfig) or config.run.dir:
        return config
    folder = default_run_dir(stage_of(config).value, to_plain(config))
    return replace(config, run=replace(config.run, dir=folder))


def _unknown_keys(raw: DictConfig, known: DictConfig, place: str = "") -> Iterator[str]:
    """Hydra lets ``+group.key=value`` add keys that no dataclass has."""
    for key in raw:
        name = f"{place}{key!s}"
        if known._metadata.object_type is dict:
            if known._metadata.element_type in (Any, None):
                return  # for another library, such as data.remote.storage_options: it knows its names
            # Entries named by the user, such as data.sources: OmegaConf types each at composition.
            entry = OmegaConf.structured(known._metadata.element_type)
            yield from _unknown_keys(raw[key], entry, f"{name}.")
        elif key not in known:
            where = place.rstrip(".") or "the recipe"
            yield f"{name} is no setting (a typing mistake?): known in {where}: {', '.join(map(str, known))}"
        elif isinstance(known._get_node(key), DictConfig):
            yield from _unknown_keys(raw[key], known[key], f"{name}.")


def compose(name: str, overrides: list[str]) -> Any:
    """A recipe's typed and checked configuration without its command line (tests, tools).

    Raises:
        ConfigError: with every problem found.
    """
    register_schemas()
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            raw = hydra.compose(config_name=name, overrides=overrides)
    except HydraException as error:
        raise ConfigError(str(error)) from error
    return typed(raw, SCHEMAS[name])


def to_yaml(config: object) -> str:
    """The whole configuration as YAML, as the run folder keeps it."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config)))


def to_plain(config: object) -> dict[str, Any]:
    """The whole configuration as nested dictionaries of plain values (for trackers)."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration that a run folder keeps, as nested dictionaries of plain values; nothing is checked."""
    plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def recipe(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Turn ``main(config)`` into a command line: Hydra overrides in, one typed config, errors as plain sentences.

    Exit codes: 0 done; 2 a mistake in the configuration; 1 anything else that a user can mend; 130 stopped by Ctrl-C;
    75 stopped by a scheduler's signal with a checkpoint saved: start me again; 70 anything unforeseen.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        register_schemas()

        @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)
        @functools.wraps(main)
        def hydra_main(raw: DictConfig) -> None:
            try:
                main(typed(raw, SCHEMAS[name]))
            except ConfigError as error:
                sys.stderr.write(f"The configuration has {len(error.problems)} problem(s):\n{error}\n")
                sys.exit(2)
            except PreemptedError as error:
                sys.stderr.write(f"Preempted. {error}. The same command again goes on from it.\n")
                sys.exit(EXIT_SAVED)
            except QwenAudioTrainError as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                sys.exit(1)
            except KeyboardInterrupt:
                sys.stderr.write("Stopped. The same command again goes on from the last checkpoint.\n")
                sys.exit(130)
            except Exception:
                traceback.print_exc()
                sys.exit(EXIT_UNFORESEEN)

        return hydra_main

    return decorate
