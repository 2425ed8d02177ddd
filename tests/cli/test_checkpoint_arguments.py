"""``--ckpt_path`` beside a configuration: what counts where the two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_suite.cli.checkpoint_arguments import checkpoint_arguments
from lightning_suite.cli.main import main
from lightning_suite.errors import SuiteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]
LM = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIG = {
    "seed_everything": 1,
    "trainer": {
        "max_steps": 1,
        "limit_val_batches": 1,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {
        "class_path": "CausalLMModule",
        "init_args": {
            "config": LM,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
        },
    },
    "data": {
        "class_path": "TextDataModule",
        "init_args": {
            "source": "text.txt",
            "tokenizer": "bytes",
            "block_size": 16,
            "batch_size": 2,
        },
    },
}


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> str:
    """A checkpoint of ``my.yaml``, a language model of two layers."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some words to learn from; " * 40)
    Path("my.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["fit", "-c", "my.yaml"]) == 0
    (path,) = Path("lightning_logs/version_0/checkpoints").glob("*.ckpt")
    capsys.readouterr()
    return str(path)


def resolved_model(version: int) -> dict[str, Any]:
    text = Path(f"lightning_logs/version_{version}/config.yaml").read_text()
    model: dict[str, Any] = yaml.safe_load(text)["model"]["init_args"]
    return model


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_another_network_than_the_checkpoint_s_is_refused_with_its_keys(trained, capsys, command):
    other = ["--model.init_args.config.num_hidden_layers=3", "--model.init_args.lora={r: 2}"]
    assert main([command, "-c", "my.yaml", *other, "--ckpt_path", trained]) == 2
    said = capsys.readouterr().err
    assert f"--ckpt_path {trained}: the configuration asks for another model" in said
    assert "model.init_args.config.num_hidden_layers: 2 in the checkpoint, 3 given" in said
    assert "model.init_args.lora: null in the checkpoint, {'r': 2} given" in said
    assert "hidden_size" not in said  # alike


def test_another_network_in_a_file_is_refused(trained, capsys):
    Path("my.yaml").write_text(Path("my.yaml").read_text().replace("layers: 2", "layers: 1"))
    assert main(["fit", "-c", "my.yaml", "--ckpt_path", trained]) == 2
    assert "num_hidden_layers: 2 in the checkpoint, 1 given" in capsys.readouterr().err


def test_the_type_that_was_asked_for_is_the_one_that_counts(trained):
    asked = ["--model.init_args.dtype=float64", "--ckpt_path", trained]
    assert main(["validate", "-c", "my.yaml", *asked]) == 0
    assert resolved_model(1)["dtype"] == "float64"
    assert resolved_model(1)["config"]["num_hidden_layers"] == 2


def test_what_nobody_gave_comes_from_the_checkpoint(trained):
    config = {**CONFIG, "model": {"class_path": "CausalLMModule"}}
    Path("bare.yaml").write_text(yaml.safe_dump(config))
    assert main(["validate", "-c", "bare.yaml", "--ckpt_path", trained]) == 0
    assert resolved_model(1)["config"]["hidden_size"] == 8


def test_another_optimizer_does_not_matter_to_an_evaluation(trained):
    other = ["--model.init_args.optimizer.init_args.lr=0.5", "--ckpt_path", trained]
    assert main(["validate", "-c", "my.yaml", *other]) == 0


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_rate_that_the_restored_optimizer_undoes_is_said_to_have_no_effect(trained, capsys, rate):
    other = [f"--model.init_args.optimizer.init_args.lr={rate}", "--trainer.max_steps=2"]
    assert main(["fit", "-c", "my.yaml", *other, "--ckpt_path", trained]) == 0
    (path,) = Path("lightning_logs/version_1/checkpoints").glob("*.ckpt")
    (optimizer,) = torch.load(path, weights_only=True)["optimizer_states"]
    assert optimizer["param_groups"][0]["lr"] == 0.1
    told = "optimizer.init_args.lr: 0.1 in the checkpoint, 0.5 given" in capsys.readouterr().err
    assert told == (rate != 0.1)


def test_the_run_s_own_config_goes_with_its_checkpoint(trained):
    run = ["-c", "lightning_logs/version_0/config.yaml", "--trainer.max_steps=2"]
    assert main(["fit", *run, "--ckpt_path", trained]) == 0
    (path,) = Path("lightning_logs/version_1/checkpoints").glob("*.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 2


HPARAMS = {"_class_path": "users.Net", "_instantiator": "x", "width": 4, "lr": 0.1, "shape": [1, 2]}


def arguments(trains: bool = False, kind: str = "users.Net", **given: object) -> dict[str, Any]:
    section = {"class_path": kind, "init_args": given}
    return checkpoint_arguments("a.ckpt", HPARAMS, section, trains=trains)


def test_a_class_that_has_moved_is_the_same_class():
    taken = arguments(kind="users.nets.Net")
    assert taken["class_path"] == "users.nets.Net"
    assert taken["dict_kwargs"] == {"width": 4, "lr": 0.1, "shape": [1, 2]}


def test_another_class_is_refused():
    with pytest.raises(SuiteError, match=r"model\.class_path: users\.Net .* users\.Other given"):
        arguments(kind="users.Other")


def test_a_learning_rate_that_the_optimizer_s_state_would_undo_is_refused_in_training_alone():
    arguments(lr=0.5)
    with pytest.raises(SuiteError, match=r"init_args\.lr: 0\.1 in the checkpoint, 0\.5 given"):
        arguments(lr=0.5, trains=True)


def test_equal_values_of_other_types_are_equal():
    arguments(trains=True, shape=(1, 2), width=4.0)
