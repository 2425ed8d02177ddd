from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Batches, ForeignModule, quiet_trainer
from lightning.pytorch.plugins import AsyncCheckpointIO

from lightning_suite.checkpoint_io import AtomicCheckpointIO, write_atomically


def test_a_checkpoint_is_written_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = quiet_trainer()
    write_atomically(trainer)
    trainer.fit(ForeignModule(), Batches())
    places: list[Any] = []
    make = tempfile.mkstemp

    def noted(*args: Any, **options: Any) -> Any:
        places.append(options.get("dir"))
        return make(*args, **options)

    monkeypatch.setattr(tempfile, "mkstemp", noted)
    trainer.save_checkpoint(tmp_path / "new" / "last.ckpt")
    assert places == [tmp_path / "new"], "onto another disk a rename would be a copy"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "new" / "last.ckpt", weights_only=True)["global_step"] == 8


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    with pytest.raises(AttributeError):
        io.save_checkpoint({"step": 2, "local": lambda: None}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "last.ckpt", weights_only=True) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_another_way_of_writing_checkpoints_stays() -> None:
    other = AsyncCheckpointIO()
    trainer = quiet_trainer(plugins=[other])
    write_atomically(trainer)
    assert trainer.strategy.checkpoint_io is other
