"""The short help of ``fit``, ``validate``, ``test`` and ``predict``. It imports no torch."""

from __future__ import annotations

from lightning_suite.cli.commands import TRAINER_COMMANDS

USAGE = "lightning-suite {command} [-c FILE]... [OPTIONS]"

EPILOG = """\
Files given with -c are merged in order; `callbacks+:` appends to the list of the files before,
a plain `callbacks:` replaces it. Files that only append, as the overlays do, may stand anywhere.
Classes are named by `class_path`: ours and Lightning's by short name, your own by dotted path from
this folder. --print_config follows the command.

Examples:
  lightning-suite {command} -c my.yaml
  lightning-suite {command} -c my.yaml -c overlays/wandb --trainer.max_epochs 3
  lightning-suite {command} -c my.yaml --model my_project.models.MyModule --print_config
  lightning-suite {command} -c my.yaml --ckpt_path lightning_logs/version_0/checkpoints/last.ckpt
"""

_SHORT = """\
usage: {usage}

{summary} with any module and any data: Lightning's Trainer, set by YAML files and options.

  -c FILE                     a config of yours, or a name of `lightning-suite list`; repeatable
  --ckpt_path FILE            a checkpoint to load or, in fit, to go on from
  --seed_everything N         default: 0
  --print_config              show the resolved configuration, with every key that can be set
  --model CLASS               --model.init_args.KEY VALUE sets one of its arguments
  --data CLASS                --data.init_args.KEY VALUE
  --trainer.KEY VALUE         such as max_epochs, max_steps, accelerator, devices, precision,
                              accumulate_grad_batches, limit_train_batches, fast_dev_run
  --help-all                  every key of the Trainer (some 400 lines)

{epilog}"""


def short_help(command: str) -> str:
    """Return what a newcomer needs of a Trainer command; ``--help-all`` shows the rest."""
    return _SHORT.format(
        usage=USAGE.format(command=command),
        summary=TRAINER_COMMANDS[command].capitalize(),
        epilog=EPILOG.format(command=command),
    )
