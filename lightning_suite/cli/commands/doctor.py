"""``lightning-suite doctor``."""

from __future__ import annotations

from lightning_suite import __version__
from lightning_suite.cli.parsing import count


def run() -> int:
    """Look at versions, extras, devices and logins, and say what to do about problems.

    Nothing is installed, downloaded or sent. Exit status 1 if something cannot work as it is.

    Example:
        lightning-suite doctor
    """
    from lightning_suite.cli import environment  # noqa: PLC0415

    print(f"lightning-suite {__version__}")
    problems = 0
    for title, look in (
        ("Packages", environment.packages),
        ("Extras", environment.extras),
        ("Machine", environment.machine),
        ("Weights & Biases", environment.wandb),
    ):
        findings = list(look())
        if findings:
            print(f"\n{title}")
        for finding in findings:
            print(f"  {finding.status:<8} {finding.text}")
            problems += finding.status == "problem"
    print(f"\n{count(problems, 'problem')}")
    return 1 if problems else 0
