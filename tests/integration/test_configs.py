"""Every shipped YAML is run, in this process, by the command it is for.

Nothing of a config is replaced but its size: fewer steps, depths and seeds, a folder to write to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wandb

from lightning_suite.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"

FIT = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT = [*FIT, "--trainer.max_steps=3", "--trainer.limit_val_batches=1"]
# a language model of two tiny layers, for the overlays
TINY_LM = [
    "--model.init_args.config.hidden_size=16",
    "--model.init_args.config.intermediate_size=32",
    "--model.init_args.config.num_hidden_layers=2",
]
SWEEP = ["--steps=4", "--final_steps=2", "--seeds=1", "--depths=2,3", "--extend=0"]
CHECK = ["--depths=2,3", "--seeds=1", "--steps=1", "--tolerance=null"]

RUNS: dict[str, list[str]] = {
    "depth_mup/digits.yaml": ["fit", *SHORT],
    "depth_mup/llama_from_scratch.yaml": ["fit", *SHORT, *TINY_LM],
    "depth_mup/coord_check_mlp.yaml": ["coord-check", *CHECK],
    "depth_mup/coord_check_llama.yaml": ["coord-check", *CHECK],
    "depth_mup/lr_transfer_digits.yaml": ["lr-transfer", *SWEEP],
    "depth_mup/lr_transfer_fashion_mnist.yaml": ["lr-transfer", *SWEEP],
    "quickstart/depth_mup.yaml": ["lr-transfer", *SWEEP],
    **{
        f"overlays/{name}.yaml": [
            *("fit", "-c", str(CONFIGS / "depth_mup/llama_from_scratch.yaml")),
            *(*SHORT, *TINY_LM),
        ]
        for name in ("depth_mup", "feature_dynamics", "wandb", "wandb_offline")
    },
}
# Run by the tests of their own commands, on models and data that those make.
ELSEWHERE = (
    "lmcd/",
    "quickstart/lmcd.yaml",
    "overlays/attach_students.yaml",
    "overlays/diagnosis_report.yaml",
    "pipeline/",
    "resofilter/",
    "quickstart/resofilter.yaml",
    "overlays/gradient_features.yaml",
    "scen/",
    "quickstart/scen.yaml",
    "overlays/expert_gate.yaml",
)


def test_no_config_is_forgotten() -> None:
    shipped = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert {name for name in shipped if not name.startswith(ELSEWHERE)} == set(RUNS)


def write_fashion_mnist(folder: Path) -> None:
    """Random images in MNIST's format, under the names of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 50)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim])
            shape = np.array(array.shape, dtype=">i4").tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + shape + array.tobytes())


@pytest.mark.parametrize("name", RUNS)
def test_config_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = RUNS[name]
    if name.endswith("fashion_mnist.yaml"):
        write_fashion_mnist(tmp_path)
        options.append(f"--data.init_args.source={tmp_path}")
    if name == "overlays/wandb.yaml":
        monkeypatch.setenv("WANDB_MODE", "offline")  # the only change: nobody is contacted
    before = [options.pop(0), options.pop(0)] if options[0] == "-c" else []
    try:
        assert main([command, *before, "-c", str(CONFIGS / name), *options]) == 0
    finally:
        wandb.finish()
    written = [*tmp_path.rglob("config.yaml"), *tmp_path.rglob("report.html")]
    assert written
