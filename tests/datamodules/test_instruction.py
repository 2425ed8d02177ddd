"""InstructionDataModule: what is learnt, which batches come when, nothing lost on the way."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from glass_lm import glass_model, glass_tokenizer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_suite import CausalLMModule, InstructionDataModule
from lightning_suite.errors import SuiteError

transformers = pytest.importorskip("transformers")

ROWS = [{"id": f"r{n}", "prompt": "x" * (n % 4 + 1), "response": "y" * n} for n in range(1, 21)]


def set_up(source: Any = "word_problems:40", **options: Any) -> InstructionDataModule:
    data = InstructionDataModule(source, **{"tokenizer": "bytes", **options})
    data.prepare_data()
    data.setup("fit")
    return data


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write(tmp_path / "rows.jsonl", ROWS)


def ids_of(loader: Any) -> list[list[str]]:
    return [batch["ids"] for batch in loader]


def flat(batches: list[list[str]]) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch]


# --- a batch --------------------------------------------------------------------------------------


def test_a_batch_against_one_written_by_hand(tmp_path: Path) -> None:
    source = write(
        tmp_path / "d.jsonl",
        [{"id": 1, "prompt": "ab", "response": "cd"}, {"id": 2, "prompt": "", "response": "e"}],
    )
    data = set_up(source, prompt_template=">{prompt}={response}")
    (batch,) = data.predict_dataloader()
    tokens = [[*b">ab=cd"], [*b">=e", 0, 0, 0]]
    assert batch["input_ids"].tolist() == tokens
    assert batch["labels"].tolist() == [[-100] * 4 + [*b"cd"], [-100, -100, *b"e"] + [-100] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch["ids"] == ["1", "2"]
    assert batch["n_tokens"].tolist() == [6, 3]
    assert batch["n_label_tokens"].tolist() == [2, 1]
    assert batch["truncated"].tolist() == [False, False]
    assert "position_ids" not in batch


def test_padding_is_on_the_tokenizers_side(tmp_path: Path, rows: str) -> None:
    for side in ("left", "right"):
        glass_tokenizer(side).save_pretrained(tmp_path / side)
    left, right = (
        next(iter(set_up(rows, tokenizer=str(tmp_path / side)).predict_dataloader()))
        for side in ("left", "right")
    )
    for n, length in enumerate(left["n_tokens"].tolist()):
        for key in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(left[key][n, -length:], right[key][n, :length])
        assert left["position_ids"][n, -length:].tolist() == list(range(length))
    assert (left["labels"][left["attention_mask"] == 0] == -100).all()


def test_the_loss_does_not_depend_on_the_batch_or_the_side(tmp_path: Path, rows: str) -> None:
    glass_model().save_pretrained(tmp_path / "model")
    losses = {}
    for side in ("left", "right"):
        glass_tokenizer(side).save_pretrained(tmp_path / side)
        for options in ({"batch_size": 1}, {"batch_size": 5}, {"batch_tokens": 100}):
            data = set_up(rows, tokenizer=str(tmp_path / side), **options)
            assert len(set(data.samples().lengths.tolist())) > 10
            losses[side, str(options)] = sample_losses(data, tmp_path / "model")
    (first, *others) = losses.values()
    assert len(first) == 20
    for other in others:
        assert other.keys() == first.keys()
        for sample_id, loss in first.items():
            assert other[sample_id] == pytest.approx(loss, rel=1e-9)


def sample_losses(data: InstructionDataModule, model: Path) -> dict[str, float]:
    module = CausalLMModule(pretrained=str(model), dtype="float64").eval()
    losses = {}
    for batch in data.predict_dataloader():
        with torch.no_grad():
            logits = module(batch).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none", ignore_index=-100
        )
        mean = nll.sum(1) / batch["n_label_tokens"]
        losses |= dict(zip(batch["ids"], mean.tolist(), strict=True))
    return losses


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_tokens": 800}])
def test_the_order_depends_on_seed_and_epoch_alone(options: dict[str, int]) -> None:
    orders = {}
    for seed, epoch, workers in ((1, 0, 0), (1, 0, 2), (1, 1, 0), (2, 0, 0)):
        torch.manual_seed(epoch)  # the global state must not matter
        loader = set_up(seed=seed, num_workers=workers, **options).train_dataloader()
        loader.sampler.set_epoch(epoch)
        orders[seed, epoch, workers] = ids_of(loader)
    first = orders[1, 0, 0]
    assert orders[1, 0, 2] == first
    assert orders[1, 1, 0] != first
    assert orders[2, 0, 0] != first
    assert sorted(flat(orders[1, 1, 0])) == sorted(flat(first))


def test_a_token_budget_is_kept_and_little_is_padded(rows: str) -> None:
    data = set_up("word_problems:200", batch_tokens=2000)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(loader) == len(batches)
    assert sorted(flat(ids_of(loader))) == sorted(data.samples().ids)
    assert max(batch["input_ids"].numel() for batch in batches) <= 2000
    padding = 1 - sum(int(b["n_tokens"].sum()) for b in batches) / sum(
        b["input_ids"].numel() for b in batches
    )
    assert padding < 0.05
    few = set_up("word_problems:200", batch_tokens=2000, batch_size=2).train_dataloader()
    assert {len(batch["ids"]) for batch in few} == {2}


def test_other_seeds_put_other_samples_together() -> None:
    # all of one length, so that only chance decides
    composition = [
        {frozenset(batch) for batch in ids_of(set_up(batch_tokens=900, seed=s).train_dataloader())}
        for s in (0, 1)
    ]
    assert composition[0] != composition[1]


def test_scoring_sees_every_sample_once_the_longest_first() -> None:
    data = set_up(batch_tokens=1000)
    lengths = [int(batch["n_tokens"].max()) for batch in data.predict_dataloader()]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(flat(ids_of(data.predict_dataloader()))) == sorted(data.samples().ids)
    in_order = flat(ids_of(set_up(batch_size=7).predict_dataloader()))
    assert in_order == data.samples().ids


class Recorder(LightningModule):
    """Notes the ids that it is trained on; may die in the middle."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []
        self.die_at = die_at

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.global_step == self.die_at:
            raise KeyboardInterrupt
        self.seen.append(batch["ids"])
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None: ...

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        return batch["ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def train(
    module: Recorder,
    data: InstructionDataModule,
    folder: Path,
    *callbacks: Callback,
    **options: Any,
) -> None:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        logger=False,
    )
    trainer.fit(module, data, **options)


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_tokens": 800}])
def test_a_killed_run_goes_on_with_the_next_batch(options: dict[str, int], tmp_path: Path) -> None:
    whole = Recorder()
    train(whole, set_up(**options), tmp_path)
    steps = len(whole.seen)
    stop = steps // 2 + 2  # within the second epoch
    killed = Recorder(die_at=stop)
    checkpoint = tmp_path / "stop.ckpt"
    with pytest.raises(SystemExit):
        train(killed, set_up(**options), tmp_path, SaveAt(stop, checkpoint))
    resumed = Recorder()
    train(resumed, set_up(**options), tmp_path, ckpt_path=checkpoint)
    assert killed.seen + resumed.seen == whole.seen


def test_trainer_predict_gives_every_id_once(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    for options in ({"batch_size": 3}, {"batch_tokens": 800}):
        data = set_up(**options)
        found = trainer.predict(Recorder(), data)
        assert found is not None
        assert sorted(flat(found)) == sorted(data.samples().ids)


class RankRecorder(Recorder):
    """Writes what its rank has seen."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_train_end(self) -> None:
        self._write("train", self.seen)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[str]:
        self.seen.append(batch["ids"])
        return batch["ids"]

    def on_predict_end(self) -> None:
        self._write("predict", self.seen)

    def _write(self, what: str, seen: list[list[str]]) -> None:
        (self.folder / f"{what}{self.global_rank}.json").write_text(json.dumps(seen))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
@pytest.mark.parametrize("what", ["train", "predict"])
def test_two_ranks_share_the_batches_of_one(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    data = set_up(batch_tokens=1000)
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp_fork",
        devices=2,
        max_epochs=1,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    if what == "train":
        trainer.fit(RankRecorder(tmp_path), data)
    else:
        trainer.predict(RankRecorder(tmp_path), data, return_predictions=False)
    first, second = (json.loads((tmp_path / f"{what}{rank}.json").read_text()) for rank in (0, 1))
    alone = ids_of(set_up(batch_tokens=1000).predict_dataloader())
    assert len(first) == len(second) == (len(alone) + 1) // 2
    assert set(flat(first) + flat(second)) == set(data.samples().ids)
    twice = [batch for batch in first if batch in second]
    assert len(twice) == len(alone) % 2  # ranks take equally many steps


# --- nothing is lost in silence -------------------------------------------------------------------


def test_long_samples_are_cut_and_say_so(rows: str) -> None:
    with pytest.warns(UserWarning, match=r"rows.jsonl: train: 10 of 20 samples have nothing"):
        data = set_up(rows, prompt_template="{prompt}{response}", max_length=3)
    samples = data.samples()
    # prompts of 1, 2, 3, 4 letters; of 3 and 4 nothing is left to learn
    assert Counter(samples.status) == {"no_labels": 10, "truncated": 9, "ok": 1}
    assert samples.status[3] == "truncated"
    assert int(samples.lengths.max()) == data.longest_sample == 3


def test_what_cannot_be_learnt_is_scored_but_not_trained_on(rows: str) -> None:
    with pytest.warns(UserWarning, match="r2, r3, r6, …"):
        data = set_up(rows, prompt_template="{prompt}{response}", max_length=3, batch_size=4)
    assert len(flat(ids_of(data.predict_dataloader()))) == 20
    trained = flat(ids_of(data.train_dataloader()))
    assert sorted(trained) == sorted(
        i for i, s in zip(data.samples().ids, data.samples().status, strict=True)
        if s != "no_labels"
    )  # fmt: skip
    assert all((batch["n_label_tokens"] > 0).all() for batch in data.train_dataloader())


def test_an_empty_answer_is_learnt_as_its_template_and_named(tmp_path: Path) -> None:
    answers = ["yes", "", " "]
    rows = [{"id": f"r{n}", "prompt": "ab", "response": a} for n, a in enumerate(answers)]
    source = write(tmp_path / "d.jsonl", rows)
    with pytest.warns(UserWarning, match=r"2 of 3 samples have an empty answer \(r1, r2\)"):
        data = set_up(source, prompt_template="{prompt}={response}.", batch_size=3)
    assert data.samples().status == ["ok", "empty_answer", "empty_answer"]
    (batch,) = data.predict_dataloader()
    assert batch["empty_answer"].tolist() == [False, True, True]
    (batch,) = data.train_dataloader()
    marked = zip(batch["ids"], batch["empty_answer"].tolist(), strict=True)
    assert sorted(marked) == [("r0", False), ("r1", True), ("r2", True)]


def test_data_without_anything_to_learn_is_refused(rows: str) -> None:
    with pytest.warns(UserWarning, match="20 of 20"):
        data = set_up(rows, max_length=3)
    with pytest.raises(SuiteError, match="no training sample has a token to learn within max_len"):
        data.train_dataloader()


# --- validation -----------------------------------------------------------------------------------


def test_no_prompt_is_on_both_sides_and_the_share_is_right(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"prompt {n % 500}", "response": f"{n}"} for n in range(1000)]
    data = set_up(write(tmp_path / "d.jsonl", rows), val_fraction=0.2)
    prompt = {str(row["id"]): row["prompt"] for row in rows}
    train, val = ({prompt[i] for i in data.samples(s).ids} for s in ("train", "val"))
    assert not train & val
    assert len(train | val) == 500
    assert 70 < len(val) < 130
    assert sorted(flat(ids_of(data.val_dataloader()))) == sorted(data.samples("val").ids)


def test_a_part_of_the_data_is_split_as_the_whole_was(tmp_path: Path) -> None:
    rows = [{"id": n, "prompt": f"prompt {n}", "response": f"{n}"} for n in range(200)]
    whole = set_up(write(tmp_path / "a.jsonl", rows), val_fraction=0.3)
    part = set_up(write(tmp_path / "b.jsonl", rows[50:150][::-1]), val_fraction=0.3)
    assert set(part.samples("val").ids) <= set(whole.samples("val").ids)
    assert not set(part.samples("train").ids) & set(whole.samples("val").ids)
    other = set_up(write(tmp_path / "a.jsonl", rows), val_fraction=0.3, val_seed=1)
    assert set(other.samples("val").ids) != set(whole.samples("val").ids)


def test_validation_data_of_its_own_is_compared_with_the_training_data(
    tmp_path: Path, rows: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = set_up("word_problems:10", val_source="word_problems:10:1")
    assert data.samples("val").ids[0] == "wp1-0"
    with pytest.warns(UserWarning, match="20 of 20 validation prompts are also training prompts"):
        set_up(rows, val_source=rows)


def test_without_validation_there_are_no_batches() -> None:
    assert set_up().val_dataloader() == []


# --- noise ----------------------------------------------------------------------------------------


def test_noise_spoils_the_training_samples_only_and_keeps_their_ids() -> None:
    options = {"val_fraction": 0.3, "tokenizer": "bytes"}
    clean = set_up("word_problems:100", **options)
    noisy = set_up("word_problems:100", noise={"gibberish": 0.25}, **options)
    for split, changed in (("train", len(noisy.noise_records)), ("val", 0)):
        before, after = clean.samples(split), noisy.samples(split)
        assert before.ids == after.ids
        different = sum(
            before[n]["input_ids"].tolist() != after[n]["input_ids"].tolist()
            for n in range(len(before.ids))
        )
        assert different == changed
    assert len(noisy.noise_records) == round(0.25 * len(clean.samples()))


def test_what_was_spoilt_lies_beside_the_run(tmp_path: Path) -> None:
    data = InstructionDataModule(
        tokenizer="bytes", source="word_problems:20", noise={"gibberish": 0.25}
    )
    train(Recorder(), data, tmp_path)
    lines = (tmp_path / "artifacts" / "noise.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [r.id for r in data.noise_records]
    assert len(lines) == 5


# --- with a model ---------------------------------------------------------------------------------


@pytest.fixture
def glass_folder(tmp_path: Path) -> str:
    glass_model().save_pretrained(tmp_path / "glass")
    glass_tokenizer().save_pretrained(tmp_path / "glass")
    return str(tmp_path / "glass")


def trainer(folder: Path) -> Trainer:
    return Trainer(
        max_steps=20,
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def test_a_real_model_learns_from_it_with_its_own_tokenizer(
    tmp_path: Path, glass_folder: str
) -> None:
    data = InstructionDataModule(
        "word_problems:200", batch_tokens=1024, max_length=128, val_fraction=0.2
    )
    module = CausalLMModule(
        pretrained=glass_folder, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)
    )
    loop = trainer(tmp_path)
    before = loop.validate(module, data, verbose=False)[0]["val_loss"]
    loop.fit(module, data)
    after = loop.validate(module, data, verbose=False)[0]["val_loss"]
    assert data.vocab_size == 1024
    assert after < before - 1


def test_samples_longer_than_the_models_context_are_refused(
    tmp_path: Path, glass_folder: str
) -> None:
    data = InstructionDataModule("word_problems:50")
    with pytest.raises(
        SuiteError, match=r"max_position_embeddings is 128, but the data module's longest_sample is"
    ):
        trainer(tmp_path).fit(CausalLMModule(pretrained=glass_folder), data)


def test_without_a_model_a_tokenizer_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="tokenizer is not given, and there is no module with"):
        set_up(tokenizer=None)
    with pytest.raises(SuiteError, match="tokenizer is not given, and there is no module with"):
        train(Recorder(), InstructionDataModule(), tmp_path)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"batch_tokens": 0}, "batch_tokens is 0; it must be 1 or more"),
        ({"max_length": 1}, "max_length is 1; it must be 2 or more"),
        ({"val_fraction": 1}, r"val_fraction is 1; it must be in \[0, 1\)"),
        ({"val_fraction": 0.1, "val_source": "x"}, "val_source or val_fraction, not both"),
        ({"messages_column": "m", "prompt_column": "p"}, "leave out prompt_column"),
        ({"source": []}, "source is an empty list"),
        ({"duplicate_ids": "drop"}, "duplicate_ids='drop' is not known"),
        ({"noise": {"typos": 0.1}}, "kind 'typos' is unknown"),
        ({"val_fraction": 1e-9}, "leaves 40 samples to train and 0 to validate on"),
        ({"tokenizer": "/no/tokenizer"}, "tokenizer '/no/tokenizer': is neither 'bytes' nor"),
        ({"prompt_template": "x"}, "must contain {prompt} once"),
        ({"val_source": "none.jsonl"}, "none.jsonl: cannot be read"),
        ({"prompt_column": "q"}, "prompt_column 'q' does not exist"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        set_up(**options)


def test_a_split_that_is_not_there_is_named() -> None:
    data = set_up()
    with pytest.raises(SuiteError, match="has no split 'val'. Set val_source or val_fraction"):
        data.samples("val")
    with pytest.raises(SuiteError, match="split='vla' is not known. Did you mean 'val'"):
        data.samples("vla")
    with pytest.raises(SuiteError, match="has no split 'test'"):
        data.test_dataloader()


def test_a_template_problem_names_the_sample(tmp_path: Path, rows: str) -> None:
    tokenizer = glass_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('not me') }}"
    tokenizer.save_pretrained(tmp_path / "t")
    with pytest.raises(SuiteError, match="sample 'r1': the chat template refuses the roles user"):
        set_up(rows, tokenizer=str(tmp_path / "t"))
