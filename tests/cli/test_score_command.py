"""``lightning-suite score`` as a user runs it."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resofilter_reference import literal_features
from tiny_scoring import MODEL, rows, write_config

from lightning_suite import CausalLMModule, InstructionDataModule
from lightning_suite.cli.main import main
from lightning_suite.resofilter.manifest import read_manifest
from lightning_suite.resofilter.ranking import spearman
from lightning_suite.resofilter.selection import score_column, table_columns
from lightning_suite.resofilter.store import merge_shards, shard_files

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing to learn within max_length")

Score = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Score:
    """Write data and config, run the command; returns status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, samples: Any = None, **options: Any) -> tuple[int, str, str]:
        config = write_config(tmp_path, samples, **options)
        status = main(["score", "-c", str(config), *args])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures, which take most of the time."""
    name = "lightning_suite.report.resofilter_figures.describe_scores"
    monkeypatch.setattr(name, lambda *_: None)


def table(folder: str = "scores") -> dict[str, Any]:
    return table_columns(merge_shards(folder))


def test_the_scores_are_those_of_the_literal_loop(score: Score) -> None:
    assert score("--model.init_args.dtype=float64")[0] == 0
    columns = table()
    torch.manual_seed(0)
    module = CausalLMModule(MODEL, dtype="float64").eval()
    data = InstructionDataModule("data.jsonl", tokenizer="bytes", max_length=90)
    samples = data.samples("train")
    places = {sample_id: n for n, sample_id in enumerate(samples.ids)}
    chosen = columns["sample_id"][:12].tolist()

    def loss(sample_id: str) -> Any:
        batch = samples[places[sample_id]]
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
        return lambda model: model(**inputs).loss

    names = [f"model.layers.{n}.mlp.up_proj" for n in (1, 2, 3)]
    literal = literal_features(
        module.model, [loss(i) for i in chosen], [f"{name}.weight" for name in names]
    )
    ours = np.stack([columns[f"{name}.adam1_mean_abs"][:12] for name in names], 1)
    # transformers' norms and rotations are float32 whatever the weights are
    np.testing.assert_allclose(ours, literal.numpy(), rtol=1e-7)
    assert list(ours.mean(1).argsort()) == list(literal.numpy().mean(1).argsort())


def test_a_run_leaves_table_manifest_figures_and_report(score: Score) -> None:
    status, out, _ = score("--without-prompt")
    assert status == 0
    assert "30 samples scored now, 0 before" in out
    assert "30 ok" in out
    manifest = read_manifest("scores")
    assert manifest["mode"] == "probe"
    assert manifest["weights"].startswith("sha256:")
    assert manifest["data"]["samples"] == 30
    assert manifest["depth"] == 4
    assert manifest["max_length"] == 90
    assert manifest["precision"] == {"autocast": None, "matmul": "ieee"}
    assert manifest["environment"] == {"device": "cpu", "threads": 1, "processes": 1}
    assert set(manifest["targets"].values()) == {"float32"}
    assert list(manifest["targets"]) == [f"model.layers.{n}.mlp.up_proj" for n in (1, 2, 3)]
    names = {entry["name"] for entry in json.loads(Path("scores/artifacts/index.json").read_text())}
    assert names == {
        f"resofilter_{name}"
        for name in (
            "status",
            "histogram",
            "layers",
            "against",
            "correlations",
            "overlap",
            "extremes",
        )
    }
    page = Path("scores/report.html").read_text(encoding="utf-8")
    assert "The most extreme samples" in page
    assert f"30 samples of {Path('data.jsonl').resolve()}, scored on CausalLMModule." in page
    with Path("scores/artifacts/resofilter_extremes.csv").open() as file:
        extremes = list(csv.DictReader(file))
    columns = table()
    values = score_column(columns, layers="all")
    lowest = str(columns["sample_id"][values.argmin()])
    assert extremes[0]["id"] == lowest
    (row,) = [row for row in rows() if row["id"] == lowest]
    assert extremes[0]["prompt"] == row["question"]
    assert extremes[0]["response"] == row["answer"]
    assert float(extremes[0]["score"]) == values.min()


def test_the_same_command_again_scores_nothing_and_changes_nothing(score: Score) -> None:
    score()
    before = {path: path.read_bytes() for path in shard_files("scores")}
    merged = Path("scores/scores.parquet").read_bytes()
    _, out, _ = score()
    assert "0 samples scored now, 30 before" in out
    assert {path: path.read_bytes() for path in shard_files("scores")} == before
    assert Path("scores/scores.parquet").read_bytes() == merged


def test_batches_do_not_change_the_order(score: Score) -> None:
    score()
    score("--batch_samples=1", "--out=one")
    many, one = table(), table("one")
    assert list(many["sample_id"]) == list(one["sample_id"])
    name = "model.layers.2.mlp.up_proj.unsaturation"
    assert spearman(many[name].astype(float), one[name].astype(float)) > 0.99


def test_truncated_and_label_less_samples_have_their_status(score: Score) -> None:
    data = [
        {"id": "fits", "question": "How?", "answer": "So."},
        {"id": "cut", "question": "How?", "answer": "So " * 40},
        {"id": "no answer left", "question": "How " * 40, "answer": "So."},
    ]
    status, out, _ = score(samples=data)
    assert status == 0
    assert "1 truncated" in out
    assert "1 no_labels" in out
    columns = table()
    by_id = dict(zip(columns["sample_id"], columns["status"], strict=True))
    assert by_id == {"fits": "ok", "cut": "truncated", "no answer left": "no_labels"}
    values = score_column(columns)
    assert list(np.isnan(values)) == [s == "no_labels" for s in columns["status"]]


@pytest.mark.filterwarnings("ignore:.*only the template's own tokens")
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_has_its_own_status_and_is_never_kept(score: Score, answer: str) -> None:
    data = [*rows(8), {"id": "empty", "question": "How?", "answer": answer}]
    template = "--data.init_args.prompt_template=Q: {prompt} A: {response} END"
    status, out, err = score(template, samples=data)
    assert status == 0, err
    assert "1 empty_answer" in out
    columns = table()
    at = list(columns["sample_id"]).index("empty")
    assert columns["status"][at] == "empty_answer"
    assert columns["n_label_tokens"][at] > 0, "the template's"
    for options in ([], ["--by=random"]):
        assert main(["select", "scores", "--keep=1", "--force", *options]) == 0
        kept = [json.loads(line) for line in Path("scores/kept.jsonl").read_text().splitlines()]
        assert sorted(row["id"] for row in kept) == sorted(row["id"] for row in rows(8))


def test_a_sample_longer_than_the_context_is_named(score: Score) -> None:
    data = [*rows(3), {"id": "long", "question": "How?", "answer": "So " * 60}]
    status, _, err = score("--data.init_args.max_length=200", samples=data)
    assert status == 2
    assert "sample 'long' has" in err
    assert "the model's context is 96" in err


def test_duplicate_ids_are_refused_before_the_model_is_loaded(score: Score) -> None:
    data = [*rows(3), rows(3)[1]]
    nowhere = {"class_path": "CausalLMModule", "init_args": {"pretrained": "no/such/folder"}}
    status, _, err = score(samples=data, model=nowhere)
    assert status == 2
    assert "1 id is not unique: 's001' in rows 2, 4." in err
    assert "--data.init_args.duplicate_ids number" in err
    assert not shard_files("scores")


def test_numbered_duplicates_are_told_apart_to_the_end(score: Score) -> None:
    data = [*rows(3), {**rows(3)[1], "answer": "No."}]
    status, _, err = score("--data.init_args.duplicate_ids", "number", samples=data)
    assert status == 0, err
    assert main(["select", "scores", "--keep=1"]) == 0
    kept = [json.loads(line) for line in Path("scores/kept.jsonl").read_text().splitlines()]
    assert [row["id"] for row in kept] == ["s000", "s001", "s002", "s001"], "as it was"
    names = [row["sample_id"] for row in kept]
    assert names == ["s000", "s001", "s002", "s001#2"]
    again = InstructionDataModule("scores/kept.jsonl", tokenizer="bytes", max_length=90)
    assert again.samples().ids == names


@pytest.mark.filterwarnings("ignore:.*rows repeat an earlier one")
def test_equal_rows_without_ids_are_scored_selected_and_read_again_each_as_itself(
    score: Score,
) -> None:
    bare = [{"question": row["question"], "answer": row["answer"]} for row in rows(4)]
    bare.insert(2, dict(bare[0]))  # rows 1 and 3
    status, _, err = score(samples=bare)
    assert status == 0, err
    assert main(["select", "scores", "--keep=1"]) == 0
    kept = [json.loads(line) for line in Path("scores/kept.jsonl").read_text().splitlines()]
    assert [{k: row[k] for k in ("question", "answer")} for row in kept] == bare
    names = [row["sample_id"] for row in kept]
    assert names[2] == f"{names[0]}#2"
    assert kept[0]["selection_score"] == kept[2]["selection_score"]
    again = InstructionDataModule("scores/kept.jsonl", tokenizer="bytes", max_length=90)
    assert again.samples().ids == names
    status, _, err = score(samples=bare)  # finished: the ids are those of before
    assert status == 0, err


def test_a_missing_column_is_refused(score: Score) -> None:
    status, _, err = score("--data.init_args.response_column=anwser")
    assert status == 2
    assert "response_column 'anwser' does not exist. Did you mean 'answer'?" in err


def test_another_model_under_an_old_manifest_is_refused_with_the_difference(score: Score) -> None:
    score()
    before = {path: path.read_bytes() for path in shard_files("scores")}
    status, _, err = score("--seed_everything=1")
    assert status == 2
    assert 'weights: "sha256:' in err
    assert "made with other weights of the model" in err
    status, _, err = score("--layers=all", "--modules=down_proj")
    assert status == 2
    assert 'targets.model.layers.0.mlp.down_proj: (absent) -> "float32"' in err
    status, _, err = score(samples=rows(29))
    assert status == 2
    assert "data.samples: 30 -> 29" in err
    assert "made of other data (since then samples, their ids or their texts have changed)" in err
    assert "Use a new folder (--out)" in err
    status, _, err = score("--data.init_args.max_length=80")
    assert status == 2
    assert "max_length: 90 -> 80" in err
    status, out, err = score("--threads=2")
    torch.set_num_threads(1)
    assert status == 0, "the number of threads is noted"
    assert "0 samples scored now, 30 before" in out
    assert {path: path.read_bytes() for path in shard_files("scores")} == before


@pytest.mark.usefixtures("undrawn")
def test_the_same_weights_in_another_function_are_refused_with_the_key(score: Score) -> None:
    score()
    before = {path: path.read_bytes() for path in shard_files("scores")}
    next(iter(before)).unlink()  # there is something left to score
    changed = {**MODEL, "hidden_act": "relu"}
    status, _, err = score(model={"class_path": "CausalLMModule", "init_args": {"config": changed}})
    assert status == 2
    assert 'computation.models.model.config.hidden_act: "silu" -> "relu"' in err
    assert "weights: " not in err
    assert set(shard_files("scores")) < before.keys(), "nothing was scored"
    training = [f"--model.init_args.{v}" for v in ("gradient_checkpointing=true", "optimizer.lr=1")]
    assert score(*training)[0] == 0, "how it is trained does not matter"


@pytest.mark.usefixtures("undrawn")
def test_the_same_weights_from_another_folder_go_on(score: Score) -> None:
    CausalLMModule(MODEL, init_seed=0).model.save_pretrained("a")
    shutil.copytree("a", "b")
    for name, said in (("a", "30 samples scored now"), ("b", "0 samples scored now")):
        model = {"class_path": "CausalLMModule", "init_args": {"pretrained": str(Path(name))}}
        status, out, err = score(model=model)
        assert status == 0, err
        assert said in out
    assert read_manifest("scores")["pretrained"] == "a"


@pytest.mark.usefixtures("undrawn")
def test_other_answers_under_the_same_ids_are_refused(score: Score) -> None:
    score()
    status, _, err = score(samples=[{**row, "answer": "Another."} for row in rows()])
    assert status == 2
    assert "data.sha256: " in err


@pytest.mark.usefixtures("undrawn")
def test_scores_of_a_release_that_noted_less_are_not_gone_on_with(score: Score) -> None:
    score()
    path = Path("scores/manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["computation"]
    path.write_text(json.dumps(manifest))
    status, _, err = score()
    assert status == 2
    assert "did not note what the model does with its weights" in err
    assert "Score into a new folder (--out)." in err
    assert main(["select", "scores"]) == 0


def test_16_bit_weights_are_refused_for_this_score_alone(score: Score) -> None:
    status, _, err = score("--model.init_args.dtype=bfloat16")
    assert status == 2
    assert "up_proj has torch.bfloat16 weights" in err
    half = {"features": ["grad_norm"], "out": "half"}
    assert score("--model.init_args.dtype=bfloat16", **half)[0] == 0
    assert set(table("half")["status"]) == {"ok"}


def test_planted_noise_is_written_as_it_was_scored(score: Score) -> None:
    assert score("--data.init_args.noise={gibberish: 0.2}")[0] == 0
    lines = Path("scores/data_with_noise.jsonl").read_text().splitlines()
    written = {row["id"]: row["messages"][-1]["content"] for row in map(json.loads, lines)}
    changed = [row["id"] for row in rows() if written[row["id"]] != row["answer"]]
    assert len(written) == 30
    assert len(changed) == 6
    source = json.loads(Path("scores/source.json").read_text())
    assert source["source"].endswith("scores/data_with_noise.jsonl")


def test_a_full_disk_costs_nothing_that_is_written(
    score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    score("--out=whole")
    real, written = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("lightning_suite.files.os.fsync", full)
        status, _, err = score()
    assert status == 2
    assert "cannot be written (No space left on device)" in err
    assert "make room and start the same command again" in err
    there = len(table()["sample_id"])
    assert 0 < there < 30
    status, out, _ = score()
    assert f"{30 - there} samples scored now, {there} before" in out
    merged = [Path(folder, "scores.parquet").read_bytes() for folder in ("scores", "whole")]
    assert merged[0] == merged[1]


def test_blocks_of_text_have_their_index_as_id(score: Score) -> None:
    data = {
        "class_path": "TextDataModule",
        "init_args": {"source": "data.jsonl", "block_size": 64, "batch_size": 4},
    }
    status, _, err = score(data=data)
    assert status == 0, err
    columns = table()
    assert list(columns["sample_id"]) == [str(n) for n in range(len(columns["sample_id"]))]
    assert set(columns["status"]) == {"ok"}


IMAGES = {
    "modules": "all",
    "layers": "all",
    "features": ["grad_norm"],
    "data": {
        "class_path": "ImageDataModule",
        "init_args": {"source": "digits", "batch_size": 16, "limit": 40},
    },
}
NET = {
    "architecture": "mlp",
    "width": 8,
    "depth": 2,
    "readout_init": "normal",
    "image_shape": [1, 8, 8],
}

USERS = """
import torch
from lightning.pytorch import LightningModule
from lightning_suite import ResidualNetModule

class Users(LightningModule):
    '''Has a training_step and nothing else that score could use.'''
    def __init__(self):
        super().__init__()
        self.net = ResidualNetModule(width=8, depth=2, readout_init="normal").net

    def training_step(self, batch, index):
        self.log("train_loss", torch.tensor(0.0))
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
"""


def test_images_with_our_module_and_a_user_s_own(score: Score) -> None:
    pytest.importorskip("sklearn")
    ours = {"class_path": "ResidualNetModule", "init_args": NET}
    status, _, err = score(**IMAGES, model=ours, out="ours")
    assert status == 0, err
    Path("users_images.py").write_text(USERS)
    users = {"class_path": "users_images.Users"}
    status, out, _ = score(**IMAGES, model=users, out="users")
    assert status == 0
    assert "40 ok" in out
    one, other = table("ours"), table("users")
    assert list(one["sample_id"]) == [str(n) for n in range(40)]
    names = [name for name in one if name.endswith("grad_norm")]
    assert len(names) == 6
    for name in [*names, "loss"]:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4)


SEQUENCES = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule

class Data(LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x))

class Sequences(LightningModule):
    def __init__(self, first=True):
        super().__init__()
        self.layer, self.first = torch.nn.Linear(3, 2), first

    def sample_losses(self, batch):
        x = batch[0] if self.first else batch[0].transpose(0, 1)
        return self.layer(x).tanh().mean(1 if self.first else 0).square().sum(1)
"""


def test_batches_with_as_many_samples_as_positions_are_halved(score: Score) -> None:
    Path("users_sequences.py").write_text(SEQUENCES)
    options: dict[str, Any] = {
        "modules": "all",
        "layers": "all",
        "features": ["grad_norm"],
        "model": {"class_path": "users_sequences.Sequences"},
        "data": {"class_path": "users_sequences.Data"},
    }
    assert score(**options, batch_samples=4, out="square")[0] == 0
    assert score(**options, batch_samples=5, out="plain")[0] == 0
    assert list(table("square")["sample_id"]) == [str(n) for n in range(10)]
    np.testing.assert_allclose(
        table("square")["layer.grad_norm"], table("plain")["layer.grad_norm"], rtol=1e-5
    )
    options["model"]["init_args"] = {"first": False}
    status, _, err = score(**options, batch_samples=4, out="transposed")
    assert status == 2
    assert "layer: cannot tell the samples apart" in err


def test_without_a_model_the_shipped_config_is_pointed_to(capsys: Any) -> None:
    assert main(["score"]) == 2
    assert "lightning-suite score -c resofilter/score" in capsys.readouterr().err
