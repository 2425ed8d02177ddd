"""One thread, fixed seeds, no network; and no test may leave global state behind."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports the libraries that read them.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_DISABLE_GIT="true",
    MPLBACKEND="agg",
    COLUMNS="100",
)
os.environ.pop("LIGHTNING_SUITE_TRACEBACK", None)

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# Set by libraries while they work, harmless to the next test, and removed after each.
_LIBRARIES = (
    "PL_",
    "WANDB_",
    "TORCHELASTIC_",
    "NCCL_",
    "KMP_",
    "PYTEST_CURRENT_TEST",
    "LITMODELS_",
    "PYTORCH_NVML_",
    "TORCHINDUCTOR_",
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fail a test that leaves the process other than it was, and repair it for the next one."""
    before, environment, path = _state(), dict(os.environ), list(sys.path)
    yield
    after, left = _state(), dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(before["folder"])
    sys.path[:] = path
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["grad mode"])
    torch.use_deterministic_algorithms(before["deterministic"])
    leaks = [
        f"{key}: {before[key]} became {after[key]}" for key in before if before[key] != after[key]
    ]
    leaks += [
        f"{key}={left.get(key)} (was {environment.get(key)})"
        for key in sorted(left.keys() | environment.keys())
        if left.get(key) != environment.get(key) and not key.startswith(_LIBRARIES)
    ]
    assert not leaks, f"the test leaves behind: {'; '.join(leaks)}"


def _state() -> dict[str, Any]:
    return {
        "folder": str(Path.cwd()),
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
