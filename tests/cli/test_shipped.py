"""`list` and `cp`: the configs of the package."""

from __future__ import annotations

import importlib
import json
import re

import pytest
import yaml

from lightning_suite.cli.main import main
from lightning_suite.cli.shipped import describe, resolve, shipped_configs
from lightning_suite.cli.stacking import resolve_options


def test_list_shows_every_config_with_its_first_comment(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name, config in shipped_configs().items():
        assert any(line.split() == [name, *describe(config).split()] for line in text.splitlines())


def test_list_as_json(capsys):
    assert main(["list", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)
    assert {"overlays/wandb", "overlays/wandb_offline"} <= set(names)
    assert all(names.values())


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_every_config_says_what_it_is_in_its_first_line(name):
    text = shipped_configs()[name].read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 100
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_a_copy_can_be_read_by_anybody_s_own_lightning_cli(name):
    """It knows no short names of classes that nothing has imported."""
    text = shipped_configs()[name].read_text(encoding="utf-8")
    for path in re.findall(r"class_path: *(\S+)", text):
        module, _, cls = path.rpartition(".")
        assert module, f"{path} is a short name"
        assert hasattr(importlib.import_module(module), cls)


@pytest.mark.parametrize(
    "name", ["overlays/wandb", "overlays/wandb.yaml", "wandb", "configs/overlays/wandb.yaml"]
)
def test_cp_accepts_every_way_to_name_a_config(name, tmp_path, capsys):
    assert main(["cp", name, str(tmp_path / "mine.yaml")]) == 0
    assert "WandbLogger" in (tmp_path / "mine.yaml").read_text()
    assert capsys.readouterr().out == f"{tmp_path / 'mine.yaml'}\n"


def test_cp_into_a_folder_keeps_the_name(tmp_path):
    assert main(["cp", "wandb", str(tmp_path)]) == 0
    assert (tmp_path / "wandb.yaml").exists()


def test_cp_dash_prints(capsys):
    assert main(["cp", "wandb", "-"]) == 0
    expected = shipped_configs()["overlays/wandb"].read_text(encoding="utf-8")
    assert capsys.readouterr().out == expected


def test_cp_overwrites_only_when_forced(tmp_path, capsys):
    target = tmp_path / "mine.yaml"
    target.write_text("precious")
    assert main(["cp", "wandb", str(target)]) == 2
    assert "add --force" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert main(["cp", "wandb", str(target), "--force"]) == 0
    assert "WandbLogger" in target.read_text()


def test_cp_unknown_name_suggests_the_nearest(capsys):
    assert main(["cp", "wandb_ofline", "-"]) == 2
    assert "Did you mean 'overlays/wandb_offline'?" in capsys.readouterr().err


def test_shipped_names_stand_for_files_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(shipped_configs()["overlays/wandb"])
    assert resolve("overlays/wandb") == shipped
    words = ["-c", "overlays/wandb", "--config=configs/overlays/wandb.yaml"]
    assert resolve_options(words) == ["-c", shipped, f"--config={shipped}"]
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays/wandb").write_text("mine")
    assert resolve("overlays/wandb") == "overlays/wandb"  # the user's own file wins
    assert resolve_options(["--model", "overlays/none"]) == ["--model", "overlays/none"]


@pytest.mark.parametrize("name", shipped_configs())
def test_the_first_line_of_a_config_says_all_that_the_list_shows(name):
    first, second, *_ = shipped_configs()[name].read_text(encoding="utf-8").splitlines()
    assert first == f"# {describe(shipped_configs()[name])}"
    assert not first.endswith((";", ",", ":"))
    assert " -c" not in first  # how it is used stands below
    assert second == "#" or not second.startswith("#")
