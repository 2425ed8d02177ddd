"""A bank inside modules that know nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Batches, quiet_trainer
from glass_lm import glass_model, glass_tokenizer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tiny_editing import TEMPLATE, edit_rows, module_options, write_edits, write_model
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_suite import EditDataModule, ExpertGateCallback, SCENModule
from lightning_suite.datamodules.edit_sources import read_edits
from lightning_suite.errors import SuiteError
from lightning_suite.run_folder import RunFolder
from lightning_suite.scen.bank_file import load_bank, read_bank, save_bank
from lightning_suite.scen.editing import make_gate
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.experts import ExpertSettings
from lightning_suite.scen.prompts import PromptFormat

PROMPTS = ["Alice likes", "the dog likes", "Once upon a time", "Why did it rain?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> list[Edit]:
    return read_edits(str(write_edits(tmp_path_factory.mktemp("edits") / "e.jsonl", edit_rows(2))))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, model: Path) -> str:
    """A bank file with two edits: Alice likes cats, the dog likes a boat."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bank")
    source = write_edits(folder / "e.jsonl", edit_rows(2))
    module = SCENModule(**module_options(model, bank=str(folder / "facts")))
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, default_root_dir=folder)
    trainer.fit(module, EditDataModule(str(source)))
    return str(folder / "facts")


class Chat(LightningModule):
    """A user's module: a language model somewhere inside, and an adapter on its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleDict({"lm": glass_model().requires_grad_(False).train()})
        self.bias = torch.nn.Parameter(torch.zeros(1024))
        self.tokenizer = glass_tokenizer()
        self.format = PromptFormat(self.tokenizer, TEMPLATE, [3])
        self.seen: list[Tensor] = []

    def logits(self, batch: list[str]) -> Tensor:
        tokens = self.format.batch([self.format.encode(text) for text in batch])
        out: Tensor = self.inner["lm"](**tokens).logits[:, -1]
        return out

    def training_step(self, batch: list[str], batch_idx: int) -> Tensor:
        return (self.logits(batch) + self.bias).logsumexp(-1).mean()

    def validation_step(self, batch: list[str], batch_idx: int) -> None:
        self.logits(batch)

    def test_step(self, batch: list[str], batch_idx: int) -> None:
        self.logits(batch)

    def predict_step(self, batch: list[str], batch_idx: int) -> Tensor:
        return self.logits(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.bias], lr=0.1)


def loader() -> DataLoader[Any]:
    return DataLoader(PROMPTS, batch_size=4, collate_fn=list)  # type: ignore[arg-type]


def hooks(module: LightningModule) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def predicted(module: LightningModule, *callbacks: Any) -> Tensor:
    (found,) = quiet_trainer(list(callbacks)).predict(module, loader())
    assert isinstance(found, Tensor)
    return found


# --- what it does ---------------------------------------------------------------------------------


def test_edited_prompts_change_and_all_others_are_bitwise_the_same(bank: str) -> None:
    module = Chat()
    keys = list(module.state_dict())
    plain = predicted(module)
    edited = predicted(module, ExpertGateCallback(bank))
    same = [torch.equal(one, other) for one, other in zip(plain, edited, strict=True)]
    assert same == [False, False, True, True]
    words = [module.tokenizer.decode(int(row.argmax())) for row in edited[:2]]
    assert [word.strip() for word in words] == ["c", "a"], "cat, a boat"
    assert list(module.state_dict()) == keys


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_it_acts_in_every_stage_and_is_gone_after_it(bank: str, stage: str) -> None:
    module, acting = Chat(), []

    class Watch(ExpertGateCallback):
        def teardown(self, *args: Any, **kwargs: Any) -> None:
            acting.append(hooks(module))
            super().teardown(*args, **kwargs)

    trainer = quiet_trainer([Watch(bank)], max_epochs=1)
    getattr(trainer, stage)(module, *[loader()] * (2 if stage == "fit" else 1))
    assert acting[0] > 0
    assert hooks(module) == 0
    if stage in ("validate", "test"):
        assert trainer.callback_metrics["scen/fired_rate"] == 0.5
        assert trainer.callback_metrics["scen/edits"] == 2


def test_it_is_gone_after_an_exception(bank: str) -> None:
    class Breaks(Chat):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("in the middle")

    module = Breaks()
    with pytest.raises(RuntimeError, match="in the middle"):
        quiet_trainer([ExpertGateCallback(bank)], max_epochs=1).fit(module, loader(), loader())
    assert hooks(module) == 0


def test_a_second_fit_works_with_the_same_callback(bank: str) -> None:
    module, callback = Chat(), ExpertGateCallback(bank)
    for _ in range(2):
        trainer = quiet_trainer([callback], max_epochs=1)
        trainer.fit(module, loader(), loader())
        assert trainer.callback_metrics["scen/fired_rate"] == 0.5


def test_modules_of_ours_take_it_too(bank: str, model: Path) -> None:
    from lightning_suite import CausalLMModule

    module = CausalLMModule(pretrained=str(model), lora={"r": 2, "target_modules": ["q_proj"]})
    prompts = PromptFormat(glass_tokenizer(), TEMPLATE, [3])
    sequences = [prompts.encode_answer(text, "cat")[0] for text in PROMPTS]
    batch = prompts.batch(sequences, side="right")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    trainer = quiet_trainer([ExpertGateCallback(bank)], max_epochs=1)
    trainer.test(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert trainer.callback_metrics["scen/edits"] == 2


# --- banks, checkpoints ---------------------------------------------------------------------------


def test_commit_edit_and_evaluate_while_a_stage_runs(
    bank: str, edits: list[Edit], tmp_path: Path
) -> None:
    done: dict[str, Any] = {}

    class Edits(Chat):
        def on_test_start(self) -> None:
            callback.edit(edits[:1])
            trained = other.bank
            assert trained is not None
            callback.commit(edits[1:], trained.experts([1]))
            done["rows"] = callback.evaluate(edits, RunFolder(tmp_path), max_new_tokens=6)

    other = ExpertGateCallback(bank)
    quiet_trainer([other]).predict(Chat(), loader())
    callback = ExpertGateCallback(layer=1, gate="closed", rank=2, prompt_template=TEMPLATE)
    trainer = quiet_trainer([callback])
    trainer.test(Edits(), loader())
    final = [row for row in done["rows"] if row.edits == 2 and row.kind == "edit"]
    assert [row.fired for row in final] == ["e0", "e1"]
    assert final[1].after == "a boat"
    assert (tmp_path / "artifacts/scen_prompts.csv").exists()
    assert trainer.callback_metrics["scen/fired_rate"] >= 0.5, "it acts again after evaluate"
    with pytest.raises(SuiteError, match="no stage of a Trainer is running"):
        callback.commit(edits, {})


@pytest.mark.parametrize("gate", ["closed", "bce", "scen"])
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_edits_made_in_a_stage_without_gradients_can_be_changed_after_it(
    edits: list[Edit], stage: str, gate: str
) -> None:
    callback = ExpertGateCallback(layer=1, gate=gate, rank=2, prompt_template=TEMPLATE)

    class Edits(Chat):
        def on_any_start(self) -> None:
            assert torch.is_inference_mode_enabled()
            callback.edit(edits[:1], settings=ExpertSettings(rank=2, steps=1))
            assert callback.bank is not None
            callback.commit(edits[1:], {k: v + 1 for k, v in callback.bank.experts([0]).items()})

        on_validation_start = on_test_start = on_predict_start = on_any_start

    getattr(quiet_trainer([callback]), stage)(Edits(), loader())
    bank = callback.bank
    assert bank is not None
    bank.remove(["e0"])
    bank.rollback("e0")
    bank.insert([edits[1]], bank.experts([0]))
    assert [edit.id for edit in bank.edits] == ["e0", "e1"]


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-true"])
def test_edits_are_made_and_act_in_every_precision(edits: list[Edit], precision: Any) -> None:
    callback = ExpertGateCallback(layer=1, gate="closed", rank=2, prompt_template=TEMPLATE)

    class Edits(Chat):
        def on_test_start(self) -> None:
            callback.edit(edits, settings=ExpertSettings(rank=2, steps=5))

    trainer = quiet_trainer([callback], precision=precision)
    trainer.test(Edits(), loader(), verbose=False)
    assert trainer.callback_metrics["scen/fired_rate"] == 0.5
    assert trainer.callback_metrics["scen/edits"] == 2


def test_checkpoints_hold_the_bank_and_write_it_beside_them(bank: str, tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "saved", save_last=True)
    first = ExpertGateCallback(bank)
    trainer = quiet_trainer(
        [first, saves], max_epochs=1, enable_checkpointing=True, logger=CSVLogger(tmp_path)
    )
    trainer.fit(Chat(), loader(), loader())
    stored = read_bank(Path(trainer.log_dir, "artifacts/bank"))
    assert [record.edit.id for record in stored.records] == ["e0", "e1"]

    # The bank comes out of the checkpoint: no file is given any more
    again = ExpertGateCallback(layer=1, gate="closed", rank=2, prompt_template=TEMPLATE)
    module = Chat()
    saver = ModelCheckpoint(tmp_path / "saved", save_last=True)
    testing = quiet_trainer([again, saver], enable_checkpointing=True)
    testing.test(module, loader(), ckpt_path=str(tmp_path / "saved/last.ckpt"), weights_only=True)
    assert testing.callback_metrics["scen/fired_rate"] == 0.5


@pytest.fixture
def checkpoint(bank: str, tmp_path: Path) -> str:
    callbacks = [ExpertGateCallback(bank)]
    trainer = quiet_trainer(callbacks, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Chat(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return str(tmp_path / "saved.ckpt")


def edits_in_test(callback: ExpertGateCallback, checkpoint: str) -> Any:
    trainer = quiet_trainer([callback])
    trainer.test(Chat(), loader(), ckpt_path=checkpoint, weights_only=True)
    return trainer.callback_metrics["scen/edits"]


def test_a_checkpoint_s_bank_that_takes_the_place_of_another_says_so(
    bank: str, checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert edits_in_test(ExpertGateCallback(bank), checkpoint) == 2
    assert "counts" not in caplog.text
    shrunk = load_bank(bank, lambda stored: make_gate(stored.gate))
    shrunk.remove(["e1"])
    save_bank(shrunk, tmp_path / "shrunk")
    assert edits_in_test(ExpertGateCallback(str(tmp_path / "shrunk")), checkpoint) == 2
    assert "checkpoint's bank counts (2 edits), not that of the file (1)" in caplog.text


def test_a_checkpoint_without_its_bank_file_says_what_is_missing(
    checkpoint: str, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(SuiteError, match=r"no bank '.*gone' here.*layer, gate, expert and rank as"):
        edits_in_test(ExpertGateCallback(gone, prompt_template=TEMPLATE), checkpoint)
    same = ExpertGateCallback(gone, layer=1, gate="closed", rank=2, prompt_template=TEMPLATE)
    assert edits_in_test(same, checkpoint) == 2


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_bank_that_is_not_there_is_no_model_without_edits(stage: str, tmp_path: Path) -> None:
    trainer = quiet_trainer(
        [ExpertGateCallback(str(tmp_path / "mistyped"), prompt_template=TEMPLATE)]
    )
    with pytest.raises(SuiteError, match="no bank '.*mistyped', so nothing would be edited"):
        getattr(trainer, stage)(Chat(), loader())


def test_a_fit_may_begin_a_bank_that_is_not_there(tmp_path: Path) -> None:
    begun = ExpertGateCallback(str(tmp_path / "new"), prompt_template=TEMPLATE)
    quiet_trainer([begun], max_epochs=1).fit(Chat(), loader(), loader())


class NoLM(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleDict({"lm": torch.nn.Linear(2, 2)})


class Trains(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.inner.requires_grad_(True)


class Wordless(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = None  # type: ignore[assignment]


class Compiled(Chat):
    def __init__(self) -> None:
        super().__init__()
        self.inner["lm"].model.layers[1].mlp.compile(backend="eager")


def refusals() -> Iterator[tuple[type[Chat], dict[str, Any], str]]:
    yield NoLM, {}, "holds no Hugging Face model"
    yield Trains, {}, "model.layers.1.mlp.down_proj is trained in this run"
    yield Wordless, {}, "Set tokenizer"
    yield Compiled, {}, "Run without torch.compile"
    yield Chat, {"bank": None, "layer": "layers.1.down_proj"}, "Did you mean"
    yield Chat, {"bank": None, "gate": "closd"}, "Did you mean 'closed'"


@pytest.mark.parametrize(("cls", "options", "message"), list(refusals()))
def test_refusals_name_what_is_wrong(
    bank: str, cls: type[Chat], options: dict[str, Any], message: str
) -> None:
    callback = ExpertGateCallback(**{"bank": bank, **options})
    with pytest.raises(SuiteError, match=message):
        quiet_trainer([callback], max_epochs=1).fit(cls(), loader(), loader())


def test_a_trained_layer_is_allowed_when_asked(bank: str) -> None:
    for allowed in (False, True):
        callback = ExpertGateCallback(bank, allow_other_weights=allowed)
        with nullcontext() if allowed else pytest.raises(SuiteError, match="is trained"):
            quiet_trainer([callback], max_epochs=1).fit(Trains(), loader(), loader())


def test_sharded_parameters_are_refused() -> None:
    class FSDPStrategy:
        pass

    class Fake:
        strategy = FSDPStrategy()

    callback: Any = ExpertGateCallback()
    with pytest.raises(SuiteError, match="FSDPStrategy leaves each process a shard"):
        callback.setup(Fake(), Chat(), "fit")


class Kill(Callback):
    """Saves after so many batches and dies at the next."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if args[-1] == self.batch:
            trainer.save_checkpoint(self.path)
        elif args[-1] > self.batch:
            raise RuntimeError("killed")


class Resumable(Batches):
    """Four prompts in batches of other sizes, of which more and more are edited ones."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: Any = [PROMPTS[2:], PROMPTS[1:], PROMPTS[:1], PROMPTS[:3]]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")
@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
@pytest.mark.parametrize("batch", [0, 2])
def test_what_is_logged_of_an_epoch_is_the_same_after_a_resume_in_its_middle(
    bank: str, tmp_path: Path, batch: int, order: int
) -> None:
    def train(*others: Callback, ckpt_path: Path | None = None) -> dict[str, float]:
        callbacks = [ExpertGateCallback(bank), *others][::order]
        trainer = quiet_trainer(callbacks, max_epochs=1, default_root_dir=tmp_path)
        trainer.fit(Chat(), Resumable(), ckpt_path=ckpt_path, weights_only=True)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    whole = train()
    assert whole["scen/fired_rate"] == pytest.approx(4 / 9)
    with pytest.raises(RuntimeError, match="killed"):
        train(Kill(tmp_path / "mid.ckpt", batch))
    assert train(ckpt_path=tmp_path / "mid.ckpt") == whole
