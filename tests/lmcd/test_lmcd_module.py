"""The module learns, keeps and restores; what does not fit it is refused by name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import BACKBONES
from cold_start_folders import KCS, write_plain
from glass_lm import glass_tokenizer
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import binary_cross_entropy_with_logits

from lightning_suite import ColdStartDataModule, LMCDModule
from lightning_suite.errors import SuiteError
from lightning_suite.language.loading import causal_lm_from_config
from lightning_suite.lmcd.assembly import read_kc_vectors
from lightning_suite.lmcd.layout import Prefixes

CONFIG = {
    **BACKBONES["llama"],
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "num_hidden_layers": 1,
}
# modules of a frozen backbone stand in evaluation mode on purpose
pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")


def data(folder: Path, **options: Any) -> ColdStartDataModule:
    if not (folder / "interactions.csv").exists():
        write_plain(folder)
    defaults = {
        "tokenizer": "bytes",
        "system": "",
        "val_fraction": 0.2,
        "students_per_exercise": 12,
    }
    return ColdStartDataModule(str(folder), **{**defaults, **options})


def module(**options: Any) -> LMCDModule:
    optimizer = partial(torch.optim.Adam, lr=5e-3)
    return LMCDModule(**{"config": CONFIG, "head": "ncdm", "optimizer": optimizer, **options})


def trainer(folder: Path, **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})


def loss(fitted: LMCDModule, source: ColdStartDataModule) -> float:
    part = source.part("train")
    batch = part[range(len(part))]
    with torch.no_grad():
        logits = fitted.eval()(batch)
    return binary_cross_entropy_with_logits(logits, batch["correct"]).item()


@pytest.mark.parametrize("head", ["irt", "4pl", "mirt", "ncdm", "kancd", "dina"])
def test_every_head_learns_the_answers_and_reports_all_metrics(head: str, tmp_path: Path) -> None:
    fitted, source = (
        module(head=head, prior=0.001, ridge_start=False),
        data(tmp_path, split="random", students_per_exercise=12, exercises_per_batch=5),
    )
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, source)
    before = loss(fitted, source)
    fit = trainer(tmp_path, max_epochs=12, check_val_every_n_epoch=12)
    fit.fit(fitted, source)
    assert loss(fitted, source) < before - 0.02
    names = {"auc", "acc", "f1", "rmse", "mae", "brier", "ece", "nll"}
    names |= set() if head == "mirt" else {"doa"}
    assert {f"lmcd/val_{name}" for name in names} <= set(fit.callback_metrics)
    assert fitted.model.fusion.mode == "cached"


def test_kancd_reads_skills_as_they_are_described_and_the_checkpoint_keeps_it(
    tmp_path: Path,
) -> None:
    write_plain(tmp_path)
    rows = [("exercise", f"e{e}", f"About {e}.") for e in range(10)]
    rows += [("kc", kc, f"To {kc} takes care.") for kc in KCS]
    file = tmp_path / "descriptions.jsonl"
    file.write_text(
        "\n".join(json.dumps(dict(zip(("kind", "id", "text"), r, strict=True))) for r in rows)
    )
    vectors = []
    for options in ({"text": "raw"}, {"text": "diffused", "descriptions": str(file)}):
        fitted, source = module(head="kancd"), data(tmp_path, **options)
        fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        fit.fit(fitted, source)
        head: Any = fitted.model.head
        texts = Prefixes(**source.kc_prefixes)
        trained = source.data.q_matrix[source.part("train").exercise.unique()].any(0)
        wanted = read_kc_vectors(fitted.model.fusion.backbone, texts, trained)
        torch.testing.assert_close(head.kc_vectors, wanted)
        vectors.append(head.kc_vectors)
    assert (vectors[0] - vectors[1]).norm() > 0.1 * vectors[0].norm()
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded: Any = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded.model.head.kc_vectors, vectors[1])


def test_texts_of_skills_are_centred_on_what_training_knows() -> None:
    """Of all, an unseen one would be the others with a minus sign."""
    backbone = causal_lm_from_config(CONFIG).model
    ids = torch.randint(0, 256, (4, 6), generator=torch.Generator().manual_seed(0))
    texts = Prefixes(ids, torch.full((4,), 6))
    known = torch.tensor([True, True, True, False])
    vectors = read_kc_vectors(backbone, texts, known)
    torch.testing.assert_close(vectors[known].mean(0), torch.zeros(vectors.shape[1]))
    assert vectors[3].norm() > 0.1
    assert vectors.square().mean() == pytest.approx(1, abs=1e-5)
    all_of_them = read_kc_vectors(backbone, texts)
    torch.testing.assert_close(all_of_them[3], -all_of_them[:3].sum(0))
    nobody = read_kc_vectors(backbone, texts, torch.zeros(4, dtype=torch.bool))
    assert torch.equal(nobody, all_of_them)


def test_a_skill_of_the_test_has_no_part_in_the_centre(tmp_path: Path) -> None:
    fitted, source = module(head="kancd"), data(tmp_path, split="kc", folds=2)
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fit.fit(fitted, source)
    head: Any = fitted.model.head
    known = source.data.q_matrix[source.part("train").exercise.unique()].any(0)
    assert not known.all()
    torch.testing.assert_close(
        head.kc_vectors[known].mean(0), torch.zeros(head.kc_vectors.shape[1]), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("reader", ["student", "start"])
def test_a_checkpoint_holds_tables_and_ids_and_not_the_frozen_backbone(
    reader: str, tmp_path: Path
) -> None:
    fitted, source = module(reader=reader), data(tmp_path)
    fit = trainer(tmp_path)
    fit.fit(fitted, source)
    before = fit.test(fitted, source, verbose=False)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    raw = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert raw["lmcd"]["student_ids"] == [f"s{s}" for s in range(12)]
    assert raw["ColdStartDataModule"]["manifest"]["held_out"] == source.manifest["held_out"]
    loaded = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.kc_ids == ["add", "carry", "read", "graph", "unit"]
    assert trainer(tmp_path).test(loaded, data(tmp_path), verbose=False) == before
    again = trainer(tmp_path).test(
        module(reader=reader), data(tmp_path), tmp_path / "a.ckpt", False
    )
    assert again == before


LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def write_backbone(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    tokenizer = glass_tokenizer()
    tokenizer.save_pretrained(folder)
    causal_lm_from_config({**CONFIG, "vocab_size": len(tokenizer)}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("options", [{}, {"backbone": "lora", "lora": LORA}])
def test_the_weights_of_a_loaded_backbone_stay_out_of_the_checkpoint(
    options: dict[str, Any], tmp_path: Path
) -> None:
    options = {"config": None, "pretrained": write_backbone(tmp_path / "lm"), **options}
    fitted = module(**options)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    names = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name for name in names if "backbone" in name)
    assert ("lora" in options) == any("lora_" in name for name in names)
    loaded = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, fitted.state_dict()[name])


@pytest.mark.parametrize("options", [{}, {"backbone": "lora", "lora": LORA}])
def test_another_backbone_than_that_of_the_checkpoint_is_refused(
    options: dict[str, Any], tmp_path: Path
) -> None:
    fitted = module(config=None, pretrained=write_backbone(tmp_path / "lm"), **options)
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fit.fit(fitted, data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    half = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt", dtype="bfloat16")
    assert half.student_ids == fitted.student_ids
    write_backbone(tmp_path / "lm", seed=1)
    with pytest.raises(SuiteError, match="lm' is not the backbone that the checkpoint"):
        LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_resumes_is_the_run_that_did_not_stop(tmp_path: Path) -> None:
    options: dict[str, Any] = {"reader": "start"}  # with the dropout of NeuralCD
    seed_everything(3, verbose=False)
    whole = module(**options)
    trainer(tmp_path, max_epochs=3).fit(whole, data(tmp_path))
    saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=7, save_top_k=-1)
    first = trainer(
        tmp_path, max_steps=7, max_epochs=-1, callbacks=[saver], enable_checkpointing=True
    )
    first.fit(module(**options), data(tmp_path))
    torch.rand(5)  # whatever a new process has drawn before
    resumed = module(**options)
    path = next((tmp_path / "saved").glob("*.ckpt"))
    again = trainer(tmp_path, max_epochs=3, callbacks=[saver], enable_checkpointing=True)
    again.fit(resumed, data(tmp_path), ckpt_path=path)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_attached_students_are_kept_by_checkpoints(tmp_path: Path) -> None:
    fitted = module(reader="start")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, data(tmp_path))
    vectors = torch.randn(2, 32)
    fitted.add_students(["new", "newer"], vectors)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.student_ids[-2:] == ["new", "newer"]
    assert torch.equal(loaded.model.fusion.students.weight[-2:], vectors)
    assert loaded.model.proficiency().shape[0] == 14
    with pytest.raises(SuiteError, match="student 'new' is there already"):
        loaded.add_students(["new"], vectors[:1])


def test_a_module_is_not_tested_on_a_split_that_it_was_not_trained_on(tmp_path: Path) -> None:
    """Nor one that was loaded without the data module's own state."""
    fitted = module()
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fit.fit(fitted, data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    for trained in (fitted, LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")):
        with pytest.raises(SuiteError, match="made with another split: .*test have"):
            trainer(tmp_path).test(trained, data(tmp_path, fold=1), verbose=False)
        with pytest.warns(UserWarning, match="other texts of the same exercises"):
            trainer(tmp_path).test(trained, data(tmp_path, text="kc_names"), verbose=False)


def test_a_checkpoint_of_another_reader_is_refused(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fit.fit(module(reader="start"), data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(SuiteError, match="trained with reader: start, and reader is student"):
        trainer(tmp_path).test(module(), data(tmp_path), tmp_path / "a.ckpt", False)


def test_students_who_are_never_trained_nor_attached_are_warned_of(tmp_path: Path) -> None:
    source = data(tmp_path, split="student", support=3)
    with pytest.warns(UserWarning, match=r"no AttachNewStudentsCallback.* say nothing of them"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(module(), source)


def test_students_and_head_have_their_own_rates_and_a_frozen_backbone_has_none(
    tmp_path: Path,
) -> None:
    fitted = module(lr_students=0.1)
    trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(fitted, data(tmp_path))
    groups = fitted.optimizers().optimizer.param_groups  # type: ignore[union-attr]
    assert {group["name"]: group["lr"] for group in groups} == {"students": 0.1, "head": 5e-3}


@pytest.mark.parametrize("backbone", ["lora", "full"])
def test_adapters_or_the_whole_backbone_are_trained(backbone: Any, tmp_path: Path) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]} if backbone == "lora" else None
    fitted = module(backbone=backbone, lora=lora)
    before = {n: p.clone() for n, p in fitted.named_parameters() if p.requires_grad}
    trainer(tmp_path, max_epochs=1).fit(fitted, data(tmp_path))
    assert fitted.model.fusion.mode == "packed"
    after = {
        n.replace("model.fusion.backbone", "_backbone"): p for n, p in fitted.named_parameters()
    }
    moved = [n for n, p in before.items() if not torch.equal(p, after[n])]
    # the last layer's adapters of A start with a gradient of zero, as B is zero
    assert len(moved) >= len(before) // 2
    groups = fitted.optimizers().optimizer.param_groups  # type: ignore[union-attr]
    assert [group["name"] for group in groups] == ["backbone", "students", "head"]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-true", "bfloat16"), ("16-true", "float16"), ("64-true", "float64")],
)
def test_a_precision_for_everything_is_refused_and_that_of_the_backbone_is_not(
    precision: Any, dtype: Any, tmp_path: Path
) -> None:
    with pytest.raises(SuiteError, match=rf"trainer.precision is {precision}.*dtype.* to {dtype}"):
        trainer(tmp_path, precision=precision).fit(module(), data(tmp_path))
    fitted = module(dtype=dtype, head="kancd")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, data(tmp_path))
    fusion = fitted.model.fusion
    assert {str(p.dtype) for p in fusion.backbone.parameters()} == {f"torch.{dtype}"}
    assert {p.dtype for p in fitted.parameters() if p.requires_grad} == {torch.float32}
    assert fusion.mode == "cached"
    assert torch.isfinite(fit.callback_metrics["lmcd/val_nll"])


@pytest.mark.parametrize("backbone", ["frozen", "full"])
def test_mixed_precision_shares_texts_and_stays_near_float32(backbone: Any, tmp_path: Path) -> None:
    scores = []
    for precision in ("32-true", "bf16-mixed"):
        fitted = module(backbone=backbone)
        fit = trainer(tmp_path, max_epochs=1, precision=precision)
        fit.fit(fitted, data(tmp_path))  # a fallback to rows would warn, and that is an error
        assert fitted.model.fusion.mode == ("cached" if backbone == "frozen" else "packed")
        scores.append(fit.test(fitted, data(tmp_path), verbose=False)[0]["lmcd/test_nll"])
    assert scores[1] == pytest.approx(scores[0], rel=0.05)


def test_prediction_covers_every_pair(tmp_path: Path) -> None:
    fitted, source = module(reader="start"), data(tmp_path)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, source)
    parts = fit.predict(fitted, source)
    assert parts is not None
    pairs = {
        pair
        for part in parts
        for pair in zip(part["students"].tolist(), part["exercises"].tolist(), strict=True)
    }
    assert len(pairs) == 12 * 10


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_a_model_that_has_learnt_nothing_says_so(
    stage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, fitted = trainer(tmp_path), module()
    getattr(run, stage)(fitted, data(tmp_path))
    assert "has not been trained" in caplog.text
    caplog.clear()
    run.fit(fitted, data(tmp_path))
    getattr(run, stage)(fitted, data(tmp_path))
    assert "has not been trained" not in caplog.text


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="give either pretrained .* neither is given"):
        LMCDModule()
    with pytest.raises(SuiteError, match="backbone is lora and lora is None"):
        module(backbone="lora")
    with pytest.raises(SuiteError, match="head='ncmd' is not known. Did you mean 'ncdm'"):
        module(head="ncmd")
    fitted = module(reader="start")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, data(tmp_path / "a"))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LMCDModule.load_from_checkpoint(tmp_path / "a.ckpt")
    other = write_plain(tmp_path / "b") / "interactions.csv"
    other.write_text(other.read_text().replace("s7,", "s77,"))
    with pytest.raises(SuiteError, match="students are not those of .*: 's77' is unknown to it"):
        trainer(tmp_path).test(loaded, data(tmp_path / "b"))
    with pytest.raises(SuiteError, match="'s77' is unknown to it. Attach new students"):
        trainer(tmp_path).test(module(reader="start"), data(tmp_path / "b"), tmp_path / "a.ckpt")


def test_a_checkpoint_that_knows_the_oracle_is_tested_under_that_name_alone(tmp_path: Path) -> None:
    fitted, saved = module(reader="start"), tmp_path / "oracle.ckpt"
    oracle = {"oracle_fraction": 0.5, "train_on_oracle": True}
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(fitted, data(tmp_path, **oracle))
    fit.save_checkpoint(saved)
    cold = data(tmp_path, oracle_fraction=0.5)
    with pytest.raises(SuiteError, match="trained on answers to the test's exercises"):
        trainer(tmp_path).test(module(reader="start"), cold, ckpt_path=str(saved), verbose=False)
    with pytest.raises(SuiteError, match="trained on answers to the test's exercises"):
        trainer(tmp_path).test(fitted, data(tmp_path, oracle_fraction=0.5), verbose=False)
    same = data(tmp_path, **oracle)
    trainer(tmp_path).test(module(reader="start"), same, ckpt_path=str(saved), verbose=False)


def test_the_gradient_over_unequal_batches_is_that_of_the_mean_over_answers(tmp_path: Path) -> None:
    file = write_plain(tmp_path) / "interactions.csv"
    header, *rows = file.read_text().split()
    kept = [r for r in rows if int(r.split(",")[1][1:]) < 5 or r.startswith("s3,")]
    file.write_text("\n".join([header, *kept]))
    source, made = data(tmp_path, students_per_exercise=4), module(reader="start", prior=0.3)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(made, source)  # makes the tables
    made.eval()  # no dropout
    made.log = lambda *_, **__: None  # type: ignore[method-assign]

    def gradient(losses: list[torch.Tensor]) -> torch.Tensor:
        made.zero_grad()
        torch.stack(losses).mean().backward()
        return torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])

    batches = list(source.train_dataloader())
    part = source.part("train")
    whole = gradient([made.training_step(part[range(len(part))], 0)])
    found = gradient([made.training_step(batch, 0) for batch in batches])
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
    plain = [made.training_step({**batch, "weight": torch.tensor(1.0)}, 0) for batch in batches]
    assert (gradient(plain) - whole).norm() > 0.1 * whole.norm()
