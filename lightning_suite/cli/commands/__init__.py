"""One command a file; this table is all that ``lightning-suite --help`` has to import.

The command ``lr-transfer`` is the function `run` of ``commands/lr_transfer.py``: its signature and
docstring are its options and its help (see `lightning_suite.cli.parsing`).
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple


class Command(NamedTuple):
    """What is known of a command before it is imported."""

    help: str
    # Whether options may come from YAML files (`-c FILE`), classes by name among them.
    takes_config: bool = False
    # Heading in `lightning-suite --help`.
    section: str = "Configs and installation"

    @staticmethod
    def module(name: str) -> ModuleType:
        """Import the file of the command ``name``."""
        import importlib  # noqa: PLC0415

        return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


COMMANDS = {
    "list": Command("the configs that come with the package"),
    "cp": Command("copy one of them, to make it yours"),
    "check": Command("find all problems of a config at once"),
    "doctor": Command("versions, extras, devices; the learning rate of every parameter"),
    "completion": Command("completion by the Tab key, for bash, zsh and fish"),
    "report": Command("make report.html of a run"),
    "export": Command("a checkpoint of a language model as a model folder"),
    "coord-check": Command("does each layer learn equally at every depth?", True, "Depth-muP"),
    "lr-transfer": Command("does the best learning rate stay put over depth?", True, "Depth-muP"),
    "score": Command("score training samples by their own gradients", True, "ResoFilter"),
    "select": Command("keep the samples with the best scores", False, "ResoFilter"),
    "bank": Command("look into a bank of edits and change it", False, "SCEN"),
    "diffuse": Command("describe exercises and skills before training", True, "LMCD"),
}

# Trainer methods: these go to the LightningCLI.
TRAINER_COMMANDS = {
    "fit": "train",
    "validate": "evaluate on the validation data",
    "test": "evaluate on the test data",
    "predict": "run inference",
}
