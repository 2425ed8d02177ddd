"""Files that only append to a list count behind those that set it, wherever they stand."""

from __future__ import annotations

from itertools import permutations

import pytest
import yaml

from lightning_suite.cli.main import main
from lightning_suite.cli.stacking import resolve_options
from lightning_suite.cli.trainer_sweep import TrainerEngine

FILES = {
    "base": "trainer: {max_epochs: 3, callbacks: [{class_path: LearningRateMonitor}]}",
    "other": "seed_everything: 4",
    "timer": "trainer: {callbacks+: [{class_path: DeviceStatsMonitor}]}",
    "summary": "trainer: {callbacks+: [{class_path: RichModelSummary}]}",
    "both": "trainer: {callbacks+: [{class_path: Timer}], logger+: [{class_path: CSVLogger}]}",
    "epochs": "trainer: {max_epochs: 5, callbacks+: [{class_path: DeviceStatsMonitor}]}",
    "quiet": "trainer: {logger: false}",
    "cleared": "trainer: {callbacks: null, logger: null}",
    "broken": "trainer: [",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ("timer base", "base timer"),
        ("timer other summary base", "other base timer summary"),
        ("timer base summary", "base timer summary"),
        ("base timer other", "base timer other"),
        ("timer base base", "base base timer"),
        ("both quiet base", "quiet base both"),
        ("both base cleared", "base cleared both"),
        ("epochs base", "epochs base"),  # its other key would count otherwise than it stands
        ("timer other", "timer other"),
        ("both quiet", "both quiet"),  # no list: nothing can be appended
        ("timer broken nowhere base", "broken nowhere base timer"),
    ],
)
def test_the_order_in_which_files_count(files, given, counts):
    words = [word for name in given.split() for word in ("-c", name)]
    assert resolve_options(words)[1::2] == counts.split()
    assert resolve_options(resolve_options(words)) == resolve_options(words)


def test_options_stay_where_they_are(files):
    words = ["fit", "--config=timer", "--trainer.max_epochs", "3", "-c", "base", "--print_config"]
    expected = [*words[:1], *words[2:-1], "--config=timer", "--print_config"]
    assert resolve_options(words) == expected


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_trainer_command_keeps_all_callbacks_in_any_order(files, project, capsys, command):
    for order in permutations(["base", "timer", "summary"]):
        words = [word for name in order for word in ("-c", name)]
        assert main([command, "-c", "base.yaml", *words, "--print_config"]) == 0
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        names = [item["class_path"].rpartition(".")[2] for item in trainer["callbacks"]]
        assert names[0] == "LearningRateMonitor"
        assert names[1:] == [name for name in map(NAMES.get, order) if name]


NAMES = {"timer": "DeviceStatsMonitor", "summary": "RichModelSummary"}


def test_the_files_of_a_sweep_are_merged_as_those_of_fit(files, project):
    (project / "depth.yaml").write_text("model: {init_args: {lr: 0.1}}")
    engine = TrainerEngine(
        ["timer", "base", "base.yaml", "depth.yaml"], base_depth=4, depth_key="width"
    )
    names = [c["class_path"].rpartition(".")[2] for c in engine.config["trainer"]["callbacks"]]
    assert names == ["LearningRateMonitor", "DeviceStatsMonitor"]
