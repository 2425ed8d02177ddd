"""Banks with their tensors and, where it takes one, their model, for the commands that change them.

Apart from :mod:`lightning_suite.cli.commands.bank`, since reading the options of a command also
imports what its module names for type checkers only: with a bank's class in it, every look into a
bank would wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_suite.errors import SuiteError
from lightning_suite.scen.stored_bank import StoredBank, read_bank

if TYPE_CHECKING:
    from lightning_suite.scen.bank import ExpertBank


def save(bank: ExpertBank, path: str, *, overwrite: bool = False) -> None:
    """Write a bank."""
    from lightning_suite.scen.bank_file import save_bank  # noqa: PLC0415

    save_bank(bank, path, overwrite=overwrite)


def without_model(bank: str) -> ExpertBank:
    """Load a bank as far as it goes without its model: with edits, experts and keys."""
    from lightning_suite.scen.bank_file import load_bank  # noqa: PLC0415 - imports torch
    from lightning_suite.scen.editing import make_gate  # noqa: PLC0415

    return load_bank(bank, lambda stored: make_gate(stored.gate))


def with_model(bank: str, name: str | None, other_weights: bool) -> tuple[ExpertBank, Any, Any]:
    """Load a bank, its model and the tokenizer.

    Args:
        bank: Path of the bank.
        name: Of the model, as for ``pretrained``; None takes the folder that the bank names.
        other_weights: Take a model with other weights.

    Raises:
        SuiteError: There is no such bank or model, or they do not go together.
    """
    from lightning_suite.language.loading import (  # noqa: PLC0415
        causal_lm_from_pretrained,
        load_tokenizer,
    )
    from lightning_suite.scen.editing import open_bank  # noqa: PLC0415

    found = name or _own_model(read_bank(bank))
    model, tokenizer = causal_lm_from_pretrained(found).eval(), load_tokenizer(found)
    opened = open_bank(bank, model, tokenizer, allow_other_weights=other_weights)
    return opened, model, tokenizer


def _own_model(stored: StoredBank) -> str:
    """Return the folder of the base model; a name in a bank is never looked up in the network."""
    if not Path(stored.base.name).is_dir():
        raise SuiteError(
            f"{stored.path}: the bank was made for {stored.base.name!r}, which is no folder here. "
            "Say where the model is: --model NAME"
        )
    return stored.base.name
