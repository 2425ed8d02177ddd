"""``lightning-suite check``."""

from __future__ import annotations

from lightning_suite.cli.parsing import count
from lightning_suite.cli.shipped import resolve


def run(files: list[str]) -> int:
    """Find all problems of a config at once, without training anything.

    Several files are one stack, merged in this order as `fit -c A -c B` does. Each problem comes
    with file, line and key. Exit status 1 if `fit` would refuse them; a warning alone gives 0.

    Args:
        files: YAML files; names of `lightning-suite list` too.

    Example:
        lightning-suite check my.yaml
        lightning-suite check my.yaml overlays/wandb
    """
    from lightning_suite.cli.lightning_cli import ParserOnly  # noqa: PLC0415
    from lightning_suite.cli.problems import find_problems  # noqa: PLC0415

    problems = find_problems([resolve(file) for file in files], ParserOnly().parsers["fit"])
    for problem in problems:
        print(problem)
    errors = sum(not problem.warning for problem in problems)
    print(f"{' + '.join(files)}: {count(errors, 'error') if errors else 'ok'}")
    return 1 if errors else 0
