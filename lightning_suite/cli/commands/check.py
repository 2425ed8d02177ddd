"""``lightning-suite check``."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from lightning_suite.cli.commands import COMMANDS
from lightning_suite.cli.parsing import command_parser, count
from lightning_suite.cli.shipped import resolve


def run(files: list[str]) -> int:
    """Find all problems of a config at once, without training anything.

    Several files are one stack, merged in this order as `fit -c A -c B` does. Each problem comes
    with file, line and key. They are checked for `fit`, or for the command whose keys they have
    (coord-check, lr-transfer, score). Exit status 1 if it would refuse them; a warning alone
    gives 0.

    Args:
        files: YAML files; names of `lightning-suite list` too.

    Example:
        lightning-suite check my.yaml
        lightning-suite check my.yaml overlays/wandb
    """
    from lightning_suite.cli.lightning_cli import ParserOnly  # noqa: PLC0415
    from lightning_suite.cli.problems import command_of, find_problems  # noqa: PLC0415

    parsers: dict[str, ArgumentParser] = {"fit": ParserOnly().parsers["fit"]}
    for name, command in COMMANDS.items():
        if command.takes_config:
            parsers[name] = command_parser(name, command.module(name).run)
    paths = [resolve(file) for file in files]
    target = command_of(paths, parsers)
    problems = find_problems(paths, parsers[target])
    for problem in problems:
        print(problem)
    errors = sum(not problem.warning for problem in problems)
    verdict = count(errors, "error") if errors else "ok"
    print(f"{' + '.join(files)}: {verdict}{'' if target == 'fit' else f' (for {target})'}")
    return 1 if errors else 0
