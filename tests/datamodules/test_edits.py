"""EditDataModule: groups in order, the same for every size, shared out over ranks."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

from lightning_suite import EditDataModule
from lightning_suite.datamodules.edits import EditGroup, group_indices
from lightning_suite.errors import SuiteError
from lightning_suite.scen.edits import Edit
from lightning_suite.scen.reference_data import (
    calibration_edits,
    reference_questions,
    relation_wordings,
    wordings_by_kind,
)

ROOT = Path(__file__).parents[2]


def set_up(**options: object) -> EditDataModule:
    data = EditDataModule(**options)  # type: ignore[arg-type]
    data.setup("fit")
    return data


# --- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 32])
def test_groups_are_the_edits_in_order(size: int) -> None:
    data = set_up(limit=10, batch_size=size)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        groups = list(loader)
        assert [edit for group in groups for edit in group] == data.edits
        assert all(len(group) == size for group in groups[:-1])


def test_the_first_edits_of_more_are_those_of_fewer() -> None:
    assert set_up(limit=20).edits[:5] == set_up(limit=5).edits


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "Who?", "target": ""}', "row 2: target is empty"),
        ('{"prompt": "Who?"}', "row 2: "),
        ('{"prompt": "What?", "target": "d"}', "there more than once; rows 1, 2"),
        ('{"a": }', "line 2 is not JSON"),
    ],
)
def test_a_mistake_in_the_file_is_found_by_the_check_before_a_model_is_loaded(
    tmp_path: Path, row: str, message: str
) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text('{"prompt": "What?", "target": "c"}\n' + row + "\n")
    with pytest.raises(SuiteError, match=message):
        EditDataModule.check_options({"source": str(file), "format": "auto", "split": None})


def test_the_check_reads_prompts_as_prediction_will_and_takes_what_is_right(tmp_path: Path) -> None:
    EditDataModule.check_options({})
    file = tmp_path / "edits.jsonl"
    file.write_text('{"prompt": "What?", "target": "c", "unread": 1}\n')  # told when it is read
    EditDataModule.check_options({"source": [str(file)]})
    empty = tmp_path / "questions.txt"
    empty.write_text("\n")
    with pytest.raises(SuiteError, match="holds no prompt"):
        EditDataModule.check_options({"source": str(file), "prompts": str(empty)})


def test_another_order_is_drawn_from_the_seed() -> None:
    plain, drawn, again, other = (set_up(order_seed=seed).edits for seed in (None, 1, 1, 2))
    assert drawn == again != other
    assert plain != drawn
    assert {edit.id for edit in plain} == {edit.id for edit in drawn}


def test_paraphrases_can_be_fewer() -> None:
    full, two, none = (set_up(limit=3, paraphrases=count).edits for count in (None, 2, 0))
    for edit, fewer, without in zip(full, two, none, strict=True):
        assert fewer.paraphrases == edit.paraphrases[:2]
        assert without.paraphrases == ()
        assert fewer.rephrases == edit.rephrases


def test_prompts_to_predict_are_the_edits_own_or_those_of_a_file(tmp_path: Path) -> None:
    data = set_up(limit=3, batch_size=2)
    own = [edit.prompt for edit in data.edits]
    assert list(data.predict_dataloader()) == [own[:2], own[2:]]
    (tmp_path / "p.txt").write_text("Who?\nWhere?\nWhen?")
    asked = EditDataModule(batch_size=2, prompts=str(tmp_path / "p.txt"))
    assert list(asked.predict_dataloader()) == [["Who?", "Where?"], ["When?"]]


class Seen(LightningModule):
    """Keeps what Lightning hands to it."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[Edit] = []

    def training_step(self, batch: EditGroup) -> None:
        self.seen.extend(batch)
        self.log("edits", float(len(batch)), batch_size=len(batch))

    def validation_step(self, batch: EditGroup) -> None:
        assert all(edit.rephrases for edit in batch)

    def configure_optimizers(self) -> list:
        return []


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_lightning_hands_the_edits_over_as_they_are(precision: str, tmp_path: Path) -> None:
    module, data = Seen(), EditDataModule(limit=5, batch_size=2)
    trainer = Trainer(
        max_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    assert module.seen == data.edits


def test_a_resumed_loader_continues_after_the_last_group() -> None:
    data = set_up(limit=7, batch_size=2)
    loader = data.train_dataloader()
    stream = iter(loader)
    next(stream), next(stream)
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert [edit for group in resumed for edit in group] == data.edits[4:]


@given(count=st.integers(1, 60), size=st.integers(1, 20), ranks=st.integers(1, 5))
def test_ranks_share_every_edit_out_once(count: int, size: int, ranks: int) -> None:
    groups = group_indices(count, size, ranks)
    assert list(chain.from_iterable(groups)) == list(range(count))
    if count >= ranks:
        assert len(groups) % ranks == 0
    assert max(map(len, groups)) <= size + (ranks > 1)


@pytest.mark.parametrize("count", [7, 12])
def test_each_edit_goes_to_one_rank(count: int) -> None:
    shares = []
    for rank in range(3):
        data = EditDataModule(limit=count, batch_size=2)
        data.trainer = SimpleNamespace(world_size=3, global_rank=rank)  # type: ignore[assignment]
        shares.append([edit for group in data.train_dataloader() for edit in group])
    assert len({len(share) for share in shares}) <= 2
    seen = sorted(edit.id for share in shares for edit in share)
    assert seen == sorted(edit.id for edit in data.edits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"paraphrases": -1}, "paraphrases is -1; it must be 0 or more"),
        ({"source": []}, "source is an empty list"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SuiteError, match=f"EditDataModule: {message}"):
        EditDataModule(**options)


# --- the edits that come with the package --------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "build_counterfacts.py"
    spec = importlib.util.spec_from_file_location("build_counterfacts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # the dataclass decorator looks its module up by name
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_shipped_file_is_what_the_tables_give(script: ModuleType) -> None:
    assert script.SHIPPED.read_text(encoding="utf-8") == script.content()


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    path = ROOT / "lightning_suite" / "data" / "counterfacts.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_there_are_hundreds_of_edits_over_many_relations(rows: list[dict]) -> None:
    assert len(rows) >= 360
    counts = {row["relation"]: 0 for row in rows}
    for row in rows:
        counts[row["relation"]] += 1
    assert len(counts) >= 10
    assert min(counts.values()) >= 10
    assert len({row["subject"] for row in rows}) < len(rows)  # some subjects are edited twice


def test_each_edit_has_all_that_is_needed_to_judge_it(rows: list[dict]) -> None:
    for row in rows:
        assert row["target"] != row["true_answer"]
        assert row["subject"].lower() in row["prompt"].lower()
        wordings = [row["prompt"], *row["paraphrases"], *row["rephrases"]]
        assert len(set(wordings)) == len(wordings) == 8
        kinds = {probe["kind"] for probe in row["locality"]}
        assert kinds == {"same_subject", "same_object", "random"}
        for probe in row["locality"]:
            assert (probe["answer"] == row["target"]) == (probe["kind"] == "same_object")


def test_no_rephrase_of_a_relation_is_a_paraphrase_of_it(rows: list[dict]) -> None:
    """The test wordings are not given to the method under another subject either."""
    given_wordings: dict[str, set[str]] = {}
    tested_wordings: dict[str, set[str]] = {}
    for row in rows:
        # The relation's wordings, with the subject (and what grammar does to it) taken out
        for wordings, texts in (
            (given_wordings, [row["prompt"], *row["paraphrases"]]),
            (tested_wordings, row["rephrases"]),
        ):
            wordings.setdefault(row["relation"], set()).update(
                text.lower().replace(row["subject"].lower(), "…") for text in texts
            )
    for relation, tested in tested_wordings.items():
        assert tested.isdisjoint(given_wordings[relation])


def test_what_must_not_change_is_edited_nowhere(rows: list[dict]) -> None:
    edited = {
        text for row in rows for text in (row["prompt"], *row["paraphrases"], *row["rephrases"])
    }
    assert edited.isdisjoint(probe["prompt"] for row in rows for probe in row["locality"])


# --- what gates are calibrated on ----------------------------------------------------------------


def test_relations_to_calibrate_on_are_others_and_in_many_words(rows: list[dict]) -> None:
    relations = relation_wordings()
    assert len(relations) >= 40
    assert len({relation.relation for relation in relations}) == len(relations)
    shipped = {row["relation"] for row in rows}
    for relation in relations:
        assert relation.relation not in shipped
        assert len(set(relation.wordings)) >= 6
        assert len(set(relation.subjects)) == len(relation.targets) >= 4
        assert all("{subject}" in wording for wording in relation.wordings)


def test_calibration_text_has_nothing_of_the_shipped_edits(rows: list[dict]) -> None:
    shipped = {
        text
        for row in rows
        for text in (
            row["prompt"],
            *row["paraphrases"],
            *row["rephrases"],
            *(probe["prompt"] for probe in row["locality"]),
        )
    }
    asked = {
        relation.ask(wording, subject)
        for relation in relation_wordings()
        for wording in range(len(relation.wordings))
        for subject in range(len(relation.subjects))
    }
    assert shipped.isdisjoint(asked)
    assert len(set(reference_questions())) >= 300
    assert shipped.isdisjoint(reference_questions())


def test_relations_that_are_hard_to_tell_apart_are_none_of_the_shipped_ones(
    rows: list[dict],
) -> None:
    """Nor those of the locality prompts: whatever the subject, nobody asks there what is here."""
    kinds = wordings_by_kind()
    wordings = [text for kind in kinds.values() for relation in kind for text in relation]
    assert len(wordings) == len(set(wordings)) > 1000
    assert {w for relation in relation_wordings() for w in relation.wordings} < set(wordings)
    assert all(len(kind) >= 2 and all(len(asked) >= 6 for asked in kind) for kind in kinds.values())
    shipped = {
        text.replace(row["subject"], "{subject}").casefold()
        for row in rows
        for text in (
            row["prompt"],
            *row["paraphrases"],
            *row["rephrases"],
            *(probe["prompt"] for probe in row["locality"]),
        )
    }
    assert shipped.isdisjoint(text.casefold() for text in wordings)


def test_calibration_edits_leave_their_locality_prompts_alone() -> None:
    edits = calibration_edits()
    assert len(edits) > 100
    assert len({edit.id for edit in edits}) == len(edits)
    edited = {text for edit in edits for text in (edit.prompt, *edit.paraphrases, *edit.rephrases)}
    for edit in edits:
        assert edit.locality
        assert len(edit.rephrases) >= 3
        assert edited.isdisjoint(probe.prompt for probe in edit.locality)
