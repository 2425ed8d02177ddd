"""A bank as plain values, for checkpoints and files; the tensors travel beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lightning_suite.errors import SuiteError
from lightning_suite.scen.records import EditRecord, from_plain, to_plain

if TYPE_CHECKING:
    from lightning_suite.scen.bank import ExpertBank

# Of 1, the gate "subject" reads its wordings again; before 3, nothing is known of the training and
# of the weights in other precisions.
FORMAT = 3
SETTINGS = ("expert", "rank", "positions", "dtype", "template")


@dataclass(frozen=True)
class BaseIdentity:
    """The base model of a bank.

    Two are equal where layer, sizes and hash are: names are free, and the last digits of a sketch
    depend on where in memory the weights lie.

    Attributes:
        name: As the model calls itself (a folder or a name of the Hub); for people.
        layer: Dotted name of the edited map inside the causal LM.
        d_in: Numbers that go into it.
        d_out: Numbers that come out.
        config: Sizes of the model.
        sha256: Hash of the map's stored weights and a sample of the token embedding.
        sketch: What the map makes of fixed inputs, and numbers of the embedding; nearly the same
            for nearly the same weights.
        rounded: As ``sha256``, of the same weights in other precisions, by their names.
    """

    name: str = field(compare=False)
    layer: str
    d_in: int
    d_out: int
    config: dict[str, Any]
    sha256: str
    sketch: tuple[float, ...] = field(compare=False)
    rounded: dict[str, str] = field(default_factory=dict, compare=False)


def described(bank: ExpertBank) -> dict[str, Any]:
    """Return base model, settings, kind of gate, what was chosen, and the edits of a bank."""
    return {
        "format": FORMAT,
        "base": {**asdict(bank.base), "sketch": list(bank.base.sketch)},
        "settings": {name: getattr(bank, name) for name in SETTINGS},
        "gate": bank.gate.kind,
        "calibration": bank.calibration,
        "training": bank.trained,
        "edits": [to_plain(record) for record in bank.history.records],
    }


def check_format(version: Any) -> None:
    """Refuse a format that this version cannot read.

    Raises:
        SuiteError: It is newer, or no number.
    """
    if not isinstance(version, int) or not 1 <= version <= FORMAT:
        raise SuiteError(
            f"it is a bank of format {version!r}, and this version reads up to {FORMAT}. Update "
            "lightning-suite."
        )


def base_of(state: Mapping[str, Any]) -> BaseIdentity:
    """Return the base model in what :func:`described` returned.

    Raises:
        SuiteError: It is not written there as it should be.
    """
    base = state["base"]
    names = {item.name for item in fields(BaseIdentity)}
    if isinstance(base, Mapping):
        base = {"rounded": {}, **base}  # before format 3
    if not isinstance(base, Mapping) or set(base) != names:
        raise SuiteError(f"its base model is {base!r}, expected the keys {sorted(names)}.")
    if not all(type(base[key]) is int and base[key] > 0 for key in ("d_in", "d_out")):
        raise SuiteError(f"its layer has the shape {base['d_in']!r}, {base['d_out']!r}.")
    if (
        not all(isinstance(base[key], str) for key in ("name", "layer", "sha256"))
        or not all(isinstance(base[key], Mapping) for key in ("config", "rounded"))
        or not all(type(number) in (int, float) for number in base["sketch"])
    ):
        raise SuiteError("its base model is described by values of other types.")
    return BaseIdentity(**{**base, "sketch": tuple(base["sketch"])})


def matching_records(bank: ExpertBank, state: Mapping[str, Any]) -> list[EditRecord]:
    """Return the records in ``state`` if it is of a bank like ``bank``.

    Raises:
        SuiteError: It is of another format, base model or kind of bank.
    """
    check_format(state["format"])
    here = described(bank)
    base = base_of(state)
    if base != bank.base:
        shown = ("name", "layer", "d_in", "d_out", "config", "sha256")
        pairs = [(name, getattr(base, name), getattr(bank.base, name)) for name in shown]
        other = [f"{name} {theirs}, here {ours}" for name, theirs, ours in pairs if theirs != ours]
        raise SuiteError(
            f"the stored bank has another base model ({'; '.join(other) or 'other weights'}). "
            "Start from the model that it was made on."
        )
    for what in ("settings", "gate"):
        if state[what] != here[what]:
            raise SuiteError(
                f"the stored bank has another {what}: {state[what]}, here {here[what]}."
            )
    return [from_plain(value) for value in state["edits"]]
