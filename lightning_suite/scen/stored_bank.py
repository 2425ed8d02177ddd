"""What the JSON of a bank says. Reading it takes no torch, so that looking into a bank is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.given_paths import given_path
from lightning_suite.json_text import load_json
from lightning_suite.scen.bank_state import SETTINGS, BaseIdentity, base_of, check_format
from lightning_suite.scen.records import EditRecord, History, from_plain

WHAT = "lightning-suite expert bank"
_KEYS = {"what", "format", "base", "settings", "gate", "gate_state", "edits", "tensors"}
_CALIBRATION, _TRAINING = "calibration", "training"  # may be missing
_LARGEST_RATE = 1e6  # of learning: no number that one can work with is larger
_SHOWN = 5  # banks named in a message


@dataclass(frozen=True)
class StoredBank:
    """What ``NAME.json`` says; reading it takes neither the model nor the tensors.

    Attributes:
        path: Of the JSON.
        base: The model that the bank is for.
        settings: Of :class:`~lightning_suite.scen.bank.ExpertBank`.
        gate: Kind of the gate.
        gate_state: Its plain values.
        calibration: What was chosen by trial; empty where nothing was.
        training: How the last experts were trained; empty where nobody said.
        history: All edits.
        tensors: Size, hash, and type and shape by name, of the other file.
    """

    path: Path
    base: BaseIdentity
    settings: dict[str, Any]
    gate: str
    gate_state: Any
    calibration: dict[str, Any]
    training: dict[str, Any]
    history: History
    tensors: dict[str, Any]

    @property
    def records(self) -> list[EditRecord]:
        """Return the records by slot."""
        return self.history.records


def json_path(path: str | Path) -> Path:
    """Return the path of the JSON for ``NAME``, ``NAME.json`` or ``NAME.safetensors``."""
    given = given_path(path)
    if given.suffix in (".json", ".safetensors"):
        return given.with_suffix(".json")
    return given.with_name(f"{given.name}.json")


def bank_exists(path: str | Path) -> bool:
    """Return whether there is a bank, or part of one, at ``path`` (as for :func:`save_bank`)."""
    file = json_path(path)
    return file.exists() or file.with_suffix(".safetensors").exists()


def read_bank(path: str | Path) -> StoredBank:
    """Read what a bank says of itself, without its tensors.

    Raises:
        SuiteError: There is no such bank, or the file is not one that this version reads.
    """
    file = json_path(path)
    try:
        content = file.read_bytes()
    except OSError as err:
        alone = file.with_suffix(".safetensors").exists()
        hint = " The .safetensors beside it needs it." if alone else _instead(file)
        raise SuiteError(f"{file}: cannot be read ({err.strerror}).{hint}") from err
    try:
        value = load_json(content)
    except UnicodeDecodeError as err:
        raise SuiteError(f"{file}: is not text.") from err
    except ValueError as err:
        raise SuiteError(f"{file}: is not JSON, or not all of it: {err}") from err
    if not isinstance(value, dict) or value.get("what") != WHAT:
        raise SuiteError(f"{file}: is not a {WHAT}.")
    try:
        check_format(value.get("format"))
        for part, keys in (
            (value, _KEYS | ({_CALIBRATION, _TRAINING} & set(value))),
            (value["settings"], set(SETTINGS)),
            (value["tensors"], {"bytes", "sha256", "of"}),
        ):
            if not isinstance(part, dict) or set(part) != keys:
                raise SuiteError(f"it has the keys {sorted(part)}, expected {sorted(keys)}.")
        _check_types(value)
        return StoredBank(
            file,
            base_of(value),
            value["settings"],
            value["gate"],
            value["gate_state"],
            dict(value.get(_CALIBRATION, {})),
            dict(value.get(_TRAINING, {})),
            History([from_plain(record) for record in value["edits"]]),
            value["tensors"],
        )
    except SuiteError as err:
        raise SuiteError(f"{file}: {err}") from err
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise SuiteError(f"{file}: is damaged: {err!r}.") from err


def _check_types(value: dict[str, Any]) -> None:
    """Refuse values of other types than a bank has: they would fail somewhere later."""
    settings, tensors = value["settings"], value["tensors"]
    chosen = value.get(_CALIBRATION, {})
    of = tensors["of"]
    right = {
        "settings": isinstance(settings["rank"], int)
        and not isinstance(settings["rank"], bool)
        and all(isinstance(settings[key], str) for key in ("expert", "positions", "dtype"))
        and isinstance(settings["template"], (str, type(None))),
        "gate": isinstance(value["gate"], str),
        "gate_state": isinstance(value["gate_state"], dict),
        "edits": isinstance(value["edits"], list)
        and all(isinstance(edit, dict) for edit in value["edits"]),
        "tensors": isinstance(tensors["bytes"], int)
        and isinstance(tensors["sha256"], str)
        and isinstance(of, dict)
        and all(isinstance(entry, list) and len(entry) == 2 for entry in of.values()),
        _TRAINING: isinstance(value.get(_TRAINING, {}), dict),
        _CALIBRATION: isinstance(chosen, dict)
        and all(
            isinstance(found, dict)
            and isinstance(found.get("trials"), list)
            and isinstance(found.get("data"), str)
            and _is_rate(found.get("lr"))
            for found in chosen.values()
        ),
    }
    wrong = [name for name, fine in right.items() if not fine]
    if wrong:
        raise SuiteError(f"is damaged: its {wrong[0]} are not of the types that a bank has.")


def _is_rate(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < _LARGEST_RATE)


def _instead(file: Path) -> str:
    """Say what a path of a bank that is not there should be, and which banks lie beside it."""
    hint = (
        f" It should be a bank, as `lightning-suite fit -c scen/edit` writes it: "
        f"{file.stem}.json and {file.stem}.safetensors."
    )
    names = sorted(
        path.stem
        for path in file.parent.glob("*.safetensors")
        if path.with_suffix(".json").exists()
    )
    folder = file.with_suffix("")
    inside = [folder / "bank", folder / "artifacts" / "bank"]  # of `scen/edit`, of a run
    if there := next((path for path in inside if bank_exists(path)), None):
        return f" {folder} is a folder; in it there is a bank: {there}"
    if not names:
        return hint
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{hint}{did_you_mean(file.stem, names)} In {file.parent}: {shown}."
