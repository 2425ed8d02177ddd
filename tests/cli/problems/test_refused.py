"""What the parser refuses is taken apart to the smallest part."""

from __future__ import annotations


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


def test_arguments_that_are_no_mapping_are_explained(check):
    status, lines = check("model:\n  class_path: users_project.Net\n  init_args: [4]\n")
    assert status == 1
    assert lines[0] == "0.yaml:3: error: model.init_args: expected `argument: value` lines"


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


def test_arguments_without_their_class_are_explained(check):
    status, lines = check("model:\n  width: 4\n", base="")
    assert status == 1
    assert "0.yaml:1: error: model: name the class: `class_path: …`" in lines[0]


def test_what_a_mistyped_key_was_meant_to_give_is_not_said_to_be_missing(check):
    item = "{class_path: EarlyStopping, init_args: {monitr: train_loss}}"
    _, lines = check(f"trainer:\n  callbacks: [{item}]\n")
    assert [line.partition(" ")[2] for line in lines] == [
        "error: trainer.callbacks.0.init_args.monitr: unknown key. Did you mean 'monitor'?",
        "+ 0.yaml: 1 error",
    ]
