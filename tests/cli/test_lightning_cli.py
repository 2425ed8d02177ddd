"""`fit` and its kin over modules that know nothing of this package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

import lightning_suite
from lightning_suite.cli.lightning_cli import ParserOnly, with_run_folder
from lightning_suite.cli.main import main
from lightning_suite.errors import SuiteError

# A resumed run has a folder of its own; Lightning says that the list of best models starts anew.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def resolved(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    """Return what ``--print_config`` prints."""
    assert main([*args, "--print_config"]) == 0
    config: dict = yaml.safe_load(capsys.readouterr().out)
    return config


def overlay(path: Path, callback: str, **init_args: object) -> str:
    entry = {"class_path": callback, "init_args": init_args}
    path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [entry]}}))
    return str(path)


# --- running -------------------------------------------------------------------------------------


def test_fit_of_a_foreign_module_leaves_a_run_folder(project, capsys):
    assert main(["fit", "-c", "base.yaml"]) == 0
    folder = project / "lightning_logs/version_0"
    said = capsys.readouterr().out
    assert "lightning-suite report lightning_logs/version_0" in said
    checkpoint = said.partition("Checkpoint: ")[2].splitlines()[0]
    assert checkpoint.startswith("lightning_logs/version_0/checkpoints/")
    assert (project / checkpoint).is_file()
    assert "train_loss" in (folder / "metrics.csv").read_text().splitlines()[0]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["width"] == 4
    record = json.loads((folder / "run.json").read_text())
    assert record["command"] == ["lightning-suite", "fit", "-c", "base.yaml"]
    assert record["seed"] == 1
    assert yaml.safe_load(record["config"]) == config
    assert record["state"] == "finished"
    assert record["ended"] >= record["time"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_checkpoint_of_a_fixed_name_is_that_of_the_newest_fit(project, capsys):
    kept = overlay(
        project / "kept.yaml",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        dirpath="kept",
        filename="best",
        enable_version_counter=False,
    )
    saved = []
    for epochs in (1, 2):
        assert main(["fit", "-c", "base.yaml", "-c", kept, f"--trainer.max_epochs={epochs}"]) == 0
        said = capsys.readouterr().out.partition("Checkpoint: ")[2].splitlines()[0]
        saved.append((said, torch.load("kept/best.ckpt", weights_only=True)["epoch"]))
    replaced = "kept/best.ckpt (of this fit; an earlier file of that name is replaced)"
    assert saved == [("kept/best.ckpt", 0), (replaced, 1)]


def test_a_run_that_stops_notes_why(project):
    (project / "stopping.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Stops(Callback):\n"
        "    def on_train_batch_start(self, trainer, *args):\n"
        "        if trainer.global_step == 1:\n"
        "            raise ValueError('odd\\nrows')\n"
    )
    config = overlay(project / "stops.yaml", "stopping.Stops")
    with pytest.raises(ValueError, match="odd"):
        main(["fit", "-c", "base.yaml", "-c", config])
    record = json.loads((project / "lightning_logs/version_0/run.json").read_text())
    assert (record["state"], record["stopped_by"]) == ("stopped", "ValueError: odd rows")


def test_a_run_that_is_still_going_on_says_so(project):
    (project / "looking.py").write_text(
        "import json, pathlib\n"
        "from lightning.pytorch import Callback\n"
        "class Looks(Callback):\n"
        "    def on_train_batch_start(self, trainer, *args):\n"
        "        path = pathlib.Path(trainer.log_dir, 'run.json')\n"
        "        pathlib.Path('seen').write_text(json.loads(path.read_text())['state'])\n"
    )
    assert main(["fit", "-c", "base.yaml", "-c", overlay(project / "o.yaml", "looking.Looks")]) == 0
    assert (project / "seen").read_text() == "running"


def test_a_run_can_be_made_again_from_its_saved_config(project):
    assert main(["fit", "-c", "base.yaml"]) == 0
    assert main(["fit", "-c", "lightning_logs/version_0/config.yaml"]) == 0
    first, second = (
        (project / f"lightning_logs/version_{n}/metrics.csv").read_text() for n in (0, 1)
    )
    assert first == second


def test_without_logger_nothing_is_written(project, capsys):
    before = set(project.iterdir())
    args = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    assert main(["fit", "-c", "base.yaml", *args]) == 0
    assert {path for path in project.iterdir() if path.name != "__pycache__"} == before
    assert "Run folder" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*barebones")
def test_fast_dev_run_and_barebones_work(project):
    assert main(["fit", "-c", "base.yaml", "--trainer.fast_dev_run=true"]) == 0
    quick = ["--trainer.barebones=true", "--trainer.log_every_n_steps=null"]
    assert main(["fit", "-c", "base.yaml", *quick]) == 0
    assert not (project / "lightning_logs").exists()


def test_second_run_with_wandb_alone_works(project):
    """Lightning's own CLI finds the first run's config in the shared folder and stops."""
    wandb = pytest.importorskip("wandb")
    for number in (0, 1):
        assert main(["fit", "-c", "base.yaml", "-c", "overlays/wandb_offline"]) == 0
        wandb.finish()  # as the end of the process does
        assert (project / f"lightning_logs/version_{number}/config.yaml").exists()
    assert len(list(project.glob("wandb/offline-run-*"))) == 2


# --- composing -----------------------------------------------------------------------------------


def test_overlays_in_any_order_give_the_same_callbacks(project, capsys):
    files = [
        "base.yaml",
        overlay(project / "b.yaml", "EarlyStopping", monitor="train_loss"),
        overlay(project / "c.yaml", "users_callbacks.Mine"),
    ]
    (project / "users_callbacks.py").write_text(
        "from lightning.pytorch import Callback\nclass Mine(Callback): pass\n"
    )
    seen = set()
    for order in permutations(files):
        options = [word for file in order for word in ("-c", file)]
        callbacks = resolved(capsys, "fit", *options)["trainer"]["callbacks"]
        seen.add(frozenset(json.dumps(entry, sort_keys=True) for entry in callbacks))
    assert len(seen) == 1
    assert len(seen.pop()) == 2


def test_overlay_appends_to_a_plain_list_and_to_a_single_logger(project, capsys):
    (project / "plain.yaml").write_text(
        "trainer:\n"
        "  logger: {class_path: CSVLogger, init_args: {save_dir: .}}\n"
        "  callbacks: [{class_path: LearningRateMonitor}]\n"
    )
    added = overlay(project / "a.yaml", "EarlyStopping", monitor="train_loss")
    files = ["-c", "base.yaml", "-c", "plain.yaml", "-c", added, "-c", "overlays/wandb_offline"]
    trainer = resolved(capsys, "fit", *files)["trainer"]
    names = [entry["class_path"].rpartition(".")[2] for entry in trainer["callbacks"]]
    assert names == ["LearningRateMonitor", "EarlyStopping"]
    names = [entry["class_path"].rpartition(".")[2] for entry in trainer["logger"]]
    assert names == ["CSVLogger", "WandbLogger"]


def test_options_after_the_files_win(project, capsys):
    config = resolved(capsys, "fit", "-c", "base.yaml", "--model.init_args.width=8")
    assert config["model"]["init_args"]["width"] == 8


@pytest.mark.parametrize(
    ("name", "init_args"),
    [
        ("DepthMuPLRCallback", {"base_depth": 2}),
        ("FeatureDynamicsMonitor", {}),
        ("GradientFeatureCallback", {}),
        ("ExpertGateCallback", {}),
        ("AttachNewStudentsCallback", {}),
        ("DiagnosisReportCallback", {}),
    ],
)
def test_our_callbacks_go_by_short_name_and_can_be_dumped(project, capsys, name, init_args):
    """Defaults that YAML cannot hold break ``--print_config``, as Lightning's Timer does."""
    path = overlay(project / "ours.yaml", name, **init_args)
    (entry,) = resolved(capsys, "fit", "-c", "base.yaml", "-c", path)["trainer"]["callbacks"]
    assert entry["class_path"].endswith(f".{name}")
    again = {"trainer": {"callbacks": [entry]}}
    files = ["-c", "base.yaml", "-c", json.dumps(again)]
    assert resolved(capsys, "fit", *files)["trainer"]["callbacks"] == [entry]


def test_every_public_callback_is_tested_above():
    public = [getattr(lightning_suite, name) for name in lightning_suite.__all__]
    callbacks = {c.__name__ for c in public if isinstance(c, type) and issubclass(c, Callback)}
    (mark,) = [
        mark
        for mark in test_our_callbacks_go_by_short_name_and_can_be_dumped.pytestmark
        if mark.name == "parametrize"
    ]
    assert callbacks == {name for name, _ in mark.args[1]}


def test_all_trainer_commands_take_the_same_config(project, capsys):
    for command in ("fit", "validate", "test", "predict"):
        config = resolved(capsys, command, "-c", "base.yaml")
        assert config["model"]["class_path"] == "users_project.Net"


# --- errors --------------------------------------------------------------------------------------


def test_a_config_with_typos_gives_all_of_them_at_once(project, capsys):
    (project / "typos.yaml").write_text(
        "trainer:\n  max_epoch: 3\nmodel:\n  init_args:\n    widht: 3\n"
    )
    assert main(["fit", "-c", "base.yaml", "-c", "typos.yaml"]) == 2
    error = capsys.readouterr().err
    assert "typos.yaml:2: error: trainer.max_epoch: unknown key. Did you mean 'max_ep" in error
    assert "typos.yaml:5: error: model.init_args.widht: unknown key. Did you mean 'wid" in error
    assert "Traceback" not in error


def test_a_wrong_option_is_named_without_the_usage(project, capsys):
    assert main(["fit", "-c", "base.yaml", "--trainer.max_epochs=many"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "lightning-suite: error: --trainer.max_epochs: expected int or null, got 'many'\n"
    )


TOO_MUCH_CORRECTION = """
trainer:
  callbacks:
    - class_path: DepthMuPLRCallback
      init_args: {base_depth: 4, p: 0.7}
"""


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ("model: {init_args: {base_depth: 0}}", "ResidualNetModule: base_depth=0, and it must be"),
        ("model: {init_args: {depth: 0}}", "ResidualNetModule: depth=0, and it must be at least"),
        ("model: {init_args: {block_depth: 3}}", "ResidualNetModule: block_depth=3; a branch has"),
        (TOO_MUCH_CORRECTION, "the correction exponent is p=0.7"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "doctor"])
def test_what_a_constructor_refuses_is_one_line(project, capsys, command, overlay, message):
    Path("overlay.yaml").write_text(overlay)
    assert main([command, "-c", "depth_mup/digits", "-c", "overlay.yaml"]) == 2
    errors = capsys.readouterr().err
    assert "lightning-suite: error: " in errors
    assert message in errors
    assert "Traceback" not in errors
    assert "Subtypes" not in errors


def test_the_traceback_of_a_constructor_is_shown_when_asked(project, monkeypatch):
    monkeypatch.setenv("LIGHTNING_SUITE_TRACEBACK", "1")
    with pytest.raises(SuiteError, match="depth=0") as caught:
        main(["fit", "-c", "depth_mup/digits", "--model.init_args.depth=0"])
    assert caught.value.__cause__ is not None


def test_an_error_of_a_users_constructor_keeps_its_traceback(project):
    with pytest.raises(Exception, match="negative dimension"):
        main(["fit", "-c", "base.yaml", "--model.init_args.width=-4"])


def test_abbreviated_options_are_refused(project, capsys):
    assert main(["fit", "-c", "base.yaml", "--trainer.max_epoch=3"]) == 2
    assert "--trainer.max_epoch: unknown option." in capsys.readouterr().err


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(project, capsys) -> Path:
    """The checkpoint of a run of ``base.yaml``."""
    assert main(["fit", "-c", "base.yaml"]) == 0
    (path,) = project.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    capsys.readouterr()
    return path


def edited(path: Path, **changes: object) -> str:
    state = torch.load(path, weights_only=True)
    state.update(changes)
    torch.save(state, path.with_name("edited.ckpt"))
    return str(path.with_name("edited.ckpt"))


def test_resume_continues(checkpoint, project):
    resume = ["--ckpt_path", str(checkpoint), "--trainer.max_epochs=2"]
    assert main(["fit", "-c", "base.yaml", *resume]) == 0
    lines = (project / "lightning_logs/version_1/metrics.csv").read_text().splitlines()
    assert len(lines) == 3  # the header and the two steps of the second epoch


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
def test_a_run_that_saves_nothing_does_not_show_its_input_as_its_result(project, capsys):
    assert main(["fit", "-c", "base.yaml"]) == 0
    (path,) = project.glob("lightning_logs/version_0/checkpoints/*.ckpt")
    capsys.readouterr()
    assert main(["fit", "-c", "base.yaml", f"--ckpt_path={path}"]) == 0  # nothing left to train
    said = capsys.readouterr().out
    assert "Checkpoint: none was written in this run" in said


@pytest.mark.filterwarnings("ignore:.*dataloader is not resumable")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_goes_on_twice_trains_no_epoch_too_many(project: Path) -> None:
    def fit(folder: str, *more: str) -> list[int]:
        saves = (
            f"{{dirpath: {folder}, filename: '{{step}}', every_n_train_steps: 1, save_top_k: -1}}"
        )
        Path("saves.yaml").write_text(
            "trainer:\n  callbacks+:\n"
            "    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
            f"      init_args: {saves}\n"
        )
        words = ["fit", "-c", "base.yaml", "-c", "saves.yaml", "--trainer.max_epochs=3", *more]
        assert main(words) == 0
        return sorted(int(path.stem[5:]) for path in Path(folder).iterdir())

    # an epoch has two batches: the second checkpoint is one of an epoch's end
    assert fit("whole") == [1, 2, 3, 4, 5, 6]
    assert fit("once", "--ckpt_path=whole/step=2.ckpt") == [3, 4, 5, 6]
    assert fit("twice", "--ckpt_path=once/step=3.ckpt") == [4, 5, 6]


@pytest.mark.parametrize(
    ("config", "option", "value"),
    [
        ("lmcd/my_class", "source", "nowhere"),
        ("scen/edit", "prompts", "nowhere.txt"),
        ("resofilter/select_and_fit", "source", "nowhere.jsonl"),
    ],
)
def test_missing_data_is_named_before_a_model_is_loaded(project, capsys, config, option, value):
    words = ["fit", "-c", config, f"--data.init_args.{option}={value}"]
    assert main([*words, "--model.init_args.pretrained=no_such_model"]) == 2
    said = capsys.readouterr().err
    assert value in said
    assert "no_such_model" not in said


def test_missing_checkpoint_is_named(project, capsys):
    assert main(["fit", "-c", "base.yaml", "--ckpt_path", "none.ckpt"]) == 2
    assert "--ckpt_path none.ckpt: there is no such file" in capsys.readouterr().err
    (project / "best.ckpt").touch()
    assert main(["validate", "-c", "base.yaml", "--ckpt_path", "bst.ckpt"]) == 2
    assert capsys.readouterr().err.endswith("no such file. Did you mean 'best.ckpt'?\n")


@pytest.mark.parametrize(
    "content", [b"junk", b"holds no checkpoint at all", b"\x80\x02]q\x00h\x07."]
)
def test_a_file_that_is_no_checkpoint_is_named_without_torch_s_own_numbers(
    project, capsys, content
):
    (project / "junk.ckpt").write_bytes(content)
    assert main(["fit", "-c", "base.yaml", "--ckpt_path", "junk.ckpt"]) == 2
    said = capsys.readouterr().err
    assert "junk.ckpt" in said
    assert not re.search(r": \d+$", said.strip())
    assert "weights_only=False" not in said  # no advice to trust what nobody knows


@pytest.mark.parametrize(
    ("kept", "advice"),
    [({}, "save_weights_only"), ({"lmcd": {}}, "AttachNewStudentsCallback writes such files")],
)
def test_a_model_alone_is_no_training_to_go_on_with(checkpoint, capsys, kept, advice):
    state = torch.load(checkpoint, weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "callbacks"):  # as `save_weights_only` does
        del state[key]
    torch.save({**state, **kept}, "model.ckpt")
    assert main(["fit", "-c", "base.yaml", "--ckpt_path", "model.ckpt"]) == 2
    said = capsys.readouterr().err
    assert "--ckpt_path model.ckpt: fit cannot go on from here" in said
    assert advice in said
    assert "add their answers" in said or not kept


def test_checkpoint_of_a_plain_trainer_resumes_with_the_model_of_the_config(checkpoint, project):
    path = edited(checkpoint, hyper_parameters={"width": 4, "lr": 0.1, "unknown": 1})
    assert main(["fit", "-c", "base.yaml", "--ckpt_path", path, "--trainer.max_epochs=2"]) == 0


def test_checkpoint_that_needs_pickle_is_refused_with_the_way_out(checkpoint, capsys):
    path = edited(checkpoint, hyper_parameters={"here": Path()})
    assert main(["fit", "-c", "base.yaml", "--ckpt_path", path]) == 2
    error = capsys.readouterr().err
    assert "holds more than tensors and plain values" in error
    assert "torch.save(c, 'plain.ckpt')" in error


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resume_without_the_learning_rate_callback_says_which_overlay(checkpoint, capsys):
    path = edited(checkpoint, hyper_parameters={}, callbacks={"DepthMuPLRCallback": {}})
    args = ["--model=users_project.TwoGroups", "--model.init_args.width=4"]
    assert main(["fit", "-c", "base.yaml", *args, "--ckpt_path", path]) == 2
    error = capsys.readouterr().err
    assert "was trained with DepthMuPLRCallback" in error
    assert "-c configs/overlays/depth_mup.yaml" in error


def test_other_mismatch_of_parameter_groups_lists_the_callbacks(checkpoint, capsys):
    path = edited(checkpoint, hyper_parameters={})
    args = ["--model=users_project.TwoGroups", "--model.init_args.width=4"]
    assert main(["fit", "-c", "base.yaml", *args, "--ckpt_path", path]) == 2
    assert "has other parameter groups than this run" in capsys.readouterr().err


# --- parts ---------------------------------------------------------------------------------------


def test_the_first_logger_always_makes_a_folder_a_run(tmp_path):
    other = DummyLogger()
    csv = CSVLogger(tmp_path)
    assert with_run_folder(False, "root") == []
    for default in (None, True):
        (made,) = with_run_folder(default, "root")
        assert isinstance(made, CSVLogger)
        assert made.save_dir == "root"
    assert with_run_folder(csv, "root") == [csv]
    assert with_run_folder([other, csv], "root") == [csv, other]
    added = with_run_folder(other, "root")
    assert isinstance(added[0], CSVLogger)
    assert added[1:] == [other]


def test_parsers_can_be_had_without_running_anything():
    assert set(ParserOnly().parsers) == {"fit", "validate", "test", "predict"}


def test_a_missing_wandb_is_one_line(project, capsys, monkeypatch):
    path = overlay(project / "w.yaml", "WandbLogger", offline=True)
    path = Path(path)
    path.write_text(path.read_text().replace("callbacks+", "logger"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["fit", "-c", "base.yaml", "-c", str(path)]) == 2
    assert "pip install 'lightning-suite[wandb]'" in capsys.readouterr().err


def test_wandb_without_an_account_is_one_line(project):
    """In a process of its own: W&B reads its settings once a process."""
    path = Path(overlay(project / "w.yaml", "WandbLogger"))
    path.write_text(path.read_text().replace("callbacks+", "logger"))
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_suite", "fit", "-c", "base.yaml", "-c", str(path)],
        env={**env, "HOME": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    # in W&B's own words, which change
    assert re.search(r"lightning-suite: error: W&B: .*\bapi.key\b", done.stderr, re.I)
    assert "overlays/wandb_offline" in done.stderr
    assert "Traceback" not in done.stderr
