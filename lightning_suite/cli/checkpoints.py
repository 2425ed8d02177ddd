"""Checkpoints that do not fit: what is wrong and what to do, instead of torch's own words."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_suite.errors import SuiteError
from lightning_suite.given_paths import meant_file

# Not files: Lightning looks these up itself.
_KEYWORDS = ("best", "last", "hpc", "registry")
_LR_CALLBACK = "DepthMuPLRCallback"


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint of plain values and tensors, without reading the tensors themselves.

    Args:
        path: A file; anything else that Lightning accepts (``best``, a URL, a folder of a sharded
            checkpoint) gives an empty dict.

    Raises:
        SuiteError: There is no such file, or it needs pickle to be loaded.
    """
    if path.partition(":")[0] in _KEYWORDS or "://" in path or Path(path).is_dir():
        return {}
    if not Path(path).is_file():
        raise SuiteError(f"--ckpt_path {path}: there is no such file.{meant_file(path)}")
    try:
        checkpoint: dict[str, Any] = torch.load(
            path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as err:
        if not zipfile.is_zipfile(path) and "GLOBAL" not in str(err):  # bytes that mean nothing
            raise SuiteError(f"--ckpt_path {path}: is damaged, or no checkpoint.") from err
        raise SuiteError(
            f"{path} holds more than tensors and plain values, and loading it could run any code "
            f"({_offender(err)}). If you made the file yourself, write a plain copy of it:\n"
            f"  python -c \"import torch; c = torch.load('{path}', weights_only=False); "
            "c.pop('hyper_parameters', None); torch.save(c, 'plain.ckpt')\""
        ) from err
    except Exception as err:  # torch takes what is no checkpoint for code, and may fail anyhow
        # what it then says is at times a number that stands for nothing
        why = f": {' '.join(str(err).split())}" if isinstance(err, OSError | RuntimeError) else ""
        raise SuiteError(
            f"--ckpt_path {path}: is damaged, cut off, or no checkpoint{why}."
        ) from err
    if not isinstance(checkpoint, dict):
        raise SuiteError(f"--ckpt_path {path}: holds a {type(checkpoint).__name__}, no checkpoint.")
    return checkpoint


def require_training_state(path: str, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on with a training whose state is not in the checkpoint.

    Args:
        path: Of the checkpoint.
        checkpoint: What :func:`read_checkpoint` returned.

    Raises:
        SuiteError: It holds a model alone; the message says what it is good for.
    """
    if not checkpoint or "optimizer_states" in checkpoint:
        return
    attached = (
        "AttachNewStudentsCallback writes such files after training; to train with the new "
        "students, add their answers to the source and fit without --ckpt_path"
    )
    weights = "ModelCheckpoint's save_weights_only does that"
    raise SuiteError(
        f"--ckpt_path {path}: fit cannot go on from here, since the file holds a model and no "
        f"state of its training ({attached if 'lmcd' in checkpoint else weights}). It is for "
        "validate, test and predict. To train on, name a checkpoint that the fit saved whole."
    )


def count_begun_epoch(trainer: Trainer) -> None:
    """Count the epoch that is under way where Lightning has begun it without.

    To be called in a training batch. After a resume from a checkpoint of an epoch's last batch
    Lightning 2.6 takes the next epoch for the rest of that one; a checkpoint of it, resumed in
    turn, would then train one epoch too many.
    """
    progress = trainer.fit_loop.epoch_progress
    current: Any = progress.current
    if current.started == current.processed:
        progress.increment_ready()
        progress.increment_started()


def explain_resume_error(error: ValueError, trainer: Trainer) -> str | None:
    """Say which callback is missing when an optimizer refuses its state; None for other errors.

    `DepthMuPLRCallback` splits parameter groups, so a run with it and a run without it cannot
    continue each other's optimizer state.
    """
    path = trainer.ckpt_path
    if "parameter group" not in str(error) or path is None:
        return None
    saved = [str(key) for key in read_checkpoint(str(path)).get("callbacks", {})]
    was_there = any(key.startswith(_LR_CALLBACK) for key in saved)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    is_there = any(type(callback).__name__ == _LR_CALLBACK for callback in callbacks)
    if was_there and not is_there:
        return (
            f"{path} was trained with {_LR_CALLBACK}, which splits the optimizer's parameter "
            "groups, and this run is without it. Add `-c configs/overlays/depth_mup.yaml`, or "
            "the callback with the arguments of the first run (they are in its config.yaml)."
        )
    if is_there and not was_there:
        return (
            f"{path} was trained without {_LR_CALLBACK}; its optimizer state does not fit the "
            "groups that the callback makes. Resume without the callback, or start a new run "
            "from the weights alone."
        )
    return (
        f"the optimizer in {path} has other parameter groups than this run ({error}). Resume with "
        f"the model, optimizer and callbacks of the first run; its callbacks: {', '.join(saved)}."
    )


def _offender(error: Exception) -> str:
    """Return the part of torch's long message that names the class."""
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            return line.strip()
    return type(error).__name__
