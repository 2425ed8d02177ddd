"""``lightning-suite export``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import meant_file


def run(checkpoint: str, out: str, tokenizer: str | None = None, force: bool = False) -> int:
    """Turn a checkpoint of CausalLMModule into a model folder.

    The folder is that of `save_pretrained`: transformers loads it, and so does every command here
    as `pretrained`. LoRA's adapters are merged into the weights, and the multipliers that
    DepthMuPLRCallback applied with hooks are folded into them. The checkpoint stays as it is;
    training goes on from there, not from the folder. Edits of an ExpertGateCallback are no
    weights: their bank stays a file of its own.

    Args:
        checkpoint: As `fit` printed it.
        out: Folder to write.
        tokenizer: A folder, a name of the Hub, package:NAME; default: that of the data or model
            in training.
        force: Replace a folder that an earlier export has written.

    Example:
        lightning-suite export lightning_logs/version_0/checkpoints/last.ckpt runs/my_model
        lightning-suite score -c resofilter/score --model.init_args.pretrained runs/my_model
    """
    from lightning_suite.cli.checkpoints import read_checkpoint  # noqa: PLC0415
    from lightning_suite.language.export import (  # noqa: PLC0415
        merge_adapters,
        save_model,
        tokenizer_name,
        trained_module,
    )

    if not Path(checkpoint).is_file():
        raise SuiteError(
            f"{checkpoint}: there is no such file.{meant_file(checkpoint)} `fit` prints its "
            "checkpoint's name."
        )
    content = read_checkpoint(checkpoint)
    module = trained_module(content, checkpoint)
    merged = merge_adapters(module)
    folded = _fold(module, content)
    words = tokenizer or tokenizer_name(content)
    record = {
        "checkpoint": str(Path(checkpoint).resolve()),
        "steps": content.get("global_step"),
        "adapters_merged": merged,
        "multipliers_folded": folded,
        "tokenizer": words,
    }
    print(save_model(module, out, tokenizer=words, record=record, force=force))
    if words is None:
        print("without a tokenizer: the training had none to save (bytes)", file=sys.stderr)
    if any(str(key).startswith("ExpertGateCallback") for key in content.get("callbacks") or {}):
        print("the training's bank of edits is no part of the weights", file=sys.stderr)
    return 0


def _fold(module: Any, checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Move what the callback's hooks multiplied into the weights; return the factors."""
    from lightning_suite.depth_mup.residual_scale import fold_residual_scale  # noqa: PLC0415
    from lightning_suite.depth_mup.roles import assign_roles  # noqa: PLC0415

    state = (checkpoint.get("callbacks") or {}).get("DepthMuPLRCallback") or {}
    c, m = state.get("residual_multiplier", 1.0), state.get("readout_multiplier", 1.0)
    if (c, m) == (1.0, 1.0):
        return {}
    fold_residual_scale(module, assign_roles(module), c=c, m=m)
    return {"residual": c, "readout": m}
