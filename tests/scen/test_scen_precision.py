"""Editing, scoring and answering under each precision of Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from tiny_editing import edit_rows, module_options, write_edits, write_model

from lightning_suite import EditDataModule, SCENModule
from lightning_suite.scen.bank_file import save_bank

PRECISIONS = ["32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:You passed `Trainer.*precision='16-mixed'", "ignore:.*does not have many workers"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EditDataModule:
    source = write_edits(tmp_path_factory.mktemp("edits") / "edits.jsonl", edit_rows(2))
    prompts = source.with_suffix(".txt")
    prompts.write_text("".join(f"{row['prompt']}\n" for row in edit_rows(2)))
    return EditDataModule(str(source), batch_size=2, prompts=str(prompts))


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Trainer without a logger leaves its tables where it stands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, model: Path, data: EditDataModule) -> Path:
    """A bank that was made in float32."""
    module = SCENModule(**module_options(model))
    trainer().fit(module, data)
    path = tmp_path_factory.mktemp("bank") / "facts"
    save_bank(module.bank, path)
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
def test_edits_are_made_and_kept_in_every_precision(
    model: Path, data: EditDataModule, tmp_path: Path, precision: Any
) -> None:
    module = SCENModule(**module_options(model))
    trainer(precision=precision).fit(module, data)
    save_bank(module.bank, tmp_path / "facts")
    run = trainer()
    run.test(SCENModule(**module_options(model, bank=str(tmp_path / "facts"))), data, verbose=False)
    assert run.callback_metrics["scen/reliability"] == 1, "and the float32 model says so"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bank_answers_in_every_precision(
    model: Path, data: EditDataModule, bank: Path, precision: Any
) -> None:
    module = SCENModule(**module_options(model, bank=str(bank), teacher_forced=True))
    run = trainer(precision=precision)
    run.test(module, data, verbose=False)
    assert run.callback_metrics["scen/reliability"] == 1
    run.validate(module, data, verbose=False)
    assert run.callback_metrics["scen/val_reliability"] == 1
    answers = run.predict(module, data)
    assert answers is not None
    assert [row["fired"] for row in answers[0]] == ["e0", "e1"]


def test_a_precision_that_scales_gradients_counts_groups_too(
    model: Path, data: EditDataModule
) -> None:
    """What 16-mixed is on a GPU."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    module = SCENModule(**module_options(model))
    run = trainer(plugins=[scaled])
    run.fit(module, data)
    assert run.global_step == 1
    assert [edit.id for edit in module.bank.edits] == ["e0", "e1"]
    assert module.step_counter == 0
