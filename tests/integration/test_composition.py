"""Every subset of the overlays on every module: it works, or it is refused with a reason.

The callbacks are those of the shipped overlay files, with their arguments there; only what needs
names or a size of the module at hand is replaced. All is done in this process, two steps a run.
"""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tiny_editing import TEMPLATE, edit_rows, module_options, write_edits, write_model
from tiny_lmcd import tiny_class, tiny_diagnosis
from tiny_scoring import MODEL, rows, write_rows
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

import lightning_suite
from lightning_suite import (
    CausalLMModule,
    EditDataModule,
    InstructionDataModule,
    ResidualNetModule,
    SCENModule,
)
from lightning_suite.datamodules.loading import train_loader
from lightning_suite.errors import SuiteError

ROOT = Path(__file__).parents[2]
OVERLAYS = ("depth_mup", "gradient_features", "feature_dynamics", "expert_gate", "diagnosis_report")
SUBSETS = [names for n in range(6) for names in combinations(OVERLAYS, n)]
# The only one that changes what is trained: the bank of the gate is empty here, the others look.
CHANGES = {"depth_mup"}
FROZEN = "are frozen"
NO_PARTS = "the data module has no parts. Use ColdStartDataModule"
NO_LM = "holds no Hugging Face model"


@dataclass
class Case:
    """A module with its data, what its overlays need, and what it refuses."""

    make: Callable[[], tuple[LightningModule, Any]]
    fits: tuple[str, ...]
    refuses: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


class Whole(TensorDataset):
    """Gives whole batches."""

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self[torch.as_tensor(indices)]


class Points(LightningDataModule):
    """Random inputs and two classes, in the shape that the module reads."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, *shape, generator=generator)
        self.data = Whole(x, torch.arange(8) % 2)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return train_loader(self.data, 4, seed=0, num_workers=0, trainer=self.trainer)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("composition")
    model = write_model(folder / "lm")
    edits = write_edits(folder / "edits.jsonl", edit_rows(2))
    source = write_rows(folder / "data.jsonl", rows(8))
    foreign = runpy.run_path(str(ROOT / "examples/existing_trainer.py"))["YourModule"]
    roles = {
        r"\.up\.": "hidden_first",
        r"\.down\.": "hidden_last",
        r"stem\.": "input",
        r"head\.": "output",
    }

    def language() -> tuple[LightningModule, Any]:
        data = InstructionDataModule(str(source), tokenizer="bytes", max_length=90, batch_size=4)
        return CausalLMModule(config=MODEL), data

    def editing() -> tuple[LightningModule, Any]:
        module = SCENModule(**module_options(model, training={"steps": 2}))
        return module, EditDataModule(str(edits))

    gate = {"tokenizer": str(model), "prompt_template": TEMPLATE}
    residual = ("depth_mup", "gradient_features", "feature_dynamics")
    return {
        "ResidualNetModule": Case(
            lambda: (ResidualNetModule(depth=2, width=8, base_depth=4), Points(1, 8, 8)),
            residual,
            {"expert_gate": NO_LM, "diagnosis_report": NO_PARTS},
        ),
        "CausalLMModule": Case(
            language,
            (*residual, "expert_gate"),
            {"diagnosis_report": NO_PARTS},
            {"expert_gate": {**gate, "allow_other_weights": True}},
        ),
        "SCENModule": Case(
            editing,
            ("expert_gate",),
            {
                "depth_mup": FROZEN,
                "gradient_features": "its weight is frozen",
                "feature_dynamics": FROZEN,
                "diagnosis_report": NO_PARTS,
            },
        ),
        "LMCDModule": Case(
            lambda: (tiny_diagnosis(), tiny_class(folder / "class")),
            ("expert_gate", "diagnosis_report"),
            {
                "depth_mup": FROZEN,
                "gradient_features": "the samples of a batch have no ids",
                "feature_dynamics": FROZEN,
            },
            {"expert_gate": gate},
        ),
        "examples/existing_trainer.py": Case(
            lambda: (foreign(depth=2, width=8), Points(20)),
            residual,
            {"expert_gate": NO_LM, "diagnosis_report": NO_PARTS},
            {"depth_mup": {"patterns": roles}, "feature_dynamics": {"patterns": roles}},
        ),
    }


MODULES = (
    "ResidualNetModule",
    "CausalLMModule",
    "SCENModule",
    "LMCDModule",
    "examples/existing_trainer.py",
)


def callback(name: str, options: dict[str, Any]) -> Callback:
    """Make the callback of an overlay file."""
    config = yaml.safe_load((ROOT / f"configs/overlays/{name}.yaml").read_text())
    (entry,) = config["trainer"]["callbacks+"]
    arguments = {**entry["init_args"], **options}
    if name in ("gradient_features", "feature_dynamics"):
        arguments["every_n_steps"] = 1
    if name == "expert_gate":
        arguments["bank"] = None  # an empty one
    made: Callback = getattr(lightning_suite, entry["class_path"].rpartition(".")[2])(**arguments)
    return made


def fit(
    case: Case,
    overlays: Iterable[str],
    folder: Path,
    loggers: Iterable[Any] = (),
    *,
    more: Sequence[Callback] = (),
    epochs: int | None = None,
    ckpt_path: Path | None = None,
) -> tuple[dict[str, Tensor], Trainer]:
    """Train two steps (or ``epochs``) with these overlays, in this order.

    Returns the weights and the trainer.
    """
    torch.manual_seed(0)
    module, data = case.make()
    callbacks = [callback(name, case.options.get(name, {})) for name in overlays]
    trainer = Trainer(
        accelerator="cpu",
        max_steps=-1 if epochs else 2,
        max_epochs=epochs or 1,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=[CSVLogger(folder), *loggers],
        callbacks=[*callbacks, *more],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    hooks = [name for name, part in module.named_modules() if part._forward_hooks]
    assert hooks == []
    return {name: p.detach().clone() for name, p in module.named_parameters()}, trainer


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def reference(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Weights of runs with nothing but the overlays that change what is trained."""
    known: dict[tuple[str, tuple[str, ...]], dict[str, Tensor]] = {}

    def reference(module: str, overlays: Iterable[str]) -> dict[str, Tensor]:
        key = module, tuple(name for name in overlays if name in CHANGES)
        if key not in known:
            known[key], _ = fit(cases[module], key[1], tmp_path_factory.mktemp("reference"))
        return known[key]

    return reference


def test_every_overlay_that_fits_or_is_refused_is_listed(cases: dict[str, Case]) -> None:
    assert set(cases) == set(MODULES)
    for case in cases.values():
        assert sorted([*case.fits, *case.refuses]) == sorted(OVERLAYS)
        assert not set(case.fits) & set(case.refuses)


@pytest.mark.parametrize("module", MODULES)
def test_every_subset_that_makes_sense_runs_and_those_that_look_change_nothing(
    module: str, cases: dict[str, Case], reference: Any, tmp_path: Path
) -> None:
    case = cases[module]
    subsets = [subset for subset in SUBSETS if set(subset) <= set(case.fits)]
    assert len(subsets) == 2 ** len(case.fits)
    for number, subset in enumerate(subsets):
        trained, trainer = fit(case, subset, tmp_path / str(number))
        assert trainer.global_step > 0
        assert same(trained, reference(module, subset)), subset


@pytest.mark.parametrize("module", MODULES)
def test_every_subset_with_one_that_makes_no_sense_is_refused_with_its_reason(
    module: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases[module]
    for number, subset in enumerate(SUBSETS):
        reasons = [case.refuses[name] for name in subset if name in case.refuses]
        if not reasons:
            continue
        with pytest.raises(SuiteError) as caught:
            fit(case, subset, tmp_path / str(number))
        assert any(reason in str(caught.value) for reason in reasons), subset


@pytest.mark.parametrize("module", MODULES)
def test_the_order_of_overlays_is_no_matter(
    module: str, cases: dict[str, Case], reference: Any, tmp_path: Path
) -> None:
    case = cases[module]
    logged = []
    for number, order in enumerate(permutations(case.fits)):
        if number not in (0, 1, 3, 5, 8, 14, 23):  # of 24; all of up to 2, most of 6
            continue
        trained, trainer = fit(case, order, tmp_path / str(number))
        assert same(trained, reference(module, order)), order
        logged.append({k: float(v) for k, v in trainer.logged_metrics.items()})
    for other in logged[1:]:
        assert other.keys() == logged[0].keys()
        for name, value in other.items():
            # names of wall-clock speeds say so
            if "per_second" not in name:
                assert value == pytest.approx(logged[0][name], nan_ok=True), name


@pytest.mark.parametrize("module", MODULES)
def test_wandb_offline_goes_with_every_subset(
    module: str, cases: dict[str, Case], reference: Any, tmp_path: Path
) -> None:
    """All subsets with a W&B run that keeps nothing; the fullest as the overlay says."""
    pytest.importorskip("wandb")
    import wandb

    case = cases[module]
    overlay = yaml.safe_load((ROOT / "configs/overlays/wandb_offline.yaml").read_text())
    (entry,) = overlay["trainer"]["logger+"]
    assert entry["class_path"] == "lightning.pytorch.loggers.WandbLogger"
    arguments = {**entry["init_args"], "save_dir": tmp_path}
    subsets = [subset for subset in SUBSETS if set(subset) <= set(case.fits)]
    for number, subset in enumerate(subsets):
        last = number == len(subsets) - 1
        logger = WandbLogger(**arguments) if last else WandbLogger(mode="disabled")
        try:
            trained, _ = fit(case, subset, tmp_path / str(number), [logger])
        finally:
            wandb.finish()
        assert same(trained, reference(module, subset)), subset
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


class Forget(Callback):
    """Nothing but the checkpoint may decide."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                if parameter.requires_grad:
                    parameter.fill_(7.0)


class Kill(Callback):
    """Saves after a step in the middle of an epoch and dies after the next."""

    def __init__(self, path: Path, step: int = 3) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
        elif trainer.global_step > self.step:
            raise RuntimeError("killed")


SCHEDULES: dict[str, Any] = {
    "none": None,
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, 6, eta_min=1e-4),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.1, total_steps=40),
    "step": lambda optimizer: StepLR(optimizer, 2, 0.5),
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}


# SCENModule trains no weights step by step (see test_scen_runs.py); the example chooses its own.
SCHEDULED = [
    (name, schedule)
    for name in ("ResidualNetModule", "CausalLMModule", "LMCDModule")
    for schedule in SCHEDULES
] + [("examples/existing_trainer.py", "none")]


@pytest.mark.parametrize(("module", "schedule"), SCHEDULED)
def test_all_overlays_together_are_killed_and_end_where_they_would_have(
    module: str, schedule: str, cases: dict[str, Case], tmp_path: Path
) -> None:
    case = cases[module]
    monitor = {**case.options.get("feature_dynamics", {}), "save_reference": True}  # see Forget
    case = replace(case, options={**case.options, "feature_dynamics": monitor})
    if schedule != "none":
        case = replace(case, make=lambda: scheduled(cases[module].make(), schedule))
    whole, uninterrupted = fit(case, case.fits, tmp_path / "whole", epochs=3)

    path = tmp_path / "killed.ckpt"
    with pytest.raises(RuntimeError, match="killed"):
        fit(case, case.fits, tmp_path / "killed", more=[Kill(path)], epochs=3)
    torch.load(path, weights_only=True)
    again = tmp_path / "resumed"
    resumed, trainer = fit(case, case.fits, again, more=[Forget()], epochs=3, ckpt_path=path)

    frozen = {name for name, p in cases[module].make()[0].named_parameters() if not p.requires_grad}
    trained = whole.keys() - frozen
    assert trained
    # LMCD's frozen texts are read in other company after a resume: last digits differ
    rtol = 1e-4 if module == "LMCDModule" else 0.0
    for name in trained:
        torch.testing.assert_close(resumed[name], whole[name], rtol=rtol, atol=rtol / 100)
    metrics = trainer.callback_metrics
    assert metrics.keys() == uninterrupted.callback_metrics.keys()
    for name, value in uninterrupted.callback_metrics.items():
        if "per_second" not in name:
            near = pytest.approx(float(value), rel=rtol, abs=rtol / 100, nan_ok=True)
            assert float(metrics[name]) == near, name


def scheduled(made: tuple[LightningModule, Any], schedule: str) -> tuple[LightningModule, Any]:
    module: Any = made[0]
    module.lr_scheduler = SCHEDULES[schedule]
    return made
