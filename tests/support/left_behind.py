"""Snapshots of what a training could leave: on a module, on optimizers, in the process."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

import lightning.pytorch  # noqa: F401  (it sets up its loggers)
import numpy as np
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

# Set by Lightning and by libraries, with and without anything of ours.
_LIBRARIES = ("PL_", "KMP_", "TORCHINDUCTOR_", "PYTEST_CURRENT_TEST", "LITMODELS_", "PYTORCH_NVML_")


def on_module(module: nn.Module) -> dict[str, int | str]:
    """Hooks, replaced methods and classes, modes: name -> how many, or what."""
    found: dict[str, int | str] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if "hook" in key and isinstance(value, dict):
                found[f"{name}.{key}"] = len(value)
            elif callable(value) and not isinstance(value, nn.Module | type):
                found[f"{name}.{key}"] = "in the instance"
        found[f"{name} is"] = f"{type(part).__qualname__}, training={part.training}"
    for name, parameter in module.named_parameters():
        found[f"{name}: hooks"] = len(parameter._backward_hooks or ())
        after: dict[Any, Any] | None = getattr(parameter, "_post_accumulate_grad_hooks", None)
        found[f"{name}: hooks after"] = len(after or ())
        found[f"{name}: trained"] = str(parameter.requires_grad)
    return found


def on_optimizer(optimizer: Any) -> dict[str, int | str]:
    """Hooks and replaced methods of an optimizer or a scheduler."""
    found: dict[str, int | str] = {}
    for key, value in vars(optimizer).items():
        if "hook" in key and isinstance(value, dict):
            found[key] = len(value)
        elif callable(value):
            found[key] = getattr(value, "__qualname__", type(value).__qualname__)
    return found


def in_process() -> dict[str, Any]:
    """Flags, modes, filters, handlers, random states: name -> what it is."""
    backends: Any = torch.backends
    hooks = {
        f"global {key}": len(value)
        for owner in (torch.nn.modules.module, sys.modules["torch.optim.optimizer"])
        for key, value in vars(owner).items()
        if key.startswith("_global_") and isinstance(value, dict)
    }
    saved = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    return {
        **hooks,
        "hooks of saved tensors": saved(False),
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "threads": torch.get_num_threads(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "fused layers": backends.mha.get_fastpath_enabled(),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "mkldnn": backends.mkldnn.enabled,
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "warning filters": list(warnings.filters),
        "warnings": warnings.showwarning,
        "signals": {s: signal.getsignal(s) for s in signal.valid_signals()},
        "environment": {k: v for k, v in os.environ.items() if not k.startswith(_LIBRARIES)},
        "folder": os.getcwd(),  # noqa: PTH109
        "path": list(sys.path),
        "excepthook": sys.excepthook,
        "streams": (sys.stdout, sys.stderr),
        "threads of Python": sorted(
            thread.name for thread in threading.enumerate() if "tqdm" not in thread.name
        ),
        "root logger": (list(logging.root.handlers), logging.root.level),
        "loggers": {
            name: (list(logger.handlers), logger.level, list(logger.filters), logger.propagate)
            for name, logger in logging.root.manager.loggerDict.items()
            # libraries, such as torch, set up theirs when they are imported or first used
            if isinstance(logger, logging.Logger)
            and name.startswith(("lightning", "pytorch"))
            and (logger.handlers or logger.level)
        },
    }


def random_numbers() -> list[Any]:
    """What each generator would draw next."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    drawn = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    return drawn


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs: name -> (before, after)."""
    names = before.keys() | after.keys()
    both = {name: (before.get(name), after.get(name)) for name in sorted(names)}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}
