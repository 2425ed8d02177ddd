"""``lightning-suite fit|validate|test|predict``: a LightningCLI for any module."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from lightning_suite.checkpoint_io import write_atomically, written_checkpoints
from lightning_suite.cli.after_fit import last_lines, stopped_lines
from lightning_suite.cli.checkpoint_arguments import (
    checkpoint_arguments,
    given_model,
    undone_by_state,
)
from lightning_suite.cli.checkpoints import (
    explain_resume_error,
    read_checkpoint,
    require_training_state,
)
from lightning_suite.cli.empty_folders import no_empty_folder
from lightning_suite.cli.interruption import Stopped, was_interrupted
from lightning_suite.cli.messages import constructor_errors
from lightning_suite.cli.parsing import HelpFormatter, prepare_classes
from lightning_suite.cli.problems import explain, refuse_lists, wrong_values
from lightning_suite.cli.save_run import SaveRun
from lightning_suite.cli.stacking import resolve_options
from lightning_suite.cli.trainer_help import EPILOG, USAGE
from lightning_suite.cli.wandb_artifacts import log_artifacts
from lightning_suite.cli.yaml_depth import guard_yaml
from lightning_suite.errors import SuiteError
from lightning_suite.extras import import_extra


class SuiteCLI(LightningCLI):
    """Any LightningModule and DataModule, ours or the user's, from YAML and options.

    What it adds to `LightningCLI`: our classes by short name, all problems of a config in one
    message, a run folder with ``metrics.csv`` whatever the logger, `SaveRun`, and advice where a
    checkpoint does not fit. Checkpoints are always loaded with ``weights_only=True``.

    Args:
        args: The command and its options.
    """

    trainer: Trainer
    parsed_words: list[str] | None = None  # none where the configuration comes as one object

    def __init__(self, args: list[str]) -> None:
        self.words = args
        guard_yaml()
        self.unavailable = prepare_classes()
        # An abbreviation that is accepted today is ambiguous after the next release.
        parsing = {
            "exit_on_error": False,
            "allow_abbrev": False,
            "formatter_class": HelpFormatter,
        }
        parsers: dict[str, Any] = {
            name: {
                "usage": USAGE.format(command=name),
                "epilog": EPILOG.format(command=name),
                **parsing,
            }
            for name in self.subcommands()
        }
        super().__init__(
            save_config_callback=SaveRun,
            save_config_kwargs={"overwrite": True, "command": ["lightning-suite", *args]},
            # `true` would be 0 as well, with a warning
            seed_everything_default=0,
            parser_kwargs={"prog": "lightning-suite", **parsing, **parsers},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Trainer methods, without the choice to load pickled objects."""
        return {
            name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, or say everything that is wrong with the given files at once."""
        words = resolve_options(cast("list[str]", args))
        if words[1:] == ["--help-all"]:
            words[1:] = ["--help"]
        try:
            self.config = parser.parse_args(words)
        except ArgumentError as err:
            raise explain(words[1:], self._subcommand_parsers[words[0]], err) from err
        self.parsed_words = words
        refuse_lists(words[1:], self._subcommand_parsers[words[0]])
        wrong = wrong_values(self.config[words[0]], words[0])
        if wrong:  # before a large model is loaded
            refusal = SuiteError(wrong[0][1])
            raise explain(words[1:], self._subcommand_parsers[words[0]], refusal)

    def _parse_ckpt_path(self) -> None:
        """Take the model's arguments that nobody gave from the checkpoint.

        `LightningCLI` would replace those that the user gave, too. A checkpoint of a plain Trainer
        does not say which class made its hyperparameters, and `LightningCLI` fails on it; here the
        model is then built from the configuration alone.

        Raises:
            SuiteError: The user asks for another model than the checkpoint's.
        """
        command = self.config.subcommand
        path = self.config[command].get("ckpt_path")
        checkpoint = read_checkpoint(path) if path else {}
        if command == "fit":
            require_training_state(path, checkpoint)
        hparams = checkpoint.get("hyper_parameters")
        if not hparams:
            return
        if "_class_path" not in hparams:
            rank_zero_info(
                f"{path} was not written by this program: its weights and optimizer state are "
                "loaded, the model is built from the configuration."
            )
            return
        given = given_model(self.parser, self.config, self.parsed_words)
        model = checkpoint_arguments(path, hparams, given, trains=command == "fit")
        if command == "fit" and (undone := undone_by_state(checkpoint, given)):
            rank_zero_only(print)(
                f"--ckpt_path {path}: the training goes on with its optimizer's and scheduler's "
                "state, rates and decay among it, and these have no effect:\n  "
                + "\n  ".join(undone),
                file=sys.stderr,
            )
        self.config = self.parser.parse_object({command: {"model": model}}, self.config)

    def instantiate_classes(self) -> None:
        """Build model, data, callbacks and Trainer; what one of ours refuses is one line."""
        if "WandbLogger" in str(self._get(self.config, "trainer").get("logger")):
            import_extra("wandb", "wandb")
        with constructor_errors():
            check_data(self._get(self.config, "data"))
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer, with the loggers of `with_run_folder` and `AtomicCheckpointIO`."""
        config = self._get(self.config_init, "trainer")
        if not config.get("barebones"):
            root = config.get("default_root_dir") or "."
            kwargs["logger"] = with_run_folder(config.get("logger"), root)
        trainer = super().instantiate_trainer(**kwargs)
        write_atomically(trainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            with warnings.catch_warnings(), no_empty_folder(self._folder_to_make()):
                # lightning 2.6 on torch 2.13, at every batch; nothing a user can do about
                warnings.filterwarnings(
                    "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
                )
                super()._run_subcommand(subcommand)
        except ValueError as err:
            if advice := explain_resume_error(err, self.trainer):
                raise SuiteError(advice) from err
            raise
        except SystemExit as stop:
            if subcommand == "fit" and was_interrupted(stop):
                raise Stopped(self._where_it_stopped()) from stop
            raise
        folder = self.trainer.log_dir  # a broadcast: on every rank
        if self.trainer.is_global_zero and folder is not None:
            log_artifacts(self.trainer.loggers, folder, self.trainer.global_step)

    def _folder_to_make(self) -> Path | None:
        """Return the folder of this run, on the one rank that makes it."""
        first = next(iter(self.trainer.loggers), None)
        if not isinstance(first, CSVLogger | TensorBoardLogger) or not self.trainer.is_global_zero:
            return None
        return Path(first.log_dir)

    def _where_it_stopped(self) -> str:
        """Return what to say of an interrupted fit; nothing on other ranks."""
        if not self.trainer.is_global_zero:
            return ""
        folder = self._folder_to_make()  # without asking the other ranks, as `log_dir` would
        here = _shown(folder) if folder is not None and folder.is_dir() else ""
        last = (written_checkpoints(self.trainer) or [""])[-1]
        return stopped_lines(self.model, self.words, here, _shown(last))

    def before_fit(self) -> None:
        """Remember the checkpoints that are there: a fixed name is used again by every fit."""
        folder = getattr(self.trainer.checkpoint_callback, "dirpath", None)
        self.earlier = {str(path) for path in Path(folder).glob("*.ckpt")} if folder else set()

    def after_fit(self) -> None:
        """Say where the results are."""
        if self.trainer.loggers and not self._get(self.config, "trainer").fast_dev_run:
            folder = self.trainer.log_dir
            if self.trainer.is_global_zero:
                best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
                replaced = best in self.earlier
                saves = self.trainer.checkpoint_callback is not None
                lines = last_lines(
                    self.model,
                    self.words,
                    str(Path(folder or ".")),
                    _shown(best),
                    replaced=replaced,
                    written=not saves or written_checkpoints(self.trainer) != [],
                )
                print("", *lines, sep="\n")


def _shown(path: str | Path) -> str:
    """Return a path as it is typed from here."""
    return str(path).removeprefix(f"{Path.cwd()}{os.sep}").removeprefix("./")


def check_data(data: Namespace | None) -> None:
    """Let the data's class refuse what is not there, before a model is loaded for it.

    Args:
        data: The class and its arguments as configured. A class that has a static method
            ``check_options`` gets the arguments.

    Raises:
        SuiteError: What the class says.
    """
    if data is None or not data.get("class_path"):
        return
    module, _, name = data["class_path"].rpartition(".")
    check = None
    with suppress(ImportError, AttributeError, ValueError):  # not for us to explain
        check = getattr(import_module(module), name).check_options
    if check is not None:
        check(data.get("init_args") or {})


def with_run_folder(logger: Logger | Iterable[Logger] | bool | None, root: str) -> list[Logger]:
    """Return the loggers, led by one that makes a folder for each run.

    ``trainer.log_dir`` is that of the first logger, and only `CSVLogger` and `TensorBoardLogger`
    have one folder a run; behind `WandbLogger` alone all runs would share its ``save_dir``, and
    the second would find the config of the first. A CSVLogger is added where none of the two is.

    Args:
        logger: As the user gave it to the Trainer; false means none.
        root: Folder in which ``lightning_logs`` is made.
    """
    if logger is False:
        return []
    given = [] if logger is None or logger is True else logger
    loggers = list(given) if isinstance(given, Iterable) else [given]
    filed = [item for item in loggers if isinstance(item, CSVLogger | TensorBoardLogger)]
    others = [item for item in loggers if item not in filed]
    return [*(filed or [CSVLogger(root)]), *others]


class ParserOnly(SuiteCLI):
    """The parsers of the program, for commands that look at configs without running them."""

    def __init__(self) -> None:
        with suppress(_Built):
            super().__init__([])

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Stop here: the parsers are built."""
        raise _Built

    @property
    def parsers(self) -> dict[str, LightningArgumentParser]:
        """The parser of each Trainer command."""
        return self._subcommand_parsers


class _Built(Exception):  # noqa: N818 (not an error)
    """The parsers stand: `ParserOnly` needs nothing more of the LightningCLI."""
