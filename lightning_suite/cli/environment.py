"""What `doctor` looks at. Nothing here imports torch: a broken one must not break the diagnosis."""

from __future__ import annotations

import json
import netrc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

_PACKAGE = "lightning-suite"
# Extras that are sums of others.
_SUMS = ("all", "dev")
_STOLEN = (
    "is a compromised release that stole credentials: remove it, change your passwords and tokens"
)
_KNOWN_BAD = {
    (package, version): _STOLEN
    for package in ("lightning", "pytorch-lightning")
    for version in ("2.6.2", "2.6.3")
}

_PROBE = """
import json, torch
cuda = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "threads": torch.get_num_threads(),
    "built_for": torch.version.cuda or getattr(torch.version, "hip", None),
    "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in cuda],
    "mps": torch.backends.mps.is_available(),
}))
"""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        status: ``"problem"`` means that something will not work as it is.
        text: What was found and what to do.
    """

    status: Literal["ok", "note", "problem"]
    text: str


def packages() -> Iterator[Finding]:
    """Compare what is installed with what this package requires."""
    python = platform.python_version()
    try:
        wanted = metadata.metadata(_PACKAGE)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        yield Finding("problem", f"{_PACKAGE} runs from source: pip install -e .")
        return
    fits = python in SpecifierSet(wanted, prereleases=True)
    yield Finding("ok" if fits else "problem", f"python {python} (needs {wanted})")
    for requirement in requirements(_PACKAGE):
        yield _compare(requirement)
    for (name, bad), reason in _KNOWN_BAD.items():
        if _version(name) == bad:
            fix = f"pip install '{name}>=2.6.4,<2.7'"
            yield Finding("problem", f"{name} {bad} {reason}; then {fix}")


def extras() -> Iterator[Finding]:
    """Say which extras are there and how to get the others."""
    for extra in metadata.metadata(_PACKAGE).get_all("Provides-Extra") or []:
        if extra in _SUMS:
            continue
        findings = {r.name: _compare(r) for r in requirements(_PACKAGE, extra)}
        wrong = [name for name, finding in findings.items() if finding.status != "ok"]
        if wrong:
            fix = f"pip install '{_PACKAGE}[{extra}]'"
            yield Finding("note", f"{extra}: {', '.join(wrong)} missing or too old. {fix}")
        else:
            yield Finding("ok", f"{extra} ({', '.join(findings)})")


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """Return what ``package`` requires here: always, or for one extra only.

    Requirements on the package's own extras are replaced by what those require.
    """
    found: list[Requirement] = []
    for line in metadata.requires(package) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always == bool(extra) or (marker and not marker.evaluate({"extra": extra})):
            continue
        if requirement.name == package:
            for other in sorted(requirement.extras):
                found += requirements(package, other)
        else:
            found.append(requirement)
    return found


def _compare(requirement: Requirement) -> Finding:
    name = requirement.name
    version = _version(name)
    if version is None:
        return Finding("problem", f"{name} is not installed: pip install '{_plain(requirement)}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            "problem",
            f"{name} {version} does not fit {requirement.specifier}: "
            f"pip install '{_plain(requirement)}'",
        )
    for extra in sorted(requirement.extras):
        missing = [r.name for r in requirements(name, extra) if _version(r.name) is None]
        if missing:
            return Finding(
                "problem",
                f"{name} is without its extra '{extra}' ({', '.join(missing)} missing): "
                f"pip install '{_plain(requirement)}'",
            )
    return Finding("ok", f"{name} {version}")


def machine() -> Iterator[Finding]:
    """Cores, threads and devices; torch is asked in a process of its own."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    limit = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding("ok", f"{platform.platform()}, {cores} cores for this process")
    if find_spec("torch") is None:
        return
    probe = probe_torch()
    if isinstance(probe, str):
        yield Finding("problem", f"torch cannot be imported: {probe}")
        return
    yield Finding("ok", f"torch uses {probe['threads']} threads (OMP_NUM_THREADS {limit})")
    if cores and probe["threads"] > cores:
        yield Finding("note", f"more threads than cores is slow: export OMP_NUM_THREADS={cores}")
    for number, gpu in enumerate(probe["gpus"]):
        yield Finding("ok", f"cuda:{number} {gpu}")
    if probe["mps"]:
        yield Finding("ok", "mps (Apple GPU)")
    if probe["built_for"] and not probe["gpus"]:
        built = probe["built_for"]
        yield Finding("note", f"torch is built for CUDA {built} and sees no GPU: check nvidia-smi")
    if not probe["gpus"] and not probe["mps"]:
        yield Finding("ok", "no GPU: everything runs on the CPU")


def probe_torch(timeout: float = 180) -> dict[str, Any] | str:
    """Ask torch for its devices; return the last line of its error if it cannot answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {timeout:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def wandb() -> Iterator[Finding]:
    """Say whether W&B would find a login. Keys are neither read nor shown, nobody is contacted."""
    if _version("wandb") is None:
        return
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled"):
        yield Finding("ok", f"WANDB_MODE={mode}: no login needed")
    elif os.environ.get("WANDB_API_KEY"):
        yield Finding("ok", "login from WANDB_API_KEY")
    elif _in_netrc():
        yield Finding("ok", "login from the netrc file")
    else:
        yield Finding("note", "no login: run `wandb login`, or use the overlay wandb_offline")


def _in_netrc() -> bool:
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        hosts = netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return urlsplit(base).hostname in hosts


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(requirement: Requirement) -> str:
    return str(requirement).partition(";")[0].strip()
