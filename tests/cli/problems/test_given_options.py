"""Options on top of configs: what is wrong with them has the name that is right."""

from __future__ import annotations

import pytest

from lightning_suite.cli.main import main


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--trainer.max_step", "--trainer.max_steps"),
        ("--trainr.max_steps", "--trainer.max_steps"),
        ("--max_epochs", "--trainer.max_epochs"),
        ("--seed_evrything", "--seed_everything"),
        ("--model.init_args.widht", "--model.init_args.width"),
        ("--model.widht", "--model.init_args.width"),
        ("--lr", "--model.init_args.optimizer.init_args.lr"),
    ],
)
def test_a_mistyped_option_of_fit_gets_its_real_name(project, capsys, typed, meant):
    optimizer = "{class_path: torch.optim.SGD, init_args: {lr: 0.1}}"
    (project / "sgd.yaml").write_text(f"model:\n  init_args:\n    optimizer: {optimizer}\n")
    words = [typed, "3", "-c", "base.yaml", "-c", "sgd.yaml"]
    assert main(["fit", *words]) == 2
    told = capsys.readouterr().err
    assert told == (f"lightning-suite: error: {typed}: unknown option. Did you mean '{meant}'?\n")
    assert main(["check", *words]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"command line: error: {typed}: unknown option. Did you mean '{meant}'?"


def test_all_wrong_options_and_keys_come_at_once(check):
    options = ("--trainer.max_step", "3", "--trainer.num_nodes=x", "--model.widht", "3")
    assert check("trainer:\n  max_tim: 3\n", options=options) == (
        1,
        [
            "0.yaml:2: error: trainer.max_tim: unknown key. Did you mean 'max_time'?",
            "command line: error: --trainer.max_step: unknown option. "
            "Did you mean '--trainer.max_steps'?",
            "command line: error: --trainer.num_nodes: expected int, got 'x'",
            "command line: error: --model.widht: unknown option. "
            "Did you mean '--model.init_args.width'?",
            f"base.yaml + 0.yaml {' '.join(options)}: 4 errors",
        ],
    )


def test_an_option_inside_a_models_own_configuration_is_checked(project, capsys):
    pytest.importorskip("transformers")
    option = "--model.init_args.config.num_hidden_layer"
    assert main(["check", "depth_mup/llama_from_scratch", f"{option}s", "8"]) == 0
    assert main(["check", "depth_mup/llama_from_scratch", option, "8"]) == 1
    line = capsys.readouterr().out.splitlines()[1]
    assert line == (
        f"command line: error: {option}: model_type llama has no 'num_hidden_layer'. "
        "Did you mean 'num_hidden_layers'?"
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "x"],
        ["--model.class_path", "users_project.TwoGroups"],
        ["--model.width", "8", "--data.rows=3", "--seed_everything=false"],
    ],
)
def test_options_that_fit_takes_are_ok(check, options):
    assert check(options=tuple(options))[0] == 0


def test_an_option_of_a_callback_on_the_command_line_is_named(check):
    options = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr", "x")
    line = check(options=options)[1][0]
    assert line.startswith("command line: error: --trainer.callbacks.monitr: ")
    assert "'monitr'" in line


def test_check_and_fit_agree_on_a_wrong_value_that_an_option_replaces(check):
    wrong = "model:\n  init_args:\n    width: wide\n"
    assert check(wrong)[0] == 1
    order = ("--model.init_args.width", "3")
    assert (check(wrong, options=order)[0] == 0) == (
        main(["fit", "-c", "base.yaml", "-c", "0.yaml", *order, "--print_config"]) == 0
    )


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--model=users_project.Nett", "users_project has no 'Nett'. Did you mean 'Net'?"),
        ("--data=ImageDataModul", "unknown class 'ImageDataModul'. Did you mean 'ImageDataM"),
        ("--trainer.callbacks+=EarlyStoping", "unknown class 'EarlyStoping'. Did you mean 'E"),
    ],
)
def test_a_mistyped_class_in_an_option_gets_its_name(check, option, advice):
    name = option.partition("=")[0]
    assert check(options=(option,))[1][0].startswith(f"command line: error: {name}: {advice}")


def test_what_the_parser_takes_and_a_model_refuses_comes_beside_what_the_parser_refuses(capsys):
    pytest.importorskip("transformers")
    options = ["--trainer.max_epoch", "3", "--model.init_args.config.num_hiden_layers", "8"]
    options += ["--data.init_args.val_fraction", "1.5"]
    assert main(["check", "depth_mup/llama_from_scratch", *options]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:-1]] == [f"{name}:" for name in options[::2]]
