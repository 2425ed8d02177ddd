"""Editing through Lightning, on a trained language model of 0.85 M parameters."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_editing import edit_rows, module_options, write_edits, write_model

from lightning_suite import EditDataModule, SCENModule
from lightning_suite.cli.main import main
from lightning_suite.errors import SuiteError
from lightning_suite.scen import editing, fitting_module
from lightning_suite.scen import module as scen_module
from lightning_suite.scen.bank_file import read_bank, save_bank
from lightning_suite.scen.edited_model import EditedModel, subset
from lightning_suite.scen.evaluation import BaseAnswers
from lightning_suite.scen.evaluation_tables import shown_answers

EDITS = 6

# A run that goes on has a folder of its own, and the list of best models starts anew.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_edits(tmp_path_factory.mktemp("edits") / "edits.jsonl", edit_rows(EDITS))


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **options,
    )


@pytest.fixture(scope="module")
def edited(
    tmp_path_factory: pytest.TempPathFactory, model: Path, source: Path
) -> tuple[Trainer, SCENModule]:
    """A module after ``fit`` on all edits, in groups of four, and its trainer."""
    torch.set_num_threads(1)
    module = SCENModule(**module_options(model))
    run = trainer(tmp_path_factory.mktemp("run"))
    run.fit(module, EditDataModule(str(source), batch_size=4))
    return run, module


def artifacts(run: Trainer) -> Path:
    assert run.log_dir is not None
    return Path(run.log_dir, "artifacts")


def table(run: Trainer, name: str) -> list[dict[str, str]]:
    with (artifacts(run) / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def bank_bytes(path: Path) -> bytes:
    return path.with_suffix(".safetensors").read_bytes()


# --- fit ------------------------------------------------------------------------------------------


def test_fit_makes_all_edits_and_says_how(edited: tuple[Trainer, SCENModule]) -> None:
    run, module = edited
    assert [edit.id for edit in module.bank.edits] == [f"e{n}" for n in range(EDITS)]
    with Path(run.log_dir or "", "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scen/loss"]]
    assert [float(row["scen/edits"]) for row in rows] == [4, 6], "a row a group"
    assert all(float(row["scen/success"]) == float(row["scen/fired_rate"]) == 1 for row in rows)
    assert max(float(row["scen/loss"]) for row in rows) < 1
    assert all(float(row["scen/edits_per_second"]) > 0 for row in rows)
    assert run.callback_metrics["scen/val_reliability"] == 1
    training = table(run, "scen_training")
    assert [row["edit_id"] for row in training] == [f"e{n}" for n in range(EDITS)]
    assert {row["learned"] for row in training} == {"1"}
    stored = read_bank(artifacts(run) / "bank")
    assert [record.edit.id for record in stored.records] == [f"e{n}" for n in range(EDITS)]


def test_what_was_chosen_by_trial_is_said_kept_and_used(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"layer": "model.layers.2.mlp.down_proj", "lr": 0.04, "trials": [], "data": "facts"}
    monkeypatch.setattr(editing, "calibrated_experts", lambda *_args: chosen)
    said: list[str] = []
    monkeypatch.setattr(scen_module, "rank_zero_info", said.append)
    options = module_options(model, bank=str(tmp_path / "facts"), layer=None, calibrate=True)
    del options["training"]["lr"]
    module = SCENModule(**options)
    assert module.bank.base.layer == chosen["layer"]
    assert module.settings.lr == 0.04
    assert any("0.04" in line and "facts" in line for line in said)
    trainer(tmp_path, limit_val_batches=0).fit(module, EditDataModule(str(source), limit=2))
    assert read_bank(tmp_path / "facts").calibration == {"experts": chosen}
    monkeypatch.undo()
    assert SCENModule(**options).settings.lr == 0.04, "a bank that is there says it itself"


def test_the_model_is_not_changed(edited: tuple[Trainer, SCENModule], model: Path) -> None:
    _, module = edited
    fresh = SCENModule(**module_options(model)).model.state_dict()
    assert all(torch.equal(fresh[k], v) for k, v in module.model.state_dict().items())
    assert not any(p.requires_grad for p in module.model.parameters())
    assert not any(m._forward_hooks for m in module.model.modules())


def test_a_checkpoint_holds_the_bank_alone_and_answers_again(
    edited: tuple[Trainer, SCENModule], model: Path, source: Path, tmp_path: Path
) -> None:
    run, module = edited
    (path,) = Path(run.log_dir or "").glob("checkpoints/*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["state_dict"]
    assert all(key.startswith("bank.") for key in checkpoint["state_dict"])
    assert path.stat().st_size < 0.2 * sum(f.stat().st_size for f in model.glob("*.safetensors"))
    fresh = SCENModule(**module_options(model))
    rows = trainer(tmp_path).predict(
        fresh, EditDataModule(str(source)), ckpt_path=str(path), weights_only=True
    )
    assert rows is not None
    assert rows == trainer(tmp_path).predict(module, EditDataModule(str(source)))
    again = SCENModule.load_from_checkpoint(path, weights_only=True)
    assert again.bank.edits == module.bank.edits


def test_a_bank_file_is_continued(model: Path, tmp_path: Path) -> None:
    """New edits are made, finished ones are left alone, changed ones become a new version."""
    rows = edit_rows(3)
    bank = tmp_path / "facts"
    options = module_options(model, bank=str(bank))

    def fit(rows: list[dict[str, Any]]) -> SCENModule:
        module = SCENModule(**options)
        source = write_edits(tmp_path / "edits.jsonl", rows)
        trainer(tmp_path, limit_val_batches=0).fit(module, EditDataModule(str(source)))
        return module

    fit(rows[:2])
    first = bank_bytes(bank)
    fit(rows[:2])
    assert bank_bytes(bank) == first, "nothing to do"
    module = fit(rows)
    assert [record.version for record in module.bank.history.records] == [1, 1, 1]
    changed = fit([{**rows[0], "target": "gold"}, *rows[1:]])
    records = read_bank(bank).records
    assert [(r.edit.id, r.version, r.status) for r in records] == [
        ("e0", 1, "replaced"),
        ("e1", 1, "live"),
        ("e2", 1, "live"),
        ("e0", 2, "live"),
    ]
    with changed.bank.attach(changed.model, changed.tokenizer):
        assert changed.answerer([rows[0]["prompt"]])[0].text == "gold"


def test_a_run_says_what_its_bank_holds_already_and_what_it_has_added(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file's edits join those of an earlier one: not without a word."""
    rows, bank = edit_rows(4), str(tmp_path / "facts")
    said: list[str] = []
    monkeypatch.setattr(fitting_module, "rank_zero_info", said.append)

    def fit(rows: list[dict[str, Any]]) -> list[str]:
        said.clear()
        source = write_edits(tmp_path / "edits.jsonl", rows)
        module = SCENModule(**module_options(model, bank=bank))
        trainer(tmp_path, limit_val_batches=0).fit(module, EditDataModule(str(source)))
        return said

    assert fit(rows[:2]) == []
    start, end = fit([{**rows[0], "target": "gold"}, *rows[1:]])
    assert f"{bank}: the bank holds 2 edits already" in start
    assert "Of the 4 edits of this run 1 is there already, 1 replaces an earlier" in start
    assert "and 2 are new. For a bank of their own: --model.init_args.bank" in start
    assert end == f"{bank}: 2 edits added, 1 replaced; 4 in the bank"
    start, end = fit(rows[2:])
    assert "Of the 2 edits of this run 2 are there already and 0 are new" in start
    assert end == f"{bank}: 0 edits added, 0 replaced; 4 in the bank"


def test_what_was_removed_stays_out_until_it_is_brought_back_or_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = edit_rows(3)
    bank = tmp_path / "facts"
    said: list[str] = []
    monkeypatch.setattr(fitting_module, "rank_zero_info", said.append)

    def fit(rows: list[dict[str, Any]], **options: Any) -> list[str]:
        module = SCENModule(**module_options(model, bank=str(bank), **options))
        source = write_edits(tmp_path / "edits.jsonl", rows)
        trainer(tmp_path, limit_val_batches=0).fit(module, EditDataModule(str(source)))
        return [edit.id for edit in module.bank.edits]

    assert fit(rows) == ["e0", "e1", "e2"]
    assert said == []
    module = SCENModule(**module_options(model, bank=str(bank)))
    module.bank.remove(["e1"])
    save_bank(module.bank, bank)
    assert fit(rows) == ["e0", "e2"]
    assert "2 are there already, 0 are new and 1 is left out (removed from it before)" in said[0]
    assert re.search(f"removed from the bank and stay out: e1. .* rollback {bank} e1", said[1])
    assert fit([rows[0], {**rows[1], "target": "gold"}]) == ["e0", "e2", "e1"]
    other = {"training": {**module_options(model)["training"], "steps": 3}}
    assert len(fit(edit_rows(4), **other, allow_other_training=True)) == 4
    assert read_bank(bank).training["steps"] == 3


def test_a_run_does_not_undo_what_is_done_to_its_bank_meanwhile(
    model: Path, source: Path, tmp_path: Path
) -> None:
    bank = str(tmp_path / "facts")

    def fit(module: SCENModule) -> None:
        data = EditDataModule(str(source), batch_size=2)
        trainer(tmp_path, limit_val_batches=0).fit(module, data)

    class Disturbed(SCENModule):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:  # as `bank remove` in another terminal
                assert main(["bank", "remove", bank, "e0"]) == 0

    with pytest.raises(SuiteError, match="run the same again"):
        fit(Disturbed(**module_options(model, bank=bank)))
    assert [record.status for record in read_bank(bank).records] == ["removed", "live"]
    fit(SCENModule(**module_options(model, bank=bank)))
    assert [record.status for record in read_bank(bank).records] == ["removed"] + 5 * ["live"]
    # of two runs that begin a bank, one does
    late = SCENModule(**module_options(model, bank=str(tmp_path / "new")))
    fit(SCENModule(**module_options(model, bank=str(tmp_path / "new"))))
    with pytest.raises(SuiteError, match="written this bank meanwhile"):
        fit(late)


def test_a_run_that_broke_off_goes_on_to_the_same_bank(
    model: Path, source: Path, tmp_path: Path
) -> None:
    class Breaks(SCENModule):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                raise RuntimeError("in the middle")

    def fit(cls: type[SCENModule], bank: str) -> SCENModule:
        module = cls(**module_options(model, bank=str(tmp_path / bank)))
        data = EditDataModule(str(source), batch_size=2)
        trainer(tmp_path, limit_val_batches=0).fit(module, data)
        return module

    fit(SCENModule, "whole")
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(Breaks, "broken")
    assert len(read_bank(tmp_path / "broken").records) == 4
    fit(SCENModule, "broken")
    assert bank_bytes(tmp_path / "broken") == bank_bytes(tmp_path / "whole")
    whole, broken = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("whole", "broken"))
    assert whole == broken


# --- test and predict -----------------------------------------------------------------------------


def test_test_scores_bank_and_baselines_and_writes_the_tables(
    edited: tuple[Trainer, SCENModule], model: Path, source: Path, tmp_path: Path
) -> None:
    run, _ = edited
    module = SCENModule(
        **module_options(
            model,
            bank=str(artifacts(run) / "bank"),
            baselines=["no_edit", {"name": "grace", "steps": 2}],
            checkpoints=[2, EDITS],
            teacher_forced=True,
        )
    )
    testing = trainer(tmp_path)
    (metrics,) = testing.test(module, EditDataModule(str(source)))
    assert metrics["scen/reliability"] == 1
    assert set(metrics) == {
        "scen/reliability",
        "scen/generality",
        "scen/locality",
        "scen/locality_same_subject",
        "scen/locality_random",
    }
    summary = {row["system"]: row for row in table(testing, "scen_summary")}
    assert list(summary) == ["scen", "no_edit", "grace"]
    for name in ("reliability", "generality", "locality", "locality_random"):
        assert float(summary["scen"][name]) == pytest.approx(metrics[f"scen/{name}"])
    assert float(summary["no_edit"]["locality"]) == 1
    assert {row["edits"] for row in table(testing, "scen_curve")} == {"2", str(EDITS)}
    edits = table(testing, "scen_edits")
    assert all(float(row["teacher_forced_accuracy"]) == 1 for row in edits)
    assert len(table(testing, "scen_prompts")) == 3 * 4 * EDITS


def test_predict_refuses_a_bank_that_is_not_there(model: Path, tmp_path: Path) -> None:
    """Not an empty one: it would answer as the model that was to be edited."""
    module = SCENModule(**module_options(model, bank=str(tmp_path / "mistyped")))
    data = EditDataModule(str(write_edits(tmp_path / "e.jsonl", edit_rows(1))))
    with pytest.raises(SuiteError, match="no bank '.*mistyped', so nothing would be edited"):
        trainer(tmp_path).predict(module, data)


def test_predict_says_which_edit_answered(
    edited: tuple[Trainer, SCENModule], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, module = edited
    asked = tmp_path / "asked.txt"
    asked.write_text("Alice likes\nOnce upon a time\n")
    run = trainer(tmp_path)
    data = EditDataModule(str(write_edits(tmp_path / "e.jsonl", edit_rows(1))), prompts=str(asked))
    (rows,) = run.predict(module, data) or []
    assert [row["prompt"] for row in rows] == ["Alice likes", "Once upon a time"]
    assert [row["fired"] for row in rows] == ["e0", None]
    assert rows[0]["answer"] == "cat" != rows[0]["before"]
    assert rows[1]["answer"] == rows[1]["before"]
    assert rows[0]["margin"] >= 0 > rows[1]["margin"]
    lines = (artifacts(run) / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [row["answer"] for row in table(run, "scen_answers")] == [r["answer"] for r in rows]
    shown = capsys.readouterr().out.splitlines()
    assert "Alice likes -> cat [edit e0]" in shown
    assert f"Once upon a time -> {' '.join(rows[1]['answer'].split())} [-]" in shown
    assert shown[-1] == f"Answers: {artifacts(run) / 'answers.jsonl'}"
    assert shown_answers(rows, None, most=1).splitlines()[1:] == [
        "Alice likes -> cat [edit e0]",
        "… and 1 more",
    ]


def test_scoring_takes_no_short_cut_that_changes_an_answer(
    edited: tuple[Trainer, SCENModule],
) -> None:
    """What is generated with the bank attached, prompt for prompt, is what is scored."""
    _, module = edited
    before = BaseAnswers(module.answerer)
    system = EditedModel(module.bank, module.answerer, before)
    questions = [
        text
        for row in edit_rows(EDITS)
        for text in (row["prompt"], *row["rephrases"], *(p["prompt"] for p in row["locality"]))
    ]
    for ids in (["e0", "e3"], ["e1"], []):  # switched on one after the other
        system.edit([edit for edit in module.bank.edits if edit.id in ids])
        with subset(module.bank, system._on).attach(module.model, module.tokenizer):
            generated = module.answerer(questions)
        assert system.answer(questions) == generated
        assert len({answer.text for answer in generated}) > 1
    system.undo()
    assert system.answer(questions) == before(questions)


def test_some_edits_of_a_bank_decide_as_a_bank_of_these_alone(
    edited: tuple[Trainer, SCENModule], model: Path, tmp_path: Path
) -> None:
    _, module = edited
    alone = SCENModule(**module_options(model))
    source = write_edits(tmp_path / "edits.jsonl", edit_rows(3))
    trainer(tmp_path, limit_val_batches=0).fit(alone, EditDataModule(str(source)))
    part = subset(module.bank, ["e0", "e1", "e2"])
    assert len(module.bank) == EDITS, "the whole bank is not changed"
    questions = ["Alice likes", "And Alice likes", "the dog likes", "Tom said", "Once upon"]
    with part.attach(module.model, module.tokenizer) as handle:
        found = handle.explain(questions)
    with alone.bank.attach(alone.model, alone.tokenizer) as handle:
        expected = handle.explain(questions)
    assert [(d.fired, d.nearest) for d in found] == [(d.fired, d.nearest) for d in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.margin == pytest.approx(other.margin, abs=1e-5)


# --- what is refused ------------------------------------------------------------------------------


def test_arguments_that_make_no_module(model: Path) -> None:
    for options, message in (
        ({"pretrained": None}, "neither is given"),
        ({"config": {"model_type": "llama"}}, "both is given"),
        ({"pretrained": None, "config": {"model_type": "llama"}}, "name of a tokenizer"),
        ({"layer": "model.layers.1.mlp.down_pro"}, "Did you mean 'model.layers.1.mlp.down_proj'"),
        ({"layer": 9}, "layer=9, and the model has 4"),
        ({"gate": "closd"}, "Did you mean 'closed'"),
        ({"baselines": ["graze"]}, "Did you mean 'grace'"),
        ({"training": {"learning_rate": 1.0}}, "training: 'learning_rate' is not known"),
        ({"training": {"lr": 0.0}}, "lr 0.0: must be a positive number"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ):
        with pytest.raises(SuiteError, match=message):
            SCENModule(**module_options(model, **options))


def test_a_bank_of_another_model_is_refused(
    edited: tuple[Trainer, SCENModule], model: Path, tmp_path: Path
) -> None:
    run, module = edited
    other = SCENModule(**module_options(model)).model
    other.get_submodule(module.bank.base.layer).weight.data.mul_(1.5)
    other.save_pretrained(tmp_path)
    module.tokenizer.save_pretrained(tmp_path)
    options = module_options(tmp_path, bank=str(artifacts(run) / "bank"))
    with pytest.raises(SuiteError, match="made for .*, and the weights here .* differ"):
        SCENModule(**options)
    with pytest.warns(UserWarning, match="the weights here .* differ"):
        assert len(SCENModule(**options, allow_other_weights=True).bank) == EDITS


def test_a_truncated_bank_is_refused(
    edited: tuple[Trainer, SCENModule], model: Path, tmp_path: Path
) -> None:
    run, _ = edited
    for name in ("bank.json", "bank.safetensors"):
        (tmp_path / name).write_bytes((artifacts(run) / name).read_bytes())
    tensors = tmp_path / "bank.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(SuiteError, match=r"bank.safetensors: has .* bytes, and .* cut off"):
        SCENModule(**module_options(model, bank=str(tmp_path / "bank")))


def test_a_bank_is_not_continued_with_other_settings(
    edited: tuple[Trainer, SCENModule], model: Path, source: Path, tmp_path: Path
) -> None:
    run, _ = edited
    bank = str(artifacts(run) / "bank")
    for options, message in (
        ({"rank": 3}, "the bank has rank 2, and this run asks for 3"),
        ({"gate": "scen", "gate_options": None}, "the bank has gate 'closed'"),
        ({"layer": 2}, r"bank has layer 'model\.layers\.1\..*', .* asks for 'model\.layers\.2\."),
        ({"training": {"lr": 0.01}}, r"were trained with lr 0\.03, and this run asks for 0\.01"),
        ({"learn_contexts": False}, "trained with learn_contexts True, .* asks for False"),
    ):
        module = SCENModule(**module_options(model, bank=bank, **options))
        with pytest.raises(SuiteError, match=message):
            trainer(tmp_path).fit(module, EditDataModule(str(source)))


def test_a_test_without_any_of_the_edits_says_to_make_them(
    model: Path, source: Path, tmp_path: Path
) -> None:
    module = SCENModule(**module_options(model))
    with pytest.raises(SuiteError, match="holds none of the 6 edits.*lightning-suite fit"):
        trainer(tmp_path).test(module, EditDataModule(str(source)))


def test_a_prompt_over_the_context_is_named(model: Path, tmp_path: Path) -> None:
    row = {**edit_rows(1)[0], "prompt": "word " * 200}
    source = write_edits(tmp_path / "edits.jsonl", [row])
    module = SCENModule(**module_options(model))
    with pytest.raises(SuiteError, match=r"edit 'e0': prompt and target are \d+ tokens.*reads 128"):
        trainer(tmp_path).fit(module, EditDataModule(str(source)))
    assert not len(module.bank)
