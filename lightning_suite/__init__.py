"""PyTorch Lightning callbacks, modules and commands for four published research methods.

Importing this package loads neither torch nor Lightning: every public name is imported on first
use, so that ``lightning-suite list`` and ``--version`` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module that defines it. `__all__`, `__getattr__` and the CLI's short class names
# are all made from this one table.
_PUBLIC: dict[str, str] = {
    "AttachNewStudentsCallback": "lightning_suite.callbacks.attach_new_students",
    "DepthMuPLRCallback": "lightning_suite.callbacks.depth_mup_lr",
    "DiagnosisReportCallback": "lightning_suite.callbacks.diagnosis_report",
    "ExpertGateCallback": "lightning_suite.callbacks.expert_gate",
    "FeatureDynamicsMonitor": "lightning_suite.callbacks.feature_dynamics_monitor",
    "GradientFeatureCallback": "lightning_suite.callbacks.gradient_features",
    "ResidualNetModule": "lightning_suite.depth_mup.module",
    "CausalLMModule": "lightning_suite.language.module",
    "Edit": "lightning_suite.scen.edits",
    "ExpertBank": "lightning_suite.scen.bank",
    "SCENModule": "lightning_suite.scen.module",
    "LMCDModule": "lightning_suite.lmcd.module",
    "ColdStartDataModule": "lightning_suite.datamodules.cold_start",
    "EditDataModule": "lightning_suite.datamodules.edits",
    "ImageDataModule": "lightning_suite.datamodules.image",
    "InstructionDataModule": "lightning_suite.datamodules.instruction",
    "TextDataModule": "lightning_suite.datamodules.text",
}

if TYPE_CHECKING:
    from lightning_suite.callbacks.attach_new_students import AttachNewStudentsCallback
    from lightning_suite.callbacks.depth_mup_lr import DepthMuPLRCallback
    from lightning_suite.callbacks.diagnosis_report import DiagnosisReportCallback
    from lightning_suite.callbacks.expert_gate import ExpertGateCallback
    from lightning_suite.callbacks.feature_dynamics_monitor import FeatureDynamicsMonitor
    from lightning_suite.callbacks.gradient_features import GradientFeatureCallback
    from lightning_suite.datamodules.cold_start import ColdStartDataModule
    from lightning_suite.datamodules.edits import EditDataModule
    from lightning_suite.datamodules.image import ImageDataModule
    from lightning_suite.datamodules.instruction import InstructionDataModule
    from lightning_suite.datamodules.text import TextDataModule
    from lightning_suite.depth_mup.module import ResidualNetModule
    from lightning_suite.language.module import CausalLMModule
    from lightning_suite.lmcd.module import LMCDModule
    from lightning_suite.scen.bank import ExpertBank
    from lightning_suite.scen.edits import Edit
    from lightning_suite.scen.module import SCENModule

__all__ = [
    "AttachNewStudentsCallback",
    "CausalLMModule",
    "ColdStartDataModule",
    "DepthMuPLRCallback",
    "DiagnosisReportCallback",
    "Edit",
    "EditDataModule",
    "ExpertBank",
    "ExpertGateCallback",
    "FeatureDynamicsMonitor",
    "GradientFeatureCallback",
    "ImageDataModule",
    "InstructionDataModule",
    "LMCDModule",
    "ResidualNetModule",
    "SCENModule",
    "TextDataModule",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
