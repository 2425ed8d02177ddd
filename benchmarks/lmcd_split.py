"""What bounds, baselines and LMCD predict of the test of one split; kept in a file as it comes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from lmcd_training import BACKBONE, Way, fit, share
from torch import Tensor

from lightning_suite.datamodules.cold_start import ColdStartDataModule
from lightning_suite.files import atomic_write
from lightning_suite.lmcd.baselines import (
    Answers,
    ceiling_logits,
    fit_by_id,
    floor_logits,
    ridge_logits,
)
from lightning_suite.lmcd.diffusion import (
    DescriptionCache,
    TemplateGenerator,
    diffuse,
    make_requests,
)
from lightning_suite.lmcd.layout import Prefixes
from lightning_suite.lmcd.module import LMCDModule
from lightning_suite.lmcd.prefix_cache import PrefixCache

TEXTS = ("raw", "kc_names", "diffused", "both")
IDS = ("irt", "mirt", "ncdm")
CEILING = "ceiling of one ability"


def part(data: ColdStartDataModule, *names: str) -> Answers:
    """Return the answers of these parts together."""
    rows = torch.cat([data.split.parts[name] for name in names])
    return Answers(data.data.student[rows], data.data.exercise[rows], data.data.correct[rows])


class Predicted:
    """Logits of the test's answers by each way.

    Args:
        data: After ``setup``.
        file: Of what is done; an interrupted run goes on where it was.
        cache: Of what the frozen backbone has read.
        number: Of the split; seeds LMCD.
    """

    def __init__(
        self, data: ColdStartDataModule, file: Path, cache: PrefixCache, number: int
    ) -> None:
        self.data, self.file, self.cache, self.number = data, file, cache, number
        self.known, self.test = part(data, "train", "val"), part(data, "test")
        self.students = len(data.data.students)
        stored = torch.load(file, weights_only=True) if file.exists() else {}
        self.logits: dict[str, Tensor] = stored.get("logits", {})
        self.seconds: dict[str, float] = stored.get("seconds", {})  # of CPU time
        self.loads: dict[str, float] = stored.get("loads", {})  # of the machine

    def add(self, name: str, compute: Callable[[], Tensor]) -> bool:
        """Compute the logits of a way, unless they are there; return whether they were not."""
        if name in self.logits:
            return False
        begin = time.process_time()
        self.logits[name] = compute()
        self.seconds[name] = time.process_time() - begin
        self.loads[name] = os.getloadavg()[0]
        with atomic_write(self.file, "wb") as out:
            torch.save({key: vars(self)[key] for key in ("logits", "seconds", "loads")}, out)
        return True

    def add_bounds_and_ids(self) -> None:
        """Add what knows nothing of texts."""
        known, test, q = self.known, self.test, self.data.data.q_matrix.float()
        self.add("floor", lambda: floor_logits(known, test, self.students))
        self.add(CEILING, lambda: ceiling_logits(known, test, self.students, len(q)))
        self.add("q_matrix", lambda: ridge_logits(known, test, q, self.students))
        for head in IDS:
            self.add(f"ids {head}", partial(self._by_id, head, q))

    def add_ridge(self, text: str) -> None:
        """Add the ridge regression on the frozen states of a text."""
        self.add(f"ridge {text}", partial(self._ridge, text))

    def add_lmcd(self, way: Way) -> bool:
        """Train LMCD; return whether that was still to be done."""
        return self.add(
            way.name,
            lambda: fit(way, self._with_text(way.text), self.cache, self.number).logits,
        )

    @torch.no_grad()
    def _predict(self, model: Callable[..., Tensor]) -> Tensor:
        return model(self.test.student, self.test.exercise)

    def _by_id(self, head: str, q_matrix: Tensor) -> Tensor:
        return self._predict(fit_by_id(head, self.known, self.students, q_matrix))

    def _ridge(self, text: str) -> Tensor:
        data = self._with_text(text)
        module = LMCDModule(pretrained=BACKBONE, head="irt", reader="start")
        module._make(data.student_ids, [], None)
        fusion = module.model.fusion
        share(fusion, self.cache)
        prefixes = Prefixes(**data.part("train").texts(torch.arange(len(data.data.exercises))))
        features = fusion.read_alike(prefixes, fusion.start).exercise
        return ridge_logits(self.known, self.test, features, self.students)

    def _with_text(self, text: str) -> ColdStartDataModule:
        """Return the same split with another text."""
        options = {"text": "kc_names" if text == "none" else text}
        if text in ("diffused", "both"):
            options["descriptions"] = self._describe()
        data = ColdStartDataModule(**{**self.data.hparams, **options})
        data.setup()
        return data

    def _describe(self) -> str:
        """Write the descriptions of this split by template; return the file."""
        data = self.data.data
        seen = data.exercise[self.data.split.parts["train"]].unique().tolist()
        train = [data.exercises[e].id for e in seen]
        cache = DescriptionCache(self.file.parent / "cache.jsonl")
        file = self.file.with_suffix(".jsonl")
        rows = diffuse(make_requests(data, train), TemplateGenerator(), cache, train=train)
        file.write_text("\n".join(json.dumps(row) for row in rows))
        return str(file)
