"""``lightning-suite doctor``."""

from __future__ import annotations

from lightning_suite import __version__
from lightning_suite.cli.parsing import count

# They are those of `fit`.
TAKES_ANY_WORDS = True


def run(options: tuple[str, ...] = ()) -> int:
    """Look at versions, extras, devices and logins, and say what to do about problems.

    Nothing is installed, downloaded or sent. Exit status 1 if something cannot work as it is.

    Args:
        options: Instead: show the role and learning-rate factor of every parameter of a model, as
            its DepthMuPLRCallback would set them. What fit takes: -c FILE, repeatable, and options
            such as --model.init_args.depth 8.

    Example:
        lightning-suite doctor
        lightning-suite doctor -c depth_mup/llama_from_scratch -c overlays/depth_mup
        lightning-suite doctor -c my.yaml -c overlays/depth_mup --model.init_args.depth 8
    """
    if options:
        from lightning_suite.cli.role_table import role_table  # noqa: PLC0415

        print(role_table(options))
        return 0
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
