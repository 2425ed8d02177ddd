"""Score some samples into a folder, a little at a time; killed by the test of the store."""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from lightning_suite.language.batching import token_budget_batches, unfinished
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.manifest import make_manifest
from lightning_suite.resofilter.probe import SampleProbe
from lightning_suite.resofilter.store import ScoreStore
from lightning_suite.resofilter.targets import find_targets

SAMPLES = 40


def main(folder: str, pause: float, rank: int = 0, ranks: int = 1) -> int:
    """Score what is not finished; return how many samples were scored."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    x, ids = torch.randn(SAMPLES, 6), [f"id{n:02}" for n in range(SAMPLES)]
    targets, features = find_targets(model).found, make_features(["adam1_mean_abs", "sketch"])
    store = ScoreStore(folder, make_manifest(model, targets, features), rank=rank, rows_per_shard=8)
    finished = store.finished_ids()
    batches = token_budget_batches([1] * SAMPLES, 4)
    scored = 0
    with SampleProbe(model, targets, features) as probe:
        for batch in unfinished(batches, ids, finished)[rank::ranks]:
            rows = probe.score(
                [ids[i] for i in batch], lambda batch=batch: model(x[batch]).square().sum(1)
            )
            store.add(rows)
            scored += len(batch)
            time.sleep(pause)
    store.flush()
    return scored


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
