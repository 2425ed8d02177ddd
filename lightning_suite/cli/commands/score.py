"""``lightning-suite score``."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule, LightningModule, seed_everything

from lightning_suite.cli.listed import listed
from lightning_suite.cli.scored_source import write_source
from lightning_suite.cli.scoring import (
    Progress,
    open_probe,
    score_batches,
    scored_network,
)
from lightning_suite.cli.scoring_checkpoint import (
    load_weights,
    with_optimizer_state,
)
from lightning_suite.cli.scoring_data import ScoringData, open_data, prepare_data
from lightning_suite.cli.shaping import build
from lightning_suite.cli.stable_data import refuse_random_data
from lightning_suite.datamodules.instruction import InstructionDataModule
from lightning_suite.errors import MissingExtraError, SuiteError
from lightning_suite.language.batching import token_budget_batches, unfinished
from lightning_suite.language.module import CausalLMModule
from lightning_suite.resofilter.computation import computation
from lightning_suite.resofilter.features import make_features
from lightning_suite.resofilter.manifest import (
    environment,
    make_manifest,
    read_manifest,
    weights_fingerprint,
)
from lightning_suite.resofilter.precision import precision_of, warn_of_rounded_products
from lightning_suite.resofilter.store import MERGED, ScoreStore, merge_shards, write_table
from lightning_suite.resofilter.targets import find_targets
from lightning_suite.run_folder import RunFolder

# Built after seeding, so that all ranks and every start have the same untrained weights.
DESCRIBED = {"model": LightningModule, "data": LightningDataModule}
IGNORED = ("trainer",)


def run(
    model: Namespace | None = None,
    data: Namespace | None = None,
    features: list[str | dict[str, Any]] | dict[str, Any] | str = [  # noqa: B006 (shown in the help)
        "adam1_mean_abs",
        "unsaturation",
        "grad_norm",
    ],
    modules: str | list[str] = "up_proj",
    layers: str | int | list[int] = "last:3",
    biases: bool = False,
    include_frozen: bool = False,
    without_prompt: bool = False,
    ckpt_path: str | None = None,
    batch_tokens: int = 4096,
    batch_samples: int | None = 64,
    out: str = "runs/scores",
    rows_per_shard: int = 1024,
    allow_low_precision: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    num_nodes: int = 1,
    threads: int | None = None,
    seed_everything: int = 0,
    trainer: dict[str, Any] | None = None,
) -> int:
    """Score every training sample by its own gradient, with the weights as they are.

    The method of ResoFilter: what one optimizer step on a sample would do to the weights. Nothing
    is trained. A run that was stopped, or killed, goes on where it was when the same command is
    given again. `lightning-suite select` then keeps some of the samples, in seconds.

    Args:
        model: The module as in a config of `fit` (class_path, init_args), usually from --config.
        data: The data module, likewise; its training samples are scored.
        features: What is computed: names, such as grad_norm or [grad_norm, unsaturation], or
            {name: sketch, size: 16}.
        modules: Layers to watch: all, pieces of their names such as up_proj, or globs.
        layers: all, last:3 (of fewer layers, all), first:2, a number or a list of numbers.
        biases: Also watch the biases of these layers.
        include_frozen: Also watch weights that are not trained, such as those under LoRA.
        without_prompt: Also compute the loss of the answer alone, for `select --by ifd`.
        ckpt_path: Checkpoint of `fit` whose weights are scored instead of the model's own;
            adam_mean_abs is then the next step of the optimizer in it.
        batch_tokens: Most tokens of a batch, padding included.
        batch_samples: Most samples of a batch; null for no limit.
        out: Folder for the scores, tables, figures and report.html.
        rows_per_shard: Samples a file; a kill loses no more (and no more than a minute's).
        allow_low_precision: Compute adam1_mean_abs and its like on 16-bit weights too, which
            destroys their order.
        accelerator: cpu, gpu, or auto.
        devices: Processes on this machine; under torchrun and SLURM theirs count.
        num_nodes: Machines.
        threads: CPU threads of each process; null leaves it to torch.
        seed_everything: For models that are built and not loaded.
        trainer: Ignored, so that a config of `fit` can be used as it is.

    Example:
        lightning-suite score -c configs/resofilter/score.yaml
        lightning-suite score -c configs/resofilter/score.yaml --data.init_args.source my.jsonl
        lightning-suite score -c configs/resofilter/score.yaml --devices 8
        torchrun --nproc-per-node 8 -m lightning_suite score -c configs/resofilter/score.yaml
    """
    del trainer
    if not model or not data:
        raise SuiteError(
            "score needs the sections `model` and `data`, as in a config of `fit`. Start from one "
            "that is shipped: lightning-suite score -c resofilter/score"
        )
    for name, value in (("batch_tokens", batch_tokens), ("batch_samples", batch_samples)):
        if value is not None and value < 1:
            raise SuiteError(f"{name}={value}, and it must be at least 1.")
    make_features(features := listed(features), states_follow=True)  # a mistake is said at once
    if threads is not None:
        torch.set_num_threads(threads)
    fabric = _launch(accelerator, devices, num_nodes)
    _seed(seed_everything)
    datamodule = build(LightningDataModule, data.as_dict(), "data")
    if isinstance(datamodule, InstructionDataModule):
        datamodule.read()  # a mistake in the data is said before a large model is loaded
    _seed(seed_everything)  # whatever the data drew
    module, checkpoint = _build_module(model, fabric, ckpt_path)
    samples = _open_data(datamodule, module, fabric)
    network = scored_network(module)
    targets = find_targets(network, modules, layers, biases=biases, include_frozen=include_frozen)
    chosen = make_features(with_optimizer_state(features, module, checkpoint, targets.found))
    module.to(fabric.device)
    precision = precision_of(network, fabric.device)
    warn_of_rounded_products(chosen, precision)
    folder = RunFolder(out)
    config = {
        "out": out,
        "features": features,
        "modules": modules,
        "layers": layers,
        "biases": biases,
        "include_frozen": include_frozen,
        "without_prompt": without_prompt,
        "ckpt_path": ckpt_path,
        "batch_tokens": batch_tokens,
        "batch_samples": batch_samples,
        "rows_per_shard": rows_per_shard,
        "allow_low_precision": allow_low_precision,
        "seed_everything": seed_everything,
        "model": model.as_dict(),
        "data": data.as_dict(),
    }
    with open_probe(
        module,
        targets.found,
        chosen,
        samples,
        without_prompt=without_prompt,
        allow_low_precision=allow_low_precision,
    ) as probe:
        store = partial(
            ScoreStore,
            out,
            rank=fabric.global_rank,
            rows_per_shard=rows_per_shard,
            float64_columns=[
                f"{t.name}.{f.name}" for t in targets.found for f in chosen if f.nearly_constant
            ],
        )
        with _together(fabric):
            if fabric.is_global_zero:
                refuse_random_data(samples, _data_name(datamodule))
                for name, reason in targets.skipped.items():
                    print(f"{name} is not watched: {reason}", file=sys.stderr)
                manifest = make_manifest(
                    network,
                    targets.found,
                    chosen,
                    mode="probe",
                    model=type(module).__name__,
                    pretrained=_pretrained(module),
                    computation=computation(module, _told_by_config(module)),
                    depth=targets.depth,
                    precision=precision,
                    environment=environment(fabric.device, fabric.world_size),
                    data=samples.fingerprint(),
                    template=samples.template,
                    max_length=samples.max_length,
                    without_prompt=without_prompt,
                    # a sample's last digits depend on its batch
                    batches={"tokens": batch_tokens, "samples": batch_samples},
                )
                shards = store(manifest)
                write_source(folder.path, datamodule)
        with _together(fabric):
            if not fabric.is_global_zero:
                shards = store({**read_manifest(out), "weights": weights_fingerprint(network)})
        batches = token_budget_batches(samples.lengths, batch_tokens, batch_samples)
        waiting = unfinished(batches, samples.ids, shards.finished_ids())
        # all have read what is finished before anybody adds to it
        fabric.barrier()
        own = waiting[fabric.global_rank :: fabric.world_size]
        progress = Progress(sum(map(len, own)), shown=fabric.is_global_zero)
        score_batches(probe, own, shards, progress)
        progress.close()
    fabric.barrier()
    if fabric.is_global_zero:
        scored = sum(map(len, waiting))
        print(f"{scored:,} samples scored now, {len(samples.ids) - scored:,} before")
        where = f" at {ckpt_path}" if ckpt_path else ""
        _finish(folder, datamodule, config, f"{_model_name(module)}{where}")
    return 0


def _build_module(
    model: Namespace, fabric: Fabric, ckpt_path: str | None
) -> tuple[LightningModule, dict[str, Any] | None]:
    module = build(LightningModule, model.as_dict(), "model")
    # stands in for a trainer: `self.log` does nothing
    module.fabric = fabric
    module.configure_model()
    return module, None if ckpt_path is None else load_weights(module, ckpt_path)


def _open_data(data: LightningDataModule, module: LightningModule, fabric: Fabric) -> ScoringData:
    with _together(fabric):
        if fabric.local_rank == 0:
            prepare_data(data, module)
    return open_data(data, module)


def _launch(accelerator: str, devices: int | str, num_nodes: int) -> Fabric:
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started the processes already
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["GROUP_WORLD_SIZE"])
    several = str(devices) != "1" or num_nodes > 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp" if several else "auto",
    )
    fabric.launch()
    return fabric


@contextmanager
def _together(fabric: Fabric) -> Iterator[None]:
    """Where one rank is refused in this block, all end; none waits for one that has gone."""
    error: SuiteError | OSError | None = None
    try:
        yield
    except (SuiteError, OSError) as err:
        error = err
    failed = torch.tensor(float(error is not None), device=fabric.device)
    anywhere = fabric.all_reduce(failed, reduce_op="max")
    if error is not None:
        raise error
    if isinstance(anywhere, torch.Tensor) and anywhere > 0:
        raise SystemExit(2)


def _seed(seed: int) -> None:
    seed_everything(seed, verbose=False)


def _told_by_config(module: LightningModule) -> tuple[str, ...]:
    """Return the hyperparameters that are in the configuration of the model they have made."""
    if not isinstance(module, CausalLMModule):
        return ()
    return tuple(inspect.signature(CausalLMModule).parameters)


def _pretrained(module: LightningModule) -> str | None:
    name = module.hparams.get("pretrained")
    return str(name) if name else None


def _model_name(module: LightningModule) -> str:
    return _pretrained(module) or type(module).__name__


def _data_name(data: LightningDataModule) -> str:
    source = getattr(data, "source", None)
    if source is None:
        return type(data).__name__
    return ", ".join(source) if isinstance(source, list) else str(source)


def _finish(
    folder: RunFolder, data: LightningDataModule, config: dict[str, Any], network: str
) -> None:
    table = merge_shards(folder.path)
    write_table(table, folder.path / MERGED)
    status = Counter(table["status"].to_pylist())
    print(", ".join(f"{count:,} {name}" for name, count in status.items()))
    folder.write_record(
        command=["lightning-suite", *sys.argv[1:]],
        seed=config["seed_everything"],
        config=yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False),
        note=f"{len(table):,} samples of {_data_name(data)}, scored on {network}.",
    )
    from lightning_suite.report.resofilter_figures import describe_scores  # noqa: PLC0415

    try:
        texts = _texts(data)
        describe_scores(folder, table, texts)
    except MissingExtraError as err:
        print(f"no figures: {err}", file=sys.stderr)
    from lightning_suite.report.page import write_report  # noqa: PLC0415

    print(folder.path / MERGED)
    print(write_report(folder.path))


def _texts(data: LightningDataModule) -> dict[str, tuple[str, str]]:
    """Return prompt and answer of each sample, if there are any."""
    if not isinstance(data, InstructionDataModule):
        return {}
    return {example.id: (example.prompt, example.response) for example in data.examples()}
