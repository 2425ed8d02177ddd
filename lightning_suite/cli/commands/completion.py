"""``lightning-suite completion``."""

from __future__ import annotations

from typing import Literal


def run(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print a script with which the Tab key completes commands, options and config names.

    Write it to a file that the shell reads at its start; the script itself starts no Python. Print
    it anew after an upgrade.

    Args:
        shell: bash, zsh or fish.

    Example:
        lightning-suite completion bash > ~/.local/share/bash-completion/completions/lightning-suite
        lightning-suite completion zsh > ~/.zfunc/_lightning-suite    # a folder of your $fpath
        lightning-suite completion fish > ~/.config/fish/completions/lightning-suite.fish
        source <(lightning-suite completion bash)                     # for this shell alone
    """
    from lightning_suite.cli.completion import completion_script  # noqa: PLC0415

    print(completion_script(shell))
    return 0
