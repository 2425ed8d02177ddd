"""What scores depend on, as a manifest beside them: two ways to make scores are never mixed."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lightning_suite
from lightning_suite.errors import SuiteError
from lightning_suite.json_text import load_json
from lightning_suite.module_names import clean_name
from lightning_suite.resofilter.features import Feature
from lightning_suite.resofilter.targets import Target

FORMAT = 2
MANIFEST = "manifest.json"
# Where scores were made: noted, and not compared.
ENVIRONMENT = "environment"
# What a model of these weights does, see `computation.computation`.
COMPUTATION = "computation"
# Where the weights came from; what they are is in their hash.
PRETRAINED = "pretrained"
_LONGEST = 160  # characters of a value in a message
Manifest = dict[str, Any]


def make_manifest(
    model: nn.Module | None,
    targets: Sequence[Target],
    features: Sequence[Feature],
    /,
    **more: Any,
) -> Manifest:
    """Return what the scores depend on, as plain values.

    Args:
        model: Hashed: names, shapes, dtypes and bytes of all its weights. None where they change.
        targets: What is watched.
        features: What is computed.
        more: For example ``mode``, ``model`` (its class), ``pretrained`` (its place),
            ``computation`` (what it does with its weights, see
            :func:`~lightning_suite.resofilter.computation.computation`), ``depth`` (its layers),
            ``data`` (see :func:`data_fingerprint`), ``template``, ``max_length``, ``precision``
            (see :func:`~lightning_suite.resofilter.precision.precision_of`), ``environment`` (see
            :func:`environment`).
    """
    packages = ["torch", "transformers", "peft"]
    return {
        "format": FORMAT,
        **more,
        **({} if model is None else {"weights": weights_fingerprint(model)}),
        "targets": {t.name: str(t.weight.dtype).removeprefix("torch.") for t in targets},
        "features": {f.name: f.spec() for f in features},
        "versions": {
            "lightning-suite": lightning_suite.__version__,
            "python": platform.python_version(),
            **{name: version for name in packages if (version := _version(name))},
        },
    }


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return where scores are made: device, CPU threads of a process, processes.

    They decide how sums are cut into parts, and so the last digits.
    """
    name = device.type
    if device.type == "cuda":
        name = f"cuda, {torch.cuda.get_device_name(device)}"
    return {"device": name, "threads": torch.get_num_threads(), "processes": processes}


def weights_fingerprint(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers that a checkpoint would hold."""
    digest = hashlib.sha256()
    for name, stored in sorted(model.state_dict().items()):
        values = stored.detach().cpu().contiguous()
        digest.update(f"{clean_name(name)} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(memoryview(values.flatten().view(torch.uint8).numpy()))
    return f"sha256:{digest.hexdigest()}"


def data_fingerprint(samples: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> Manifest:
    """Return the number and a hash of samples ``(id, tokens, labels)``, whatever their order.

    Raises:
        SuiteError: Two samples have the same id.
    """
    seen: set[str] = set()
    total = 0
    for sample_id, tokens, labels in samples:
        if sample_id in seen:
            raise SuiteError(
                f"data: two samples have the id {sample_id!r}. Scores are joined to the data by "
                "id, so ids must be unique."
            )
        seen.add(sample_id)
        text = json.dumps([sample_id, list(tokens), list(labels)])
        total += int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    return {"samples": len(seen), "sha256": f"{total % 2**256:064x}"}


def manifest_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each value that differs: ``key.key: old -> new``.

    The environment is left out, see :func:`environment_difference`, and so is where the weights
    came from.
    """
    noted = (f"{ENVIRONMENT}.", f"{PRETRAINED}:")
    return [line for line in _differences(old, new) if not line.startswith(noted)]


def environment_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each value of the environment that differs, as far as both know it."""
    both = [manifest.get(ENVIRONMENT, {}) for manifest in (old, new)]
    return _differences(*both) if all(both) else []


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a folder of scores.

    Raises:
        SuiteError: There is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: Manifest = load_json(path.read_bytes())
    except OSError as err:
        raise SuiteError(
            f"{path}: cannot be read ({err.strerror}). Is {folder} a folder that "
            "`lightning-suite score` wrote?"
        ) from err
    except ValueError as err:
        raise SuiteError(f"{path}: is not JSON: {err}") from err
    parts = ("data", "targets", "features", ENVIRONMENT)
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(part, {}), dict) for part in parts
    ):
        raise SuiteError(
            f"{path}: is no manifest of scores: it must be an object, and {', '.join(parts)} in it."
        )
    return manifest


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = sorted(before.keys() | after.keys())
    both = [(key, _shown(before, key), _shown(after, key)) for key in keys]
    return [f"{key}: {_cut(was)} -> {_cut(now)}" for key, was, now in both if was != now]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(absent)"


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
