"""Each run has a folder of its own, whatever logs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign import PATTERNS, Batches, ForeignModule, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_suite import FeatureDynamicsMonitor, GradientFeatureCallback
from lightning_suite.folder_of_run import folder_of_run


def wandb_logger(folder: Path) -> WandbLogger:
    pytest.importorskip("wandb")
    return WandbLogger(project="facts", save_dir=folder, offline=True)


def test_of_a_logger_that_has_one_it_is_its_own(tmp_path: Path) -> None:
    trainer = quiet_trainer(logger=CSVLogger(tmp_path))
    assert folder_of_run(trainer) == trainer.log_dir == str(tmp_path / "lightning_logs/version_0")


def test_of_other_loggers_it_is_where_their_checkpoints_are(tmp_path: Path) -> None:
    folders = []
    for _ in range(2):
        logger, saver = wandb_logger(tmp_path), ModelCheckpoint()
        trainer = quiet_trainer([saver], logger=logger, max_epochs=1, enable_checkpointing=True)
        trainer.fit(ForeignModule(), Batches())
        folder = folder_of_run(trainer)
        assert folder == str(tmp_path / "facts" / str(logger.version))
        assert saver.dirpath == str(Path(folder, "checkpoints"))
        folders.append(folder)
        logger.experiment.finish()
    assert folders[0] != folders[1]


def test_a_logger_with_files_counts_wherever_it_stands(tmp_path: Path) -> None:
    trainer = quiet_trainer(logger=[wandb_logger(tmp_path), CSVLogger(tmp_path)])
    assert folder_of_run(trainer) == str(tmp_path / "lightning_logs/version_0")


def test_without_a_logger_it_is_lightning_s(tmp_path: Path) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    assert folder_of_run(trainer) == trainer.log_dir


def test_two_runs_of_one_script_do_not_write_into_each_other(tmp_path: Path) -> None:
    """The second of two W&B runs used to find the first one's rows, and was refused."""
    for _ in range(2):
        logger = wandb_logger(tmp_path)
        recording = [GradientFeatureCallback(), FeatureDynamicsMonitor(1, patterns=PATTERNS)]
        quiet_trainer(recording, logger=logger, max_epochs=1).fit(ForeignModule(), Batches())
        own = tmp_path / "facts" / str(logger.version)
        assert (own / "gradient_features" / "manifest.json").exists()
        assert (own / "artifacts" / "feature_dynamics.csv").exists()
        logger.experiment.finish()
    assert not (tmp_path / "gradient_features").exists()
    assert not (tmp_path / "artifacts").exists()
