"""What a training on few answers cannot say, told before it begins."""

from __future__ import annotations

from lightning_suite.datamodules.cold_start_sources import ResponseData
from lightning_suite.datamodules.cold_start_splits import Split


def thin_cautions(data: ResponseData, split: Split) -> list[str]:
    """Say which metrics of validation and test will not exist, and whom nobody is compared with.

    Args:
        data: All answers.
        split: Of it.

    Returns:
        A sentence each, with what to do; none where there is nothing to say.
    """
    said = []
    trained = data.student[split.parts["train"]].unique()
    if len(trained) == 1:
        said.append(
            f"all answers to train on are of one student ({data.students[int(trained[0])]!r}): "
            "how hard an exercise is cannot be told from how able this student is. A diagnosis "
            "compares students; it needs answers of several."
        )
    alike = []
    for name in ("val", "test"):
        answers = data.correct[split.parts[name]] if name in split.parts else data.correct[:0]
        if len(answers) and len(answers.unique()) == 1:
            side = "right" if answers[0] else "wrong"
            many = f"{len(answers):,} answers are all" if len(answers) > 1 else "one answer is"
            alike.append(f"{name}_auc (the {name} part's {many} {side})")
    if alike:
        said.append(
            f"there will be no {' and no '.join(alike)}: an AUC needs right and wrong answers. "
            "Give more answers or exercises, or another part to hold out: val_fraction, folds, "
            "split_seed."
        )
    return said
