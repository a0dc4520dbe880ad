"""Rewrite the composed configurations that tests/golden/ keeps, and the table of bad data in docs/: run after a wanted
change of a default or of a row, then look at the difference (`git diff tests/golden docs`) as a user would.

    python scripts/update_golden.py
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import OmegaConf

from qwen_audio_train.config.load import CONFIG_DIR, SCHEMAS, register_schemas
from tests.invariants import test_bad_data as bad_data

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


def composed_primaries() -> dict[str, str]:
    """File name -> YAML of each recipe's configuration when nothing is chosen on the command line."""
    register_schemas()
    with hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        return {f"config_{name}.yaml": str(OmegaConf.to_yaml(hydra.compose(config_name=name))) for name in SCHEMAS}


def main() -> None:
    texts = {GOLDEN / name: text for name, text in composed_primaries().items()}
    for path, text in {**texts, bad_data.DOCS: bad_data.table()}.items():
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        path.write_text(text, encoding="utf-8")
        print(f"{'rewritten' if changed else 'unchanged'}  {path}")


if __name__ == "__main__":
    main()
