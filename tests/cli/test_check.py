"""`check` finds all problems at once, and agrees with `fit`."""

from __future__ import annotations

import copy
import random
import re

import pytest
import yaml

from lightning_suite.cli.commands.check import run
from lightning_suite.cli.lightning_cli import ParserOnly
from lightning_suite.cli.main import main
from lightning_suite.cli.parsing import prepare_classes
from lightning_suite.cli.problems import config_files, find_problems
from lightning_suite.cli.shipped import shipped_configs


@pytest.fixture(scope="module")
def parser():
    return ParserOnly().parsers["fit"]


@pytest.fixture
def check(project, capsys):
    """Check YAML texts as a stack on top of ``base.yaml``; return the exit status and the lines."""

    def check(*texts: str, base: str = "base.yaml") -> tuple[int, list[str]]:
        files = [base] if base else []
        for number, text in enumerate(texts):
            name = f"{number}.yaml"
            (project / name).write_text(text)
            files.append(name)
        status = run(files)
        return status, capsys.readouterr().out.splitlines()

    return check


def test_a_good_stack_is_ok(check):
    assert check("trainer:\n  max_epochs: 2\n") == (0, ["base.yaml + 0.yaml: ok"])


def test_all_problems_come_at_once_each_with_its_line(check):
    status, lines = check(
        """\
trainer:
  max_epoch: 3
  max_steps: many
  callbacks:
    - class_path: EarlyStoping
    - class_path: EarlyStopping
      init_args:
        monitr: train_loss
        patience: long
    - class_path: EarlyStopping
modle:
  class_path: users_project.Net
model:
  init_args:
    width: wide
    lr: 0.5
  init_arg:
    lr: 0.5
data:
  class_path: users_project.Dat
"""
    )
    assert status == 1
    assert lines == [
        "0.yaml:2: error: trainer.max_epoch: unknown key. Did you mean 'max_epochs'?",
        "0.yaml:3: error: trainer.max_steps: expected int, got 'many'",
        "0.yaml:5: error: trainer.callbacks.0.class_path: unknown class 'EarlyStoping'. "
        "Did you mean 'EarlyStopping'?",
        "0.yaml:8: error: trainer.callbacks.1.init_args.monitr: unknown key. "
        "Did you mean 'monitor'?",
        "0.yaml:9: error: trainer.callbacks.1.init_args.patience: expected int, got 'long'",
        "0.yaml:10: error: trainer.callbacks.2: EarlyStopping: "
        "the following arguments are required: monitor",
        "0.yaml:11: error: modle: unknown key. Did you mean 'model'?",
        "0.yaml:17: error: model.init_arg: unknown key. Did you mean 'init_args'?",
        "0.yaml:15: error: model.init_args.width: expected int, got 'wide'",
        "0.yaml:20: error: data.class_path: users_project has no 'Dat'. Did you mean 'Data'?",
        "base.yaml + 0.yaml: 10 errors",
    ]


def test_a_later_plain_list_that_replaces_an_earlier_one_is_a_warning(check):
    item = "[{class_path: LearningRateMonitor}]"
    status, lines = check(
        f"trainer:\n  callbacks+: {item}\n", f"trainer:\n  max_epochs: 1\n  callbacks: {item}\n"
    )
    assert status == 0
    assert lines == [
        "1.yaml:3: warning: trainer.callbacks: replaces LearningRateMonitor of 0.yaml; "
        "write `callbacks+:` to append",
        "base.yaml + 0.yaml + 1.yaml: ok",
    ]
    assert check(f"trainer: {{callbacks: {item}}}", f"trainer: {{callbacks+: {item}}}")[1] == [
        "base.yaml + 0.yaml + 1.yaml: ok"
    ]


def test_a_key_given_twice_is_a_warning(check):
    status, lines = check("trainer:\n  max_epochs: 1\n  max_epochs: 2\n")
    assert status == 0
    assert "0.yaml:3: warning: trainer.max_epochs: given twice, first in line 2" in lines[0]


def test_yaml_errors_have_a_position(check):
    status, lines = check("trainer:\n  max_epochs: [1\n  x: 2\n")
    assert status == 1
    assert lines[0].startswith("0.yaml:3: error: not valid YAML (column 4): ")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(check, text):
    status, lines = check(text)
    assert status == 1
    assert "expected `key: value` lines" in lines[0]


def test_a_value_that_contains_itself_is_refused(check):
    status, lines = check("trainer: &loop\n  callbacks: [*loop]\n")
    assert status == 1
    assert "an alias (`*name`) stands inside" in lines[0]


def test_aliases_that_make_millions_of_values_are_refused_at_once(check) -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    code, found = check("\n".join(lines))
    assert code == 1
    assert "aliases (`*name`) make more than 100,000 values of it" in found[0]


def test_arguments_that_are_no_mapping_are_explained(check):
    status, lines = check("model:\n  class_path: users_project.Net\n  init_args: [4]\n")
    assert status == 1
    assert lines[0] == "0.yaml:3: error: model.init_args: expected `argument: value` lines"


def test_missing_files_are_named(project, capsys):
    assert main(["check", "basee.yaml"]) == 1
    assert "No such file or directory. Did you mean 'base.yaml'?" in capsys.readouterr().out


def test_a_mistyped_shipped_config_is_guessed(project, capsys):
    assert main(["check", "base.yaml", "overlays/depth_mpu"]) == 1
    assert "Did you mean 'overlays/depth_mup'?" in capsys.readouterr().out


def test_an_overlay_alone_says_what_it_lacks(check):
    status, lines = check("trainer:\n  max_epochs: 2\n", base="")
    assert status == 1
    assert "model is missing" in lines[0]
    assert "the base config first" in lines[0]


def test_arguments_inside_an_optimizer_are_located(check):
    text = (
        "model:\n  init_args:\n    optimizer:\n      class_path: torch.optim.Adam\n"
        "      init_args:\n        lrr: 0.1\n"
    )
    status, lines = check(text)
    assert status == 1
    assert lines[0] == (
        "0.yaml:6: error: model.init_args.optimizer.init_args.lrr: unknown key. Did you mean 'lr'?"
    )


def test_a_module_that_cannot_be_imported_says_why(check, project):
    (project / "broken.py").write_text("import no_such_package\n")
    status, lines = check("model:\n  class_path: broken.Net\n")
    assert status == 1
    assert "cannot import 'broken.Net': ModuleNotFoundError: No module named 'no_s" in lines[0]


def test_arguments_without_their_class_are_explained(check):
    status, lines = check("model:\n  width: 4\n", base="")
    assert status == 1
    assert "0.yaml:1: error: model: name the class: `class_path: …`" in lines[0]


def test_a_class_of_the_wrong_kind_is_named(check):
    _, lines = check("model:\n  class_path: users_project.Data\n")
    assert "model: users_project.Data is not a LightningModule" in lines[0]


def test_a_missing_extra_gives_the_pip_command(check, monkeypatch):
    find_spec = "lightning_suite.cli.problems.importlib.util.find_spec"
    monkeypatch.setattr(find_spec, lambda name: None)
    status, lines = check("trainer:\n  logger:\n    class_path: WandbLogger\n")
    assert status == 1
    assert "0.yaml:3: error: trainer.logger.class_path: WandbLogger needs" in lines[0]
    assert "pip install 'lightning-suite[wandb]'" in lines[0]


def test_shipped_names_and_yaml_text_are_accepted(project, capsys):
    pytest.importorskip("wandb")
    assert main(["check", "base.yaml", "overlays/wandb_offline"]) == 0
    assert main(["check", "base.yaml", "{trainer: {max_epochs: x}}"]) == 1
    assert "-c:1: error: trainer.max_epochs: expected int or null" in capsys.readouterr().out


def test_it_never_disagrees_with_the_parser_of_fit(project, parser):
    """Randomly damaged configs: errors are found exactly where the parser refuses."""
    prepare_classes()
    chance = random.Random(0)
    values = [3, "x", None, 0.5, True, [], {}, {"a": 1}, [1], {"class_path": "EarlyStopping"}]
    whole = yaml.safe_load((project / "base.yaml").read_text())
    whole["trainer"]["callbacks"] = [
        {"class_path": "EarlyStopping", "init_args": {"monitor": "train_loss"}}
    ]
    refused = 0
    for number in range(40):
        config = yaml.safe_load(yaml.safe_dump(whole))
        for _ in range(chance.choice([1, 1, 2])):
            place = config
            while True:
                key = chance.choice(list(place) if isinstance(place, dict) else [0])
                deeper = place[key]
                if not isinstance(deeper, dict | list) or not deeper or chance.random() < 0.2:
                    break
                place = deeper
            if isinstance(place, dict) and chance.random() < 0.3:
                place[f"{key}x"] = place.pop(key)
            else:
                place[key] = copy.deepcopy(chance.choice(values))
        (project / "damaged.yaml").write_text(yaml.safe_dump(config))
        errors = [p for p in find_problems(["damaged.yaml"], parser) if not p.warning]
        try:
            parser.parse_args(["-c", "damaged.yaml"])
            fits = True
        except Exception:
            fits = False
            refused += 1
        assert fits == (not errors), (number, config, errors)
    assert 10 < refused < 38  # the damage is neither always nor never fatal


@pytest.mark.parametrize("name", [n for n in shipped_configs() if not n.startswith("overlays/")])
def test_shipped_configs_are_ok_for_their_command(name, capsys):
    assert main(["check", name]) == 0
    command = re.search(r"lightning-suite (\S+)", shipped_configs()[name].read_text())
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert command is not None
    of_trainer = command[1] in ("fit", "validate", "test", "predict")  # they take the same config
    assert verdict == f"{name}: ok" + ("" if of_trainer else f" (for {command[1]})")


def test_config_files_are_read_off_the_command_line():
    words = ["fit", "-c", "a.yaml", "--config", "b.yaml", "--config=c.yaml", "--x", "y"]
    assert config_files(words) == ["a.yaml", "b.yaml", "c.yaml"]
