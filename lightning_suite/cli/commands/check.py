"""``lightning-suite check``."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from lightning_suite.cli.commands import COMMANDS
from lightning_suite.cli.option_words import flags_of, read_words
from lightning_suite.cli.parsing import command_parser, count
from lightning_suite.cli.stacking import resolve_options

# Options, too, are those of the command that is checked.
TAKES_ANY_WORDS = True


def run(files: list[str]) -> int:
    """Find all problems of a config at once, without training anything.

    Several files are one stack, merged in this order as `fit -c A -c B` does. `-c` may stand
    before each, and options of `fit` anywhere: what is checked is what `fit` would run with these
    words. Each problem comes with file, line and key. They are checked for `fit`, or for the
    command whose keys they have (coord-check, lr-transfer, score). Exit status 1 if it would
    refuse them; a warning alone gives 0.

    Args:
        files: YAML files; names of `lightning-suite list` too.

    Example:
        lightning-suite check my.yaml
        lightning-suite check my.yaml overlays/wandb
        lightning-suite check -c my.yaml -c overlays/wandb --trainer.max_epochs 3
    """
    from lightning_suite.cli.lightning_cli import ParserOnly  # noqa: PLC0415
    from lightning_suite.cli.problems import command_of, find_problems  # noqa: PLC0415

    parsers: dict[str, ArgumentParser] = {"fit": ParserOnly().parsers["fit"]}
    for name, command in COMMANDS.items():
        if command.takes_config:
            parsers[name] = command_parser(name, command.module(name).run)
    given = read_words(files, flags_of(parsers.values()))
    words: list[str] = []
    for part in given:
        is_file = part.name in ("", "--config") and part.value is not None
        words += ["--config", part.value or ""] if is_file else part.words
    words = resolve_options(words)
    target = command_of(words, parsers)
    problems = find_problems(words, parsers[target])
    for problem in problems:
        print(problem)
    errors = sum(not problem.warning for problem in problems)
    verdict = count(errors, "error") if errors else "ok"
    names = " + ".join(part.value or "" for part in given if part.name in ("", "--config"))
    options = [word for part in given if part.name not in ("", "--config") for word in part.words]
    checked = " ".join(filter(None, [names, *options]))
    print(f"{checked}: {verdict}{'' if target == 'fit' else f' (for {target})'}")
    return 1 if errors else 0
