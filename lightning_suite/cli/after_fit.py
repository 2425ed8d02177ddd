"""What ``fit`` says at its end: what it has made, and the command that goes on from there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What one wants of a trained module, by its class or one that it inherits from.
_NEXT = {"SCENModule": "predict", "LMCDModule": "predict"}


def last_lines(
    module: Any,
    words: Sequence[str],
    folder: str,
    checkpoint: str = "",
    *,
    replaced: bool = False,
    written: bool = True,
) -> list[str]:
    r"""Return the last lines of a fit.

    Args:
        module: That was trained.
        words: Of the command line, without the program: ``fit -c my.yaml``.
        folder: Of the run.
        checkpoint: The best one; empty without.
        replaced: Whether it took the place of an earlier file.
        written: Whether this fit has written a checkpoint at all; ``checkpoint`` may then be the
            one that it went on from.

    Example:
        >>> class SCENModule:
        ...     hparams = {"bank": "facts"}
        >>> print(*last_lines(SCENModule(), ["fit", "-c", "a b.yaml"], "runs/v0"), sep="\n")
        Run folder: runs/v0
        Bank:       facts (lightning-suite bank list facts)
        Report:     lightning-suite report runs/v0
        Next:       lightning-suite predict -c 'a b.yaml'
    """
    classes = [kind.__name__ for kind in type(module).__mro__]
    lines = {"Run folder": folder}
    with_checkpoint = checkpoint
    if "SCENModule" in classes:
        named = module.hparams["bank"]
        bank = named or (Path(folder) / "artifacts" / "bank").as_posix()
        lines["Bank"] = f"{bank} (lightning-suite bank list {shlex.quote(bank)})"
        with_checkpoint = "" if named else checkpoint  # the configuration names what was made
    lines["Report"] = f"lightning-suite report {shlex.quote(folder)}"
    if not written:
        best = f" (the best so far is {checkpoint})" if checkpoint else ""
        lines["Checkpoint"] = f"none was written in this run{best}"
    elif checkpoint:
        earlier = " (of this fit; an earlier file of that name is replaced)" if replaced else ""
        lines["Checkpoint"] = f"{checkpoint}{earlier}"
    command = next((_NEXT[name] for name in classes if name in _NEXT), None)
    if command is not None:
        again = [command, *_without_checkpoint(words[1:])]
        again += ["--ckpt_path", with_checkpoint] if with_checkpoint else []
        lines["Next"] = f"lightning-suite {shlex.join(again)}"
    return [f"{f'{label}:':<11} {text}" for label, text in lines.items()]


def stopped_lines(module: Any, words: Sequence[str], folder: str, checkpoint: str) -> str:
    """Return what to say of a fit that Ctrl-C has ended.

    Args:
        module: That was trained.
        words: Of the command line, without the program.
        folder: Of the run; empty: nothing was written.
        checkpoint: The last one that this fit has written; empty without.
    """
    classes = [kind.__name__ for kind in type(module).__mro__]
    where = f"stopped; run folder: {folder}. " if folder else "stopped. "
    command = f"lightning-suite {shlex.join(words)}"
    if checkpoint:
        again = shlex.join([*_without_checkpoint(words), "--ckpt_path", checkpoint])
        return f"{where}To go on from its last checkpoint:\n  lightning-suite {again}"
    if "SCENModule" in classes and module.hparams["bank"]:
        return f"{where}What is in the bank is kept, and the same command goes on:\n  {command}"
    begins = "where it began" if len(_without_checkpoint(words)) < len(words) else "anew"
    return f"{where}No checkpoint was written: the same command begins {begins}."


def _without_checkpoint(words: Sequence[str]) -> list[str]:
    """Leave out where the fit went on from."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("--ckpt_path="):
            skip = False
        elif word == "--ckpt_path":
            skip = True
        else:
            kept.append(word)
    return kept
