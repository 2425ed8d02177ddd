"""From a checkpoint of `CausalLMModule` to a model folder that everything else loads."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError
from lightning_suite.files import write_json
from lightning_suite.language.loading import load_tokenizer
from lightning_suite.language.module import CausalLMModule

RECORD = "exported_from.json"
# What `CausalLMModule` keeps of its arguments and needs to be built again.
_ARGUMENTS = ("config", "pretrained", "dtype", "attn_implementation", "lora")
_BYTES = "bytes"  # the data's own byte-level vocabulary: there is no tokenizer to save


def trained_module(checkpoint: Mapping[str, Any], name: str) -> CausalLMModule:
    """Build the module that a checkpoint was written by, with its trained weights.

    Args:
        checkpoint: A loaded Lightning checkpoint.
        name: Of its file, for messages.

    Raises:
        SuiteError: The checkpoint is not of ``CausalLMModule``, or its weights do not fit.
    """
    hparams = checkpoint.get("hyper_parameters") or {}
    if "state_dict" not in checkpoint or not {"config", "pretrained"} <= set(hparams):
        raise SuiteError(
            f"{name}: is no checkpoint of CausalLMModule; it holds "
            f"{', '.join(map(str, checkpoint)) or 'nothing'}. A model of your own is saved with "
            "its own save_pretrained."
        )
    module = CausalLMModule(**{key: hparams[key] for key in _ARGUMENTS if key in hparams})
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as err:
        raise SuiteError(f"{name}: its weights do not fit its own model: {err}") from err
    return module


def merge_adapters(module: CausalLMModule) -> bool:
    """Add the adapters of ``module`` to the weights that they adapt; return whether it had any.

    Raises:
        SuiteError: A weight would not be finite.
    """
    merge = getattr(module.model, "merge_and_unload", None)
    if merge is None:
        return False
    try:
        module.model = merge(safe_merge=True)
    except ValueError as err:
        raise SuiteError(f"the adapters cannot be merged into the weights: {err}") from err
    return True


def tokenizer_name(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the tokenizer that a checkpoint's data was written with, or None if it had none."""
    data = checkpoint.get("datamodule_hyper_parameters") or {}
    name = data.get("tokenizer") or (checkpoint.get("hyper_parameters") or {}).get("pretrained")
    return None if name in (None, _BYTES) else str(name)


def save_model(
    module: CausalLMModule,
    folder: str | Path,
    *,
    tokenizer: str | None = None,
    record: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Path:
    """Write model and tokenizer as ``save_pretrained`` does, all of it or nothing.

    Args:
        module: Its adapters are merged.
        folder: Appears by a rename, once all is written.
        tokenizer: A name as for :func:`~lightning_suite.language.loading.load_tokenizer`; None
            writes none.
        record: Where the weights came from, kept as ``exported_from.json``.
        force: Replace a folder that an earlier export has written.

    Raises:
        SuiteError: The folder exists (and is not an export), or cannot be written.
    """
    target = Path(folder)
    if target.exists() and not (force and (target / RECORD).is_file()):
        advice = (
            "Add --force to replace it." if (target / RECORD).is_file() else "Choose another name."
        )
        raise SuiteError(f"{target} exists. {advice}")
    words = None if tokenizer is None else load_tokenizer(tokenizer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as err:
        raise SuiteError(f"{target}: cannot be written ({err.strerror}).") from err
    try:
        module.model.save_pretrained(work)
        if words is not None:
            words.save_pretrained(work)
        write_json(work / RECORD, dict(record or {}))
        work.chmod(0o755)  # mkdtemp makes 0700
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    except OSError as err:
        raise SuiteError(f"{target}: cannot be written: {err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
