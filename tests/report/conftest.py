"""Runs that an index is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from several_runs import fit

from lightning_suite.run_folder import RunFolder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two fits and a diagnosis."""
    root = tmp_path / "runs"
    fit(root / "fits/lightning_logs/version_0", 0.1, [3.0, 0.5, 0.75])
    fit(root / "fits/lightning_logs/version_1", 0.2, [2.0, 1.0, 0.5])
    folder = RunFolder(root / "class")
    folder.add_table("lmcd_scores", [{"system": "lmcd", "auc": 0.7}], title="Scores")
    folder.write_record(command=["lightning-suite", "test"], seed=0, config="seed: 0")
    return root
