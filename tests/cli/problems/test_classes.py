"""The class that a mistyped `class_path` means."""

from __future__ import annotations


def test_a_module_that_cannot_be_imported_says_why(check, project):
    (project / "broken.py").write_text("import no_such_package\n")
    status, lines = check("model:\n  class_path: broken.Net\n")
    assert status == 1
    assert "cannot import 'broken.Net': ModuleNotFoundError: No module named 'no_s" in lines[0]


def test_a_class_of_the_wrong_kind_is_named(check):
    _, lines = check("model:\n  class_path: users_project.Data\n")
    assert "model: users_project.Data is not a LightningModule" in lines[0]


def test_what_stands_below_a_mistyped_class_is_checked_as_the_one_that_was_meant(check):
    status, lines = check(
        """\
trainer:
  callbacks:
    - class_path: EarlyStoping
      init_args:
        monitr: train_loss
model:
  class_path: users_project.Nett
  init_args:
    widht: 4
data:
  class_path: users_projct.Data
  init_args:
    row: 3
"""
    )
    assert status == 1
    meant = "What stands below it was checked as if that were meant."
    assert lines == [
        "0.yaml:3: error: trainer.callbacks.0.class_path: unknown class 'EarlyStoping'. "
        f"Did you mean 'EarlyStopping'? {meant}",
        "0.yaml:5: error: trainer.callbacks.0.init_args.monitr: unknown key. "
        "Did you mean 'monitor'?",
        "0.yaml:7: error: model.class_path: users_project has no 'Nett'. Did you mean 'Net'? "
        + meant,
        "0.yaml:9: error: model.init_args.widht: unknown key. Did you mean 'width'?",
        "0.yaml:11: error: data.class_path: cannot import 'users_projct.Data': "
        "ModuleNotFoundError: No module named 'users_projct'. Did you mean 'users_project'? "
        + meant,
        "0.yaml:13: error: data.init_args.row: unknown key. Did you mean 'rows'?",
        "base.yaml + 0.yaml: 6 errors",
    ]


def test_what_stands_below_a_class_like_none_is_said_to_be_left_out(check):
    _, lines = check("data:\n  class_path: users_project.Xyzzy\n  init_args:\n    row: 3\n")
    assert lines == [
        "0.yaml:2: error: data.class_path: users_project has no 'Xyzzy'. "
        "What stands below it was not looked at.",
        "base.yaml + 0.yaml: 1 error",
    ]


def test_only_a_class_that_may_stand_there_is_taken_for_the_one_that_was_meant(check):
    text = "model:\n  class_path: users_project.DataLoadr\n  init_args: {batch: 3}\n"
    _, lines = check(text)  # the user's module has imported torch's DataLoader, which is no model
    assert lines[0].endswith("Did you mean 'DataLoader'? What stands below it was not looked at.")


def test_a_mistyped_module_inside_a_package_is_guessed(check):
    text = "model: {init_args: {optimizer: {class_path: torch.optm.SGD, init_args: {lrr: 1}}}}\n"
    _, lines = check(text)
    assert "Did you mean 'torch.optim'?" in lines[0]
    assert "optimizer.init_args.lrr: unknown key. Did you mean 'lr'?" in lines[1]
