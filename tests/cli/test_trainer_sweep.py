"""``lr-transfer --fit_config``: the sweep of a module that is not ours."""

from __future__ import annotations

import csv
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.cli.main import main
from lightning_suite.cli.trainer_sweep import TrainerEngine
from lightning_suite.depth_mup.lr_transfer import Chunk, Point, RuleChoice
from lightning_suite.errors import SuiteError

MODULE = """
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset


class Branch(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand = torch.nn.Linear(width, width, bias=False)
        self.contract = torch.nn.Linear(width, width, bias=False)

    def forward(self, h):
        return h + self.contract(torch.tanh(self.expand(h)))


class Tower(LightningModule):
    def __init__(self, layers: int = 2, rate: float = 0.1):
        super().__init__()
        self.stem = torch.nn.Linear(4, 8, bias=False)
        self.tower = torch.nn.ModuleList(Branch(8) for _ in range(layers))
        self.head = torch.nn.Linear(8, 1, bias=False)
        self.rate = rate

    def training_step(self, batch, index):
        h = self.stem(batch[0])
        for block in self.tower:
            h = block(h)
        loss = (self.head(h) - batch[1]).pow(2).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, 4, generator=generator)
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)

    val_dataloader = train_dataloader
"""

CONFIG = """
model:
  class_path: sweep_project.Tower
  init_args: {layers: 2, rate: 0.1}
trainer:
  accelerator: cpu
  callbacks:
    - class_path: DepthMuPLRCallback
      init_args:
        base_depth: 99
        patterns: {stem: input, expand: hidden_first, contract: hidden_last, head: output}
    - class_path: LearningRateMonitor
"""

KEYS = {"depth_key": "model.init_args.layers", "lr_key": "model.init_args.rate"}

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "sweep_project.py").write_text(MODULE)
    (tmp_path / "fit.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("sweep_project", None)


def chunk(rule: str, depth: int, log2_lr: float, seed: int = 3) -> Chunk:
    return Chunk("one", RuleChoice.parse(rule), depth, (Point(log2_lr, seed),))


def test_what_becomes_of_the_multipliers_is_not_said_after_every_run(project: Path) -> None:
    """A sweep keeps no model that anybody could use without them."""
    engine = TrainerEngine(["fit.yaml"], base_depth=2, steps=2, final_steps=1, **KEYS)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine(chunk("depth_mup", 4, -4), lambda _: None)
    assert not [str(one.message) for one in said if "hooks" in str(one.message)]


def test_a_run_is_the_fit_that_a_user_would_write(project: Path) -> None:
    engine = TrainerEngine(["fit.yaml"], base_depth=2, steps=6, final_steps=2, **KEYS)
    (result,) = engine(chunk("nfd:0.25", 4, -4), lambda _: None)

    from sweep_project import Tower

    losses: list[float] = []

    class Watched(Tower):
        def training_step(self, batch: object, index: int) -> torch.Tensor:
            loss = super().training_step(batch, index)
            losses.append(loss.item())
            return loss

    seed_everything(3, verbose=False)
    model = Watched(layers=4, rate=2**-4)
    patterns = {
        "stem": "input",
        "expand": "hidden_first",
        "contract": "hidden_last",
        "head": "output",
    }
    Trainer(
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=[DepthMuPLRCallback(2, rule="nfd", p=0.25, patterns=patterns, verbose=False)],
    ).fit(model)
    assert result.train_loss == pytest.approx(sum(losses[-2:]) / 2, rel=1e-6)
    assert result.train_loss < losses[0]
    assert math.isfinite(result.val_loss)
    assert result.diverged_at is None


def test_a_module_without_validation_is_swept_by_its_training_loss(project: Path) -> None:
    text = MODULE.replace("    val_dataloader = train_dataloader\n", "")
    (project / "sweep_project.py").write_text(text.replace("def validation_step", "def unused"))
    engine = TrainerEngine(["fit.yaml"], base_depth=2, steps=4, final_steps=2, **KEYS)
    (result,) = engine(chunk("sp", 2, -4), lambda _: None)
    assert math.isfinite(result.train_loss)
    assert math.isnan(result.val_loss)


def test_a_diverging_run_is_stopped_and_told(project: Path) -> None:
    engine = TrainerEngine(["fit.yaml"], base_depth=2, steps=50, final_steps=2, **KEYS)
    (result,) = engine(chunk("sp", 2, 30), lambda _: None)
    assert result.diverged_at is not None
    assert 0 < result.diverged_at < 49
    assert math.isinf(result.train_loss)


def test_the_command_sweeps_it_and_resumes(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lr-transfer", "--fit_config", "fit.yaml", "--depths", "2,4", "--base_depth", "2"]
    words += ["--rules", "sp,nfd", "--lrs", "2^-6..2^-5", "--seeds", "1", "--extend", "0"]
    words += ["--steps", "4", "--final_steps", "2", "--out", "sweep"]
    words += [f"--{key}={value}" for key, value in KEYS.items()]
    assert main(words) == 0
    assert "Under nfd the best rate moved by" in capsys.readouterr().out
    with Path("sweep/artifacts/lr_transfer_runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    at_base = {(r["log2_lr"], r["train_loss"]) for r in rows if r["depth"] == "2"}
    assert len(rows) == 8
    assert len(at_base) == 2  # at the base depth both rules train the very same runs
    before = {f: f.stat().st_mtime_ns for f in Path("sweep/chunks").iterdir()}
    assert main(words) == 0
    assert {f: f.stat().st_mtime_ns for f in Path("sweep/chunks").iterdir()} == before
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["none.yaml"]}, "there is no file none.yaml"),
        ({"lr_key": None}, "Where is the learning rate set"),
        ({"lr_key": "model.init_args.rat"}, "Did you mean 'rate'"),
        ({"lr_key": "model.init.rate"}, "no section 'init'"),
        ({"depth_key": None}, r"has no argument 'depth'.* --depth_key=model\.init_args"),
        ({"final_steps": 7}, "final_steps=7 of steps=6"),
    ],
)
def test_wrong_keys_are_explained(project: Path, options: dict[str, object], message: str) -> None:
    arguments = {
        "files": ["fit.yaml"],
        "base_depth": 2,
        "steps": 6,
        "final_steps": 2,
        **KEYS,
        **options,
    }
    with pytest.raises(SuiteError, match=message):
        TrainerEngine(**arguments)


def test_a_config_that_stops_early_is_explained(project: Path) -> None:
    Path("fit.yaml").write_text(CONFIG + "  limit_train_batches: 1\n  max_time: 00:00:00:00\n")
    engine = TrainerEngine(["fit.yaml"], base_depth=2, steps=6, final_steps=2, **KEYS)
    with pytest.raises(SuiteError, match="ended after . of 6 steps"):
        engine(chunk("sp", 2, -5), lambda _: None)
