"""Mistakes that the parser does not know."""

from __future__ import annotations

import pytest

from lightning_suite.cli.main import main


def test_a_missing_extra_gives_the_pip_command(check, monkeypatch):
    find_spec = "importlib.util.find_spec"
    monkeypatch.setattr(find_spec, lambda name: None)
    status, lines = check("trainer:\n  logger:\n    class_path: WandbLogger\n")
    assert status == 1
    assert "0.yaml:3: error: trainer.logger.class_path: WandbLogger needs" in lines[0]
    assert "pip install 'lightning-suite[wandb]'" in lines[0]


LLAMA = """\
model:
  class_path: CausalLMModule
  init_args:
    config:
      model_type: {kind}
      {key}: 2
    lora: {{{lora}: 4}}
"""


def test_keys_of_a_models_own_configuration_are_checked_where_they_stand(check):
    pytest.importorskip("peft")
    _, lines = check(LLAMA.format(kind="llama", key="num_hidden_layer", lora="rr"))
    assert lines[:2] == [
        "0.yaml:6: error: model.init_args.config.num_hidden_layer: model_type llama has no "
        "'num_hidden_layer'. Did you mean 'num_hidden_layers'?",
        "0.yaml:7: error: model.init_args.lora.rr: peft.LoraConfig has no 'rr'. Did you mean 'r'?",
    ]
    _, lines = check(LLAMA.format(kind="lama", key="num_hidden_layers", lora="r"))
    assert "0.yaml:5: error: model.init_args.config.model_type: model_type 'lama'" in lines[0]


@pytest.mark.parametrize("key", ["num_hidden_layers", "rope_theta", "use_cache", "num_labels"])
def test_keys_that_the_configuration_class_takes_are_ok(check, key):
    pytest.importorskip("peft")
    assert check(LLAMA.format(kind="llama", key=key, lora="r"))[0] == 0


RECORDED = "{class_path: GradientFeatureCallback, init_args: {features: [grad_norm, %s]}}"


def test_names_of_features_are_checked_in_fit_too(check, capsys):
    status, lines = check(f"trainer:\n  callbacks: [{RECORDED % 'grad_mxa'}]\n")
    where = "0.yaml:2: error: trainer.callbacks.0.init_args.features.1: 'grad_mxa' is unknown."
    assert (status, len(lines)) == (1, 2)
    assert lines[0].startswith(f"{where} Did you mean 'grad_max'?")
    assert main(["fit", "-c", "base.yaml", "-c", "0.yaml"]) == 2
    assert where in capsys.readouterr().err


def test_names_of_features_are_checked_in_a_config_of_score(project, capsys):
    (project / "score.yaml").write_text("out: x\nfeatures: [grad_norm]\nlayers: all\n")
    assert main(["check", "score.yaml", "--features=[grad_mxa]"]) == 1
    line = capsys.readouterr().out.splitlines()[0]
    assert "command line: error: --features: 'grad_mxa' is unknown. Did you mean 'grad_m" in line


def test_what_a_later_file_replaces_is_no_problem_any_more(check):
    wrong = f"trainer:\n  callbacks: [{RECORDED % 'grad_mxa'}]\n"
    assert check(wrong, f"trainer:\n  callbacks: [{RECORDED % 'grad_max'}]\n")[0] == 0


def test_what_is_wrong_inside_an_option_comes_with_the_other_problems(check):
    lines = check(f"trainer:\n  max_epoch: 1\n  callbacks: [{RECORDED % 'grad_mxa'}]\n")[1]
    assert [line.split(": ")[2] for line in lines[:-1]] == [
        "trainer.max_epoch",
        "trainer.callbacks.0.init_args.features.1",
    ]


def test_options_of_the_other_methods_are_checked_by_their_own_modules(check):
    text = "model: {class_path: %s, init_args: %s}\n"
    scen = "{pretrained: x, training: {step: 3}, baselines: [grce], gate: close}"
    lines = check(text % ("SCENModule", scen))[1]
    for near in ("'steps'", "'grace'", "'closed'"):
        assert any(f"Did you mean {near}?" in line for line in lines)
    lines = check(text % ("LMCDModule", "{pretrained: x, head: mirtt}"))[1]
    assert "Did you mean 'mirt'?" in lines[0]


DATA = "data:\n  class_path: {}\n  init_args:\n    {}\n"


@pytest.mark.parametrize(
    ("data", "argument", "told"),
    [
        ("ImageDataModule", "val_fraction: 1.5", "is 1.5; it must be in [0, 1)."),
        ("TextDataModule", "block_size: 1", "is 1; it must be 2 or more."),
        ("InstructionDataModule", "max_length: 0", "is 0; it must be 2 or more."),
        ("ColdStartDataModule", "oracle_fraction: -1", "is -1.0; it must be in [0, 1)."),
        ("EditDataModule", "limit: 0", "is 0; it must be 1 or more."),
    ],
)
def test_a_value_out_of_range_is_found_where_it_stands(check, capsys, data, argument, told):
    if data == "ColdStartDataModule":
        argument += "\n    source: packaged:VerbAgg"
    text = DATA.format(data, argument)
    name = argument.partition(":")[0]
    line = f"0.yaml:4: error: data.init_args.{name}: {name} {told}"
    assert check(text) == (1, [line, "base.yaml + 0.yaml: 1 error"])
    assert main(["fit", "-c", "base.yaml", "-c", "0.yaml"]) == 2
    assert line in capsys.readouterr().err
    option = f"--data.init_args.{name}"
    assert check(text, options=(option, "5" if told[-2:] != ")." else "0.5"))[0] == 0
    assert check(options=("--data", data, option, "-2"))[1][0].startswith(
        f"command line: error: {option}: {name} is -2"
    )


def test_arguments_that_two_files_make_right_together_are_ok(check):
    text = DATA.format("ColdStartDataModule", "source: packaged:VerbAgg\n    text: diffused")
    assert "descriptions" in check(text)[1][0]
    assert check(text, "data: {init_args: {descriptions: some.jsonl}}")[0] == 0


def test_a_mistyped_role_gets_the_one_that_was_meant(check):
    _, lines = check(
        "trainer:\n  callbacks+:\n    - class_path: DepthMuPLRCallback\n"
        "      init_args: {base_depth: 4, patterns: {up: hiden_last}}\n"
    )
    assert lines[0].endswith("got 'hiden_last'. Did you mean 'hidden_last'?")


def test_a_single_feature_of_score_is_checked_like_a_list(project, capsys):
    (project / "score.yaml").write_text("out: x\nfeatures: [grad_max]\nlayers: all\n")
    assert main(["check", "score.yaml", "--features=grad_norm"]) == 0
    capsys.readouterr()
    assert main(["check", "score.yaml", "--features=grad_nrm"]) == 1
    assert "--features: 'grad_nrm' is unknown. Did you mean 'grad_n" in capsys.readouterr().out


def test_a_callback_s_single_feature_is_shown_as_a_list(check):
    one = "{class_path: GradientFeatureCallback, init_args: {features: grad_norm}}"
    _, lines = check(f"trainer:\n  callbacks: [{one}]\n")
    assert "init_args.features: expected list, got 'grad_norm'. Write [grad_norm]." in lines[0]


def test_what_a_callback_refuses_is_found_before_it_is_made(check, capsys):
    one = "{class_path: DepthMuPLRCallback, init_args: {base_depth: 0}}"
    status, lines = check(f"trainer:\n  callbacks+:\n    - {one}\n")
    assert status == 1
    where = "0.yaml:3: error: trainer.callbacks+.0.init_args.base_depth: "
    assert lines[0].startswith(where)
    assert len(lines) == 2
    assert main(["fit", "-c", "base.yaml", "-c", "0.yaml"]) == 2
    assert where in capsys.readouterr().err


def test_a_later_option_may_mend_a_callback(check):
    one = "{class_path: FeatureDynamicsMonitor, init_args: {rows: 0}}"
    text = f"trainer:\n  callbacks:\n    - {one}\n"
    assert "rows=0, and it must be at least 1." in check(text)[1][0]
    assert check(text, options=("--trainer.callbacks.rows=2",))[0] == 0


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("wandb", "WandbLogger; `-c overlays/wandb` adds it"),
        ("csv", "--trainer.logger CSVLogger --trainer.logger.save_dir FOLDER"),
        ("tensorboard", "--trainer.logger TensorBoardLogger"),
    ],
)
def test_a_logger_is_a_class(project, capsys, name, advice):
    assert main(["fit", "-c", "base.yaml", "--trainer.logger", name]) == 2
    assert advice in capsys.readouterr().err
