"""Edits of a model on another device: the bank and the answers of the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import quiet_trainer
from glass_lm import glass_model, glass_tokenizer
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from second_device import NAME, trainer_options
from tiny_editing import TEMPLATE, edit_rows, module_options, write_edits, write_model
from torch.utils.data import DataLoader

from lightning_suite import EditDataModule, ExpertGateCallback, SCENModule
from lightning_suite.scen.bank import ExpertBank
from lightning_suite.scen.bank_file import save_bank
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.prompts import PromptFormat

EDITS = [
    Edit(name.casefold(), f"What is the colour of {name}?", colour, subject=name)
    for name, colour in (("Tom", "red"), ("Lily", "blue"), ("Max", "green"))
]
QUESTIONS = [*(edit.prompt for edit in EDITS), "Who is there?"]


def edited(
    folder: Path, *, second: bool, **options: Any
) -> tuple[dict[str, torch.Tensor], list[str], list[str | None]]:
    """Return a bank's tensors, what the model answers with it, and which edits answered."""
    torch.manual_seed(0)
    model, tokenizer = glass_model(), glass_tokenizer()
    device = NAME if second else "cpu"
    model.to(device)
    bank = ExpertBank.for_model(model, tokenizer, **options)
    bank.add(model, tokenizer, EDITS, settings=ExpertSettings(steps=60))
    form = PromptFormat.for_model(model, tokenizer)
    with bank.attach(model, tokenizer):
        batch = form.batch([form.encode(question) for question in QUESTIONS])
        width = batch["input_ids"].shape[1]
        batch = {name: values.to(device) for name, values in batch.items()}
        out = model.generate(**batch, max_new_tokens=8, do_sample=False)
        answers = [form.decode(row[width:].tolist()) for row in out]
        fired = [bank.explain(question).fired for question in QUESTIONS]
    save_bank(bank, folder / device)
    return load_file(folder / f"{device}.safetensors"), answers, fired


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "subject"},
        {"gate": "closed", "expert": "full"},
        {"gate": "scen"},
    ],
    ids=lambda options: " ".join(options.values()),
)
def test_a_bank_is_the_cpu_s(tmp_path: Path, options: dict[str, Any]) -> None:
    there, *said_there = edited(tmp_path, second=True, **options)
    here, *said_here = edited(tmp_path, second=False, **options)
    assert said_there == said_here
    if options["gate"] != "scen":  # at the published settings nothing fires
        assert said_here[1] == ["tom", "lily", "max", None]
    assert there.keys() == here.keys()
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, rtol=1e-2, atol=2e-3, msg=name)


class Asked(LightningModule):
    """A user's module with a language model in it."""

    def __init__(self) -> None:
        super().__init__()
        self.lm, self.tokenizer = glass_model(), glass_tokenizer()
        self.format = PromptFormat(self.tokenizer, TEMPLATE, [3])

    def predict_step(self, batch: list[str], batch_idx: int) -> list[str]:
        tokens = self.format.batch([self.format.encode(text) for text in batch])
        tokens = {name: values.to(self.device) for name, values in tokens.items()}
        out = self.lm.generate(**tokens, max_new_tokens=6, do_sample=False)
        return [self.format.decode(row[tokens["input_ids"].shape[1] :].tolist()) for row in out]


def test_a_fit_makes_the_same_bank_and_a_callback_uses_it(tmp_path: Path) -> None:
    model, edits = write_model(tmp_path / "lm"), write_edits(tmp_path / "e.jsonl", edit_rows(4))
    asked: Any = [edit["prompt"] for edit in edit_rows(4)]
    found = []
    for second in (True, False):
        bank = str(tmp_path / f"facts{second}")
        options = {**trainer_options(second=second), "default_root_dir": tmp_path, "max_epochs": 1}
        module = SCENModule(**module_options(model, bank=bank))
        quiet_trainer(**options).fit(module, EditDataModule(str(edits)))
        gate = ExpertGateCallback(bank=bank, tokenizer=str(model), prompt_template=TEMPLATE)
        answers = quiet_trainer([gate], **options).predict(Asked(), DataLoader(asked, batch_size=4))
        found.append((load_file(f"{bank}.safetensors"), answers))
    (there, said_there), (here, said_here) = found
    assert said_there == said_here == [[edit["target"] for edit in edit_rows(4)]]
    for name, values in here.items():
        torch.testing.assert_close(there[name], values, rtol=1e-2, atol=2e-3, msg=name)
