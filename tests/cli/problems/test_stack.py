"""All problems at once, and none where `fit` has none."""

from __future__ import annotations

import copy
import random

import pytest
import yaml

from lightning_suite.cli.lightning_cli import ParserOnly
from lightning_suite.cli.main import main
from lightning_suite.cli.parsing import prepare_classes
from lightning_suite.cli.problems import find_problems


@pytest.fixture(scope="module")
def parser():
    return ParserOnly().parsers["fit"]


def test_an_overlay_alone_says_what_it_lacks(check):
    status, lines = check("trainer:\n  max_epochs: 2\n", base="")
    assert status == 1
    assert "model is missing" in lines[0]
    assert "the base config first" in lines[0]


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


def test_a_config_without_its_dash_c_is_told_so(project, capsys):
    assert main(["fit", "base.yaml"]) == 2
    told = capsys.readouterr().err
    assert told == (
        "lightning-suite: error: 'base.yaml' stands alone. "
        "A config is given with -c: -c base.yaml\n"
    )
    assert main(["fit", "bsae.yaml"]) == 2
    assert "Did you mean 'base.yaml'?" in capsys.readouterr().err
    assert main(["fit", "nonsense"]) == 2
    told = capsys.readouterr().err
    assert "'nonsense' stands alone. The option that it is for is missing before it." in told
    assert "model is missing" not in told


def test_mistyped_options_do_not_decide_which_command_a_config_is_for(check):
    assert check(options=("--lr", "3"))[1][-1] == "base.yaml --lr 3: 1 error"  # not coord-check
