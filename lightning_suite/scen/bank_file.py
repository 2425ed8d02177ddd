"""Banks on disk: ``NAME.safetensors`` with the numbers, ``NAME.json`` with all that one can read.

The two are one: the JSON has size and hash of its tensors. Saving writes the tensors beside the old
ones (``NAME.safetensors.new``), then the JSON, whose rename is the moment from which the new bank
counts, then renames the tensors; a reader takes whichever of the two the JSON describes, so a kill
at any point leaves the old bank or the new one. Writers and readers of a folder's banks wait for
each other, and a bank remembers the files that it was read from or written to: a process does not
overwrite what another has put there since. Nothing in the files is executed, and no path in them is
followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra
from lightning_suite.files import folder_lock, write_json
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_state import described
from lightning_suite.scen.gates.base import Gate
from lightning_suite.scen.stored_bank import WHAT, StoredBank, bank_exists, json_path, read_bank

__all__ = ["bank_exists", "finish_saving", "load_bank", "read_bank", "save_bank"]

_EXPERTS, _GATE = "experts.", "gate."
# Larger files are compared by size and by the shapes in them: hashing would read what mapping
# leaves on the disk.
HASHED_BYTES = 2**30


def save_bank(bank: ExpertBank, path: str | Path, *, overwrite: bool = True) -> Path:
    """Write a bank.

    Args:
        bank: Whole, with what was removed or replaced.
        path: ``NAME``, ``NAME.json`` or ``NAME.safetensors``; missing folders are made.
        overwrite: Also a bank that this one has nothing to do with.

    Returns:
        Path of the JSON.

    Raises:
        SuiteError: The gate's state is not made of plain values; or the file has changed since this
            bank was read from it or written to it, so that saving would undo what another process
            has done.
    """
    file = json_path(path)
    gate = bank.gate.state_dict()
    plain = {key: value for key, value in gate.items() if not isinstance(value, Tensor)}
    tensors = {_EXPERTS + name: rows for name, rows in bank.table.state().items()}
    tensors |= {_GATE + key: value for key, value in gate.items() if isinstance(value, Tensor)}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    try:
        json.dumps(plain)
    except (TypeError, ValueError) as err:
        raise SuiteError(
            f"the gate {bank.gate.kind!r} has a state that is not plain: {err}"
        ) from err
    file.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(file.parent):
        _check_unchanged(bank, file, overwrite)
        _finish_saving(file)
        _write(bank, file, tensors, plain)
        bank.files[file.resolve()] = _hash(file)
    return file


def _write(
    bank: ExpertBank, file: Path, tensors: dict[str, Tensor], gate_state: Mapping[str, Any]
) -> None:
    written = _new(file)
    import_extra("safetensors.torch", "llm").save_file(tensors, written)
    with written.open("rb+") as opened:
        os.fsync(opened.fileno())
    entries = {k: [_name(v.dtype), list(v.shape)] for k, v in sorted(tensors.items())}
    write_json(
        file,
        {
            "what": WHAT,
            **described(bank),
            "gate_state": gate_state,
            "tensors": {"bytes": written.stat().st_size, "sha256": _hash(written), "of": entries},
        },
    )
    written.replace(file.with_suffix(".safetensors"))


def _check_unchanged(bank: ExpertBank, file: Path, overwrite: bool) -> None:
    """Refuse to undo what another process has done to a bank file."""
    known = bank.files.get(file.resolve())
    if not file.exists() or (known is None and overwrite) or _hash(file) == known:
        return
    raise SuiteError(
        f"{file}: another process has written this bank "
        + ("meanwhile" if known is None else "since it was read here")
        + ", and saving now would undo that. The file is left as it is; run the same again, and it "
        "starts from what is there."
    )


def load_bank(path: str | Path, make_gate: Callable[[StoredBank], Gate]) -> ExpertBank:
    """Read a bank; the experts stay on the disk until they fire.

    Args:
        path: As for :func:`save_bank`.
        make_gate: Makes an empty gate of the kind that the bank says.

    Raises:
        SuiteError: As :func:`read_bank`; the tensors are missing, cut off, of another bank, or not
            of the shapes that the bank says.
    """
    file = json_path(path)
    with folder_lock(file.parent, shared=True):
        stored = read_bank(file)
        tensors, content = _tensors(stored), _hash(file)
    try:
        bank = ExpertBank(
            stored.base, make_gate(stored), **stored.settings, calibration=stored.calibration
        )
        bank.trained = stored.training
        bank.restore(stored.records, _part(tensors, _EXPERTS))
        bank.gate.load_state_dict({**_part(tensors, _GATE), **stored.gate_state})
        bank.gate.check()
        bank.files[file.resolve()] = content
    except SuiteError as err:
        raise SuiteError(f"{stored.path}: {err}") from err
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as err:
        raise SuiteError(f"{stored.path}: is damaged: {err!r}.") from err
    except (OverflowError, MemoryError) as err:
        raise SuiteError(f"{stored.path}: says sizes that no bank has: {err!r}.") from err
    return bank


def _tensors(stored: StoredBank) -> dict[str, Tensor]:
    safetensors = import_extra("safetensors", "llm")
    file = stored.path.with_suffix(".safetensors")
    # After a kill between the two renames the tensors still have the other name.
    there = [path for path in (file, _new(stored.path)) if path.is_file()]
    if not there:
        raise SuiteError(f"{file}: is missing; {stored.path.name} needs it.")
    said = stored.tensors
    fitting = [path for path in there if path.stat().st_size == said["bytes"]]
    if not fitting:
        raise SuiteError(
            f"{file}: has {file.stat().st_size:,} bytes, and {stored.path.name} says "
            f"{said['bytes']:,}. It is cut off, or of another bank."
        )
    if said["bytes"] <= HASHED_BYTES:
        fitting = [path for path in fitting if _hash(path) == said["sha256"]]
        if not fitting:
            raise SuiteError(f"{file}: is not the file that {stored.path.name} was written with.")
    try:
        with safetensors.safe_open(fitting[0], framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    # beside its own errors: types that torch does not have
    except (safetensors.SafetensorError, OSError, AttributeError, ValueError) as err:
        raise SuiteError(f"{file}: is damaged: {err}") from err
    found = {key: [_name(tensor.dtype), list(tensor.shape)] for key, tensor in tensors.items()}
    if found != said["of"]:
        raise SuiteError(f"{file}: holds {found}, and {stored.path.name} says {said['of']}.")
    return tensors


def finish_saving(path: str | Path) -> None:
    """Make the tensors whose last renaming a kill cut short the bank's; for whoever writes it next.

    Without it a second kill, before the JSON is written, would leave none that the JSON describes.
    """
    file = json_path(path)
    with folder_lock(file.parent):
        _finish_saving(file)


def _finish_saving(file: Path) -> None:
    beside = _new(file)
    try:
        said = read_bank(file).tensors
        if beside.stat().st_size == said["bytes"] and _hash(beside) == said["sha256"]:
            beside.replace(file.with_suffix(".safetensors"))
    except (SuiteError, OSError):
        return  # no bank yet, or nothing beside it: the usual case


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _new(file: Path) -> Path:
    return file.with_suffix(".safetensors.new")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return re.sub(r"^torch\.", "", str(dtype))
