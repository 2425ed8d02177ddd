"""A run that was killed and resumed ends at the weights of a run that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer, same, weights
from lightning.pytorch import Callback
from torch.optim import SGD, AdamW
from torch.optim import lr_scheduler as schedulers

from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
from lightning_suite.checkpoints import missing_callback_advice
from lightning_suite.errors import SuiteError

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda groups: SGD(groups, lr=0.05, momentum=0.9),
    "adamw": lambda groups: AdamW(groups, lr=0.01),
}
SCHEDULERS: dict[str, Callable[[Any], Any] | None] = {
    "none": None,
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=20),
    "step": lambda o: schedulers.StepLR(o, 2, 0.3),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 20),
    "cosine with floor": lambda o: schedulers.CosineAnnealingLR(o, 20, eta_min=0.004),
    "warm-up, then cosine": lambda o: schedulers.SequentialLR(
        o,
        [schedulers.LinearLR(o, 0.1, total_iters=4), schedulers.CosineAnnealingLR(o, 20)],
        milestones=[4],
    ),
    # Every epoch is a bad one: the rate falls at the end of the second. (Lightning steps this
    # scheduler after on_train_batch_end: with interval "step" it would resume one update short,
    # with and without our callback.)
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=0.9),
    "plateau without eps": lambda o: schedulers.ReduceLROnPlateau(
        o, factor=0.5, patience=0, threshold=0.9, eps=0
    ),
}
EPOCHS = 3
KILLED_AT = 10  # in the middle of the third epoch of four steps


class Kill(Callback):
    """Saves in the middle of an epoch and dies one step later."""

    def __init__(self, path: Path, die: Callable[[], None]) -> None:
        self.path, self.die = path, die

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == KILLED_AT:
            trainer.save_checkpoint(self.path)
        elif trainer.global_step == KILLED_AT + 1:
            self.die()


def raise_error() -> None:
    raise RuntimeError("killed")


def callback(**options: Any) -> DepthMuPLRCallback:
    return DepthMuPLRCallback(
        **{
            "base_depth": 1,
            "base_width": 4,
            "rule": "nfd",
            "patterns": PATTERNS,
            "verbose": False,
            **options,
        }
    )


def interrupted(folder: Path, module: ForeignModule, *callbacks: Callback) -> Path:
    """Train until the kill; return the checkpoint."""
    path = folder / "last.ckpt"
    trainer = quiet_trainer([*callbacks, Kill(path, raise_error)], max_epochs=EPOCHS)
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit(module, Batches())
    return path


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_resumed_equals_uninterrupted(tmp_path: Path, schedule: str, optimizer: str) -> None:
    def module() -> ForeignModule:
        interval = "epoch" if "plateau" in schedule else "step"
        return ForeignModule(OPTIMIZERS[optimizer], SCHEDULERS[schedule], interval=interval)

    whole = module()
    quiet_trainer([callback()], max_epochs=EPOCHS).fit(whole, Batches())

    checkpoint = interrupted(tmp_path, module(), callback())
    resumed = module()
    with torch.no_grad():  # nothing but the checkpoint may decide
        for parameter in resumed.parameters():
            parameter.fill_(7.0)
    trainer = quiet_trainer([callback()], max_epochs=EPOCHS)
    trainer.fit(resumed, Batches(), ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == 12
    assert same(weights(resumed), weights(whole))


SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from foreign import Batches, ForeignModule, quiet_trainer
from test_resume import OPTIMIZERS, SCHEDULERS, Kill, callback

kill = Kill(Path(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
module = ForeignModule(OPTIMIZERS["adamw"], SCHEDULERS["one cycle"])
quiet_trainer([callback(), kill], max_epochs=3).fit(module, Batches())
"""


def test_resume_after_kill_9(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{SCRIPT}"
    checkpoint = tmp_path / "last.ckpt"
    run = subprocess.run(
        [sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr

    def module() -> ForeignModule:
        return ForeignModule(OPTIMIZERS["adamw"], SCHEDULERS["one cycle"])

    whole, resumed = module(), module()
    quiet_trainer([callback()], max_epochs=EPOCHS).fit(whole, Batches())
    trainer = quiet_trainer([callback()], max_epochs=EPOCHS)
    trainer.fit(resumed, Batches(), ckpt_path=checkpoint)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_a_foreign_module_does_not_resume_without_the_callback(tmp_path: Path, apply: Any) -> None:
    checkpoint = interrupted(tmp_path, ForeignModule(), callback(apply=apply))
    with (
        pytest.warns(UserWarning, match=r"add the following callbacks: \['DepthMuPLRCallback'\]"),
        pytest.raises(ValueError, match="different number of parameter groups"),
    ):
        quiet_trainer(max_epochs=EPOCHS).fit(ForeignModule(), Batches(), ckpt_path=checkpoint)


def test_checkpoint_written_after_an_evaluation_resumes(tmp_path: Path) -> None:
    trainer = quiet_trainer([callback(apply="step")])
    module = ForeignModule()
    trainer.fit(module, Batches())
    trainer.test(module, Batches(), verbose=False)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = quiet_trainer([callback(apply="step")], max_epochs=EPOCHS)
    again.fit(ForeignModule(), Batches(), ckpt_path=tmp_path / "last.ckpt")
    assert again.global_step == 12


def test_checkpoint_written_after_fit_resumes(tmp_path: Path) -> None:
    whole = ForeignModule(OPTIMIZERS["adamw"], SCHEDULERS["one cycle"])
    quiet_trainer([callback()], max_epochs=3).fit(whole, Batches())

    first = quiet_trainer([callback()])
    first.fit(ForeignModule(OPTIMIZERS["adamw"], SCHEDULERS["one cycle"]), Batches())
    first.save_checkpoint(tmp_path / "after_fit.ckpt")
    resumed = ForeignModule(OPTIMIZERS["adamw"], SCHEDULERS["one cycle"])
    quiet_trainer([callback()], max_epochs=3).fit(
        resumed, Batches(), ckpt_path=tmp_path / "after_fit.ckpt"
    )
    assert same(weights(resumed), weights(whole))


def test_resuming_with_other_arguments_names_the_differences(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, ForeignModule(), callback())
    for options, message in (
        ({"base_depth": 2}, r"base_depth: 1 in the checkpoint, 2 now"),
        ({"rule": "completep"}, r"rule: 'nfd' in the checkpoint, 'completep' now; p: 0.5"),
        ({"base_width": None}, r"base_width: 4 in the checkpoint, None now"),
        ({"apply": "step"}, r"apply: \['groups'\] in the checkpoint, \['step'\] now"),
        ({"residual_scale": "none"}, r"residual_multiplier: 0.5 in the checkpoint, 1.0 now"),
    ):
        with pytest.raises(SuiteError, match=message):
            quiet_trainer([callback(**options)]).fit(
                ForeignModule(), Batches(), ckpt_path=checkpoint
            )


def test_resuming_with_a_callback_that_was_not_there_before(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, ForeignModule())
    with pytest.raises(SuiteError, match=r"trained without DepthMuPLRCallback.*ckpt_path"):
        quiet_trainer([callback()]).fit(ForeignModule(), Batches(), ckpt_path=checkpoint)


def test_weights_that_come_without_a_training_begin_one(tmp_path: Path) -> None:
    """As a trainer saves them whose processes were spawned, after their end."""
    trainer = quiet_trainer(strategy="ddp_spawn", devices=2)
    trainer.strategy.connect(module := ForeignModule())
    trainer.save_checkpoint(path := tmp_path / "weights.ckpt")
    assert torch.load(path, weights_only=True)["optimizer_states"] == []

    resumed, plain = ForeignModule(seed=1), ForeignModule()
    quiet_trainer([callback()]).fit(resumed, Batches(), ckpt_path=path, weights_only=True)
    quiet_trainer([callback()]).fit(plain, Batches())
    assert same(weights(resumed), weights(plain))
    assert not same(weights(resumed), weights(module))


def test_evaluating_a_checkpoint_without_the_callbacks_state_is_allowed(tmp_path: Path) -> None:
    checkpoint = interrupted(tmp_path, ForeignModule())
    module = ForeignModule()
    quiet_trainer([callback()]).test(module, Batches(), ckpt_path=checkpoint, verbose=False)


def test_advice_for_resuming_without_the_callback(tmp_path: Path) -> None:
    path = interrupted(tmp_path, ForeignModule(), callback())
    checkpoint = torch.load(path, weights_only=True)
    advice = missing_callback_advice(checkpoint, [])
    assert advice is not None
    assert "DepthMuPLRCallback(base_depth=1, base_width=4, rule='nfd', p=0.5)" in advice
    assert "callbacks" in advice
    assert missing_callback_advice(checkpoint, [callback()]) is None
    assert missing_callback_advice({"state_dict": {}}, []) is None


@pytest.mark.parametrize("apply", ["groups", "step"])
def test_our_modules_say_so_when_they_are_resumed_without_the_callback(
    tmp_path: Path, apply: Any
) -> None:
    from torch.utils.data import DataLoader

    from lightning_suite.depth_mup.module import ResidualNetModule

    def module() -> ResidualNetModule:
        return ResidualNetModule(width=8, depth=4, rule="nfd", base_depth=2)

    data: Any = DataLoader([(torch.randn(4, 1, 8, 8), torch.arange(4))], batch_size=None)
    first = quiet_trainer([DepthMuPLRCallback(2, apply=apply)])
    first.fit(module(), data, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(SuiteError, match=r"DepthMuPLRCallback\(base_depth=2.*Add the callback"):
        quiet_trainer(max_epochs=3).fit(module(), data, data, ckpt_path=tmp_path / "last.ckpt")
    # the net has its multipliers built in: evaluation needs no callback
    loaded = ResidualNetModule.load_from_checkpoint(
        tmp_path / "last.ckpt", width=8, depth=4, rule="nfd", base_depth=2
    )
    assert same(weights(loaded), weights(first.lightning_module))


def test_our_modules_warn_when_they_are_loaded_without_the_hooks(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    from lightning_suite.depth_mup.module import ResidualNetModule

    shape: dict[str, Any] = {"width": 8, "depth": 4, "base_depth": 2}
    data: Any = DataLoader([(torch.randn(4, 1, 8, 8), torch.arange(4))], batch_size=None)
    for rule in ("sp", "nfd"):  # nfd is built in, sp gets the factors by hooks
        trainer = quiet_trainer([DepthMuPLRCallback(2)])
        trainer.fit(ResidualNetModule(rule=rule, **shape), data, data)  # type: ignore[arg-type]
        trainer.save_checkpoint(tmp_path / f"{rule}.ckpt")
    message = r"outputs by 0\.7071.*fold_residual_scale\(model, assign_roles\(model\), c=0\.7"
    with pytest.warns(UserWarning, match=message):
        ResidualNetModule.load_from_checkpoint(tmp_path / "sp.ckpt", rule="sp", **shape)
    ResidualNetModule.load_from_checkpoint(tmp_path / "nfd.ckpt", rule="nfd", **shape)


def test_evaluating_without_the_callback_is_refused_only_where_hooks_are_missing(
    tmp_path: Path,
) -> None:
    path = interrupted(tmp_path, ForeignModule(), callback())
    checkpoint = torch.load(path, weights_only=True)
    advice = missing_callback_advice(checkpoint, [], fitting=False)
    assert advice is not None
    assert "would compute another function" in advice
    checkpoint["callbacks"]["DepthMuPLRCallback"].update(
        residual_multiplier=1.0, readout_multiplier=1.0
    )
    assert missing_callback_advice(checkpoint, [], fitting=False) is None
