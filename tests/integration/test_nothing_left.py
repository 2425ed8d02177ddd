"""Whatever ends a stage, and wherever: of a callback nothing is left, on the model or elsewhere.

Each run is compared with the same one without our callbacks: what Lightning leaves is no matter.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer
from glass_lm import glass_model, glass_tokenizer
from left_behind import changes, in_process, on_module, on_optimizer, random_numbers
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from tiny_lmcd import tiny_class, tiny_diagnosis
from tiny_scoring import MODEL, rows, write_rows
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_suite import (
    CausalLMModule,
    DepthMuPLRCallback,
    ExpertGateCallback,
    FeatureDynamicsMonitor,
    GradientFeatureCallback,
    InstructionDataModule,
    ResidualNetModule,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:DepthMuPLRCallback multiplied"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but"),
    pytest.mark.filterwarnings("ignore:The '.*' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),  # of a search
]
Ours = Callable[[Path], list[Callback]]


def rates(apply: Any, _: Path) -> list[Callback]:
    return [DepthMuPLRCallback(1, 4, "nfd", patterns=PATTERNS, apply=apply, verbose=False)]


def watching(folder: Path) -> list[Callback]:
    return [
        FeatureDynamicsMonitor(1, patterns=PATTERNS),
        GradientFeatureCallback(folder=str(folder / "rows"), biases=True),
    ]


def everything(folder: Path) -> list[Callback]:
    return [*rates("groups", folder), *watching(folder)]


class Fails:
    """Raises in one place, from the second step on where that has steps."""

    def __init__(self, where: str = "", error: type[BaseException] = RuntimeError) -> None:
        self.where, self.error = where, error

    def at(self, where: str, trainer: Any = None) -> None:
        if where == self.where and (trainer is None or trainer.global_step):
            raise self.error("on purpose")


class Module(ForeignModule):
    def __init__(self, fails: Fails) -> None:
        super().__init__(depth=2)
        self.batch_size, self.lr, self.fails = 8, 0.01, fails

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.fails.at("training_step", self.trainer)
        return loss

    def backward(self, loss: Tensor) -> None:  # type: ignore[override]
        if self.fails.where == "in backward":
            self.backbone.head.weight.register_hook(
                lambda _: self.fails.at("in backward", self.trainer)
            )
        super().backward(loss)
        self.fails.at("after backward", self.trainer)

    def optimizer_step(self, *args: Any) -> None:
        super().optimizer_step(*args)
        self.fails.at("optimizer_step", self.trainer)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.fails.at("validation_step", self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.fails.at("module.on_save_checkpoint")

    def train_dataloader(self) -> DataLoader[Any]:
        x, y = (torch.cat(parts) for parts in zip(*Batches(4, 8).batches, strict=True))
        return DataLoader(TensorDataset(x, y), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return Batches(1)


class Chat(LightningModule):
    """A language model somewhere inside, and an adapter on its output."""

    def __init__(self, fails: Fails) -> None:
        super().__init__()
        self.lm = glass_model().requires_grad_(False).train()
        self.bias = torch.nn.Parameter(torch.zeros(1024))
        self.tokenizer, self.fails = glass_tokenizer(), fails

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.lm(input_ids=batch).logits[:, -1] + self.bias
        self.fails.at("training_step", self.trainer)
        return logits.logsumexp(-1).mean()

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        out: Tensor = self.lm(input_ids=batch).logits
        return out

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.predict_step(batch, batch_idx)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.bias], lr=0.1)


class Other(Callback):
    """A user's callback that fails in one hook, and one that saves and may stop."""

    def __init__(self, fails: Fails, folder: Path, *, saves: bool = True) -> None:
        self.fails, self.folder, self.saves = fails, folder, saves
        if hasattr(Callback, fails.where) and not fails.where.startswith("module."):
            early = fails.where in ("setup", "on_fit_start", "on_train_start")
            fail = partial(self.fail, early or "sanity" in fails.where)
            setattr(self, fails.where, fail)

    def fail(self, early: bool, trainer: Any, *args: Any, **kwargs: Any) -> None:
        fitting = trainer.state.fn == "fit"
        self.fails.at(self.fails.where, None if early or not fitting else trainer)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.saves and trainer.global_step == 2:
            trainer.save_checkpoint(self.folder / "mid.ckpt")
            trainer.should_stop = self.fails.where == "should_stop"


Run = Callable[[LightningModule, list[Callback], Path], Any]


def left(run: Run, make: Any, ours: Ours, folder: Path) -> dict[str, Any]:
    """Run with callbacks of ours; return what has changed, or is there, after it."""
    torch.manual_seed(0)
    module = make()
    before = on_module(module), in_process()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer = run(module, ours(folder), folder)
        error = ""
    except (RuntimeError, SystemExit) as err:
        trainer, error = module.trainer, repr(err)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it after an interruption
    return {
        "error": error,
        "module": changes(before[0], on_module(module)),
        "process": changes(before[1], in_process()),
        "optimizers": [on_optimizer(optimizer) for optimizer in trainer.optimizers],
        "random numbers": random_numbers(),
    }


def assert_nothing_is_left(run: Run, make: Any, folder: Path, *ours: Ours, fails: bool) -> None:
    plain = left(run, make, lambda _: [], folder / "plain")
    assert bool(plain["error"]) is fails
    for number, callbacks in enumerate(ours):
        assert left(run, make, callbacks, folder / str(number)) == plain


# --- training -------------------------------------------------------------------------------------

OF_MODULE = (
    "training_step",
    "in backward",
    "after backward",
    "optimizer_step",
    "validation_step",
    "module.on_save_checkpoint",
)
OF_CALLBACK = (
    "setup",
    "on_fit_start",
    "on_sanity_check_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_train_epoch_end",
    "on_save_checkpoint",
    "on_train_end",
    "on_fit_end",
    "teardown",
)
OURS: tuple[Ours, ...] = (everything, partial(rates, "step"))


def fit(
    fails: Fails, first: bool, module: LightningModule, ours: list[Callback], folder: Path
) -> Any:
    other = [Other(fails, folder)]
    callbacks = [*other, *ours] if first else [*ours, *other]
    trainer = quiet_trainer(callbacks, default_root_dir=folder, num_sanity_val_steps=1)
    trainer.fit(module, Batches(3), Batches(1))
    return trainer


@pytest.mark.parametrize("where", [*OF_MODULE, *OF_CALLBACK, "should_stop", "nowhere"])
def test_nothing_is_left_after_an_error(tmp_path: Path, where: str) -> None:
    fails = where not in ("should_stop", "nowhere")
    for first in (False, True) if where in OF_CALLBACK else (False,):
        run = partial(fit, Fails(where), first)
        make = partial(Module, Fails(where))
        assert_nothing_is_left(run, make, tmp_path / str(first), *OURS, fails=fails)


@pytest.mark.parametrize("where", ["training_step", "in backward", "on_train_batch_end", "setup"])
def test_nothing_is_left_after_an_interruption(tmp_path: Path, where: str) -> None:
    fails = Fails(where, KeyboardInterrupt)
    run = partial(fit, fails, True)
    assert_nothing_is_left(run, partial(Module, fails), tmp_path, *OURS, fails=True)


# --- searches before a training -------------------------------------------------------------------


def search(kind: str, module: LightningModule, ours: list[Callback], folder: Path) -> Any:
    finders: dict[str, Any] = {
        "rate": partial(LearningRateFinder, num_training_steps=5),
        "size": partial(BatchSizeFinder, max_trials=2, steps_per_trial=2),
    }
    what, _, how = kind.partition(", ")
    other = [] if how else [finders[what]()]
    trainer = quiet_trainer([*ours, *other], default_root_dir=folder, max_epochs=1)
    if not how:
        trainer.fit(module)
    elif what == "rate":
        Tuner(trainer).lr_find(module, num_training=5)
    else:
        Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=2)
    return trainer


@pytest.mark.parametrize("fails", [False, True], ids=["sound", "fails"])
@pytest.mark.parametrize("kind", ["rate", "size", "rate, tuner", "size, tuner"])
def test_nothing_is_left_after_a_search(tmp_path: Path, kind: str, fails: bool) -> None:
    """`DepthMuPLRCallback` refuses a search for the rate."""
    make = partial(Module, Fails("training_step" if fails else ""))
    ours = everything if "size" in kind else watching
    assert_nothing_is_left(partial(search, kind), make, tmp_path, ours, fails=fails)


# --- other stages, other callbacks ----------------------------------------------------------------


def stage(
    name: str,
    fails: Fails,
    first: bool,
    module: LightningModule,
    ours: list[Callback],
    folder: Path,
) -> Any:
    other = Other(fails, folder, saves=False)
    callbacks = [other, *ours] if first else [*ours, other]
    trainer = quiet_trainer(callbacks, default_root_dir=folder, max_epochs=1)
    tokens: Any = DataLoader(torch.ones(4, 4).long(), batch_size=2)  # type: ignore[arg-type]
    data = Batches(2) if isinstance(module, ForeignModule) else tokens
    quiet = {"verbose": False} if name in ("validate", "test") else {}
    getattr(trainer, name)(module, data, **quiet)
    return trainer


def gate(_: Path) -> list[Callback]:
    return [ExpertGateCallback(layer=0, prompt_template="{prompt}{response}")]


def stages() -> Iterator[Any]:
    for kind, ours in (("Module", everything), ("Chat", gate)):
        for name in ("fit", "validate", "test", "predict"):
            hook = name.replace("validate", "validation").replace("fit", "train")
            for where in (
                "setup",
                f"on_{hook}_start",
                f"on_{hook}_batch_end",
                "teardown",
                "nowhere",
            ):
                yield pytest.param(kind, ours, name, where, id=f"{kind}-{name}-{where}")


@pytest.mark.parametrize(("kind", "ours", "name", "where"), [*stages()])
def test_nothing_is_left_after_any_stage(
    tmp_path: Path, kind: str, ours: Ours, name: str, where: str
) -> None:
    make = partial({"Module": Module, "Chat": Chat}[kind], Fails())
    for first in (False, True):
        run = partial(stage, name, Fails(where), first)
        assert_nothing_is_left(run, make, tmp_path / str(first), ours, fails=where != "nowhere")


# --- a full disk ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.* could not write its")
@pytest.mark.parametrize("order", [1, -1])
def test_nothing_is_left_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    """One that cannot write its last rows keeps none of the others from leaving."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_suite.resofilter.store.write_table", full)
    monkeypatch.setattr("lightning_suite.run_folder.RunFolder.add_table", full)
    make = partial(Module, Fails("training_step"))
    assert_nothing_is_left(
        partial(fit, Fails(), False), make, tmp_path, lambda f: everything(f)[::order], fails=True
    )
    with pytest.raises(OSError, match="No space left"):  # at the end, it is an error of its own
        fit(Fails(), False, module := Module(Fails()), everything(tmp_path)[::order], tmp_path)
    assert not changes(on_module(Module(Fails())), on_module(module))


# --- metrics --------------------------------------------------------------------------------------


def images(_: Path) -> Any:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 1, 8, 8, generator=generator), torch.arange(12) % 10)
    return ResidualNetModule(depth=2, width=8, base_depth=4), {"dataloaders": DataLoader(data, 4)}


def instructions(folder: Path) -> Any:
    source = write_rows(folder / "data.jsonl", rows(8))
    data = InstructionDataModule(str(source), tokenizer="bytes", max_length=90, batch_size=2)
    data.setup("validate")
    return CausalLMModule(config=MODEL), {"dataloaders": data.train_dataloader()}


def diagnosis(folder: Path) -> Any:
    return tiny_diagnosis(), {"datamodule": tiny_class(folder / "class", exercises_per_batch=1)}


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("make", [images, instructions, diagnosis])
def test_an_evaluation_that_broke_off_is_no_part_of_the_next(
    tmp_path: Path, make: Callable[[Path], Any], stage: str
) -> None:
    def evaluated(module: Any, data: dict[str, Any], *callbacks: Callback) -> Any:
        trainer = quiet_trainer(callbacks, default_root_dir=tmp_path)
        return getattr(trainer, stage)(module, **data, verbose=False)

    hook = "on_validation_batch_end" if stage == "validate" else "on_test_batch_end"
    module, data = make(tmp_path)
    expected = evaluated(module, data)
    other = Other(Fails(hook), tmp_path, saves=False)
    with pytest.raises(RuntimeError, match="on purpose"):
        evaluated(module, data, other)
    assert evaluated(module, data) == expected
