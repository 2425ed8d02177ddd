"""A diagnosis model from its options and its data; what of it is trained, and at which rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_suite.errors import SuiteError
from lightning_suite.lmcd.backbone import start_vector
from lightning_suite.lmcd.fusion import StudentFusion
from lightning_suite.lmcd.heads.registry import make_head
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.model import DiagnosisModel
from lightning_suite.lmcd.other_data import other_data

TEXTS_AT_A_TIME = 16
# Of a Trainer: those that leave students and heads in float32.
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_DTYPES = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}


def assemble_model(
    backbone: Any,
    students: int,
    kcs: int,
    kc_vectors: Tensor | None,
    options: Mapping[str, Any],
) -> DiagnosisModel:
    """Put students, backbone and head together; drawing leaves torch's generator as it was.

    Args:
        backbone: From :func:`~lightning_suite.lmcd.backbone.load_backbone`.
        students: Rows of the students' table.
        kcs: K.
        kc_vectors: From :func:`read_kc_vectors`, for heads of ``NEEDS_KC_VECTORS``.
        options: The arguments of :class:`~lightning_suite.lmcd.module.LMCDModule`.

    Raises:
        SuiteError: The head diagnoses KCs, and there are none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["init_seed"])
        fusion = StudentFusion(
            backbone,
            students,
            start_vector(backbone, options["student_token"], options["pretrained"]),
            noise=options["student_noise"],
            seed=options["init_seed"],
            mode=options["mode"],
            # whoever reads as the start token reads each text once
            cache_gib=0.0 if options["reader"] == "start" else options["cache_gib"],
        )
        head = make_head(
            options["head"],
            fusion.width,
            kcs,
            kc_vectors=kc_vectors,
            options=options["head_options"],
        )
    if head.per_kc and not kcs:
        raise SuiteError(
            f"LMCDModule: head {options['head']} diagnoses KCs, and the data has none."
        )
    return DiagnosisModel(fusion, head, options["reader"])


@torch.no_grad()
def read_kc_vectors(backbone: Any, texts: Prefixes, known: Tensor | None = None) -> Tensor:
    """Read each KC's text with the backbone: its last state, centred and of size 1.

    The centre is that of the KCs which training knows. With that of all, the vectors of an unseen
    domain would be what is left to a sum of zero: those of the others with a minus sign, so that
    whatever all trained KCs have in common would count against it.

    Args:
        backbone: A Hugging Face decoder without language-modelling head.
        texts: Of K KCs, on the backbone's device.
        known: Whether an exercise of the training needs the KC: bool [K]; None, or none: all.

    Returns:
        float32 [K, H].
    """
    width = backbone.get_input_embeddings().weight.shape[1]
    fusion = StudentFusion(backbone, 1, torch.zeros(width), mode="row").eval()
    # A few at a time: there may be thousands.
    parts = zip(*(table.split(TEXTS_AT_A_TIME) for table in texts), strict=True)
    states = torch.cat([fusion.exercise_states(Prefixes(*part)) for part in parts])
    centre = states if known is None or not known.any() else states[known]
    states = states - centre.mean(0)
    return states / states.square().mean().sqrt().clamp(min=1e-6)


def parameter_groups(
    model: DiagnosisModel, lr_students: float | None, lr_heads: float | None
) -> list[dict[str, Any]]:
    """Return the optimizer's groups ``backbone``, ``students`` and ``head``, without empty ones.

    Args:
        model: Whose backbone is trained as far as its parameters need gradients.
        lr_students: Learning rate of the students' vectors; None is the optimizer's own.
        lr_heads: Of the head.
    """
    fusion = model.fusion
    groups = (
        ("backbone", [p for p in fusion.backbone.parameters() if p.requires_grad], None),
        ("students", [fusion.students.weight], lr_students),
        ("head", list(model.head.parameters()), lr_heads),
    )
    return [
        {"name": name, "params": params, **({} if lr is None else {"lr": lr})}
        for name, params, lr in groups
        if params
    ]


def check_tables(
    kept: Mapping[str, Sequence[str]], student_ids: Sequence[str], kc_ids: Sequence[str]
) -> None:
    """Refuse a checkpoint of other data, or that lacks students of it or has other KCs.

    Args:
        kept: ``student_ids`` and ``kc_ids`` of the checkpoint.
        student_ids: Of the data, without those who came after training.
        kc_ids: Of the data.

    Raises:
        SuiteError: Naming a student that is unknown to it.
    """
    ours = {"student_ids": student_ids, "kc_ids": kc_ids}
    if few := other_data(kept, ours):
        raise SuiteError(
            f"LMCDModule: the checkpoint was trained on other data: it knows {few} of this data. "
            "Give --ckpt_path the checkpoint of a fit on this data, or the data that it was "
            "trained on (data.init_args.source)."
        )
    theirs = list(kept["student_ids"])
    if list(kc_ids) != list(kept["kc_ids"]):
        raise SuiteError("LMCDModule: the checkpoint was trained on other KCs than this data.")
    if theirs[: len(student_ids)] != list(student_ids):
        known = set(theirs)
        new = [s for s in student_ids if s not in known]
        more = f", and {len(new) - 1:,} more" if len(new) > 1 else ""
        unknown = f": {new[0]!r} is unknown to it{more}" if new else ""
        raise SuiteError(
            f"LMCDModule: the data's students are not those of the checkpoint, in their order"
            f"{unknown}. Attach new students with some of their answers: in a file of their own, "
            "not in source (data.init_args.new_students, with AttachNewStudentsCallback)."
        )


def untrained_caution(kind: str, callbacks: Iterable[object]) -> str | None:
    """Return what to say where students of the test would be read at a vector of nobody.

    Args:
        kind: Of the data's split.
        callbacks: ``trainer.callbacks``.
    """
    names = {type(callback).__name__ for callback in callbacks}
    if kind != "student" or "AttachNewStudentsCallback" in names:
        return None
    return (
        "LMCDModule: split is student, and there is no AttachNewStudentsCallback: the students of "
        "validation and test keep the vectors that all start from, which say nothing of them. Add "
        "the callback, and support to the data (configs/lmcd/attach.yaml)."
    )


def check_precision(precision: str) -> None:
    """Refuse a Trainer's precision that would change the type of students and heads.

    Raises:
        SuiteError: Naming the option that changes that of the backbone alone.
    """
    if precision not in _PRECISIONS:
        raise SuiteError(
            f"LMCDModule: trainer.precision is {precision}, which would change the type of "
            "students and heads, too. They stay in float32: rounding hides what tells exercises "
            "apart. Set model.init_args.dtype, the type of the backbone alone, to "
            f"{_DTYPES.get(precision, 'bfloat16')}, and leave trainer.precision at 32-true; or "
            "choose bf16-mixed."
        )
