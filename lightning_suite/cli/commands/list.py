"""``lightning-suite list``."""

from __future__ import annotations

import json as json_format
from itertools import groupby

from lightning_suite.cli.shipped import describe, shipped_configs


def run(json: bool = False) -> int:
    """Show the configs that come with the package.

    Args:
        json: Print a JSON object, name to description, for other programs.

    Example:
        lightning-suite list
        lightning-suite cp overlays/wandb -          # read one
        lightning-suite list --json
    """
    described = {name: describe(config) for name, config in shipped_configs().items()}
    if json:
        print(json_format.dumps(described, indent=2))
        return 0
    width = max(map(len, described), default=0)
    for _, names in groupby(described, key=lambda name: name.partition("/")[0]):
        for name in names:
            print(f"{name:<{width}}  {described[name]}")
        print()
    print("`lightning-suite cp NAME FILE` copies one, `-c NAME` uses one as it is.")
    return 0
