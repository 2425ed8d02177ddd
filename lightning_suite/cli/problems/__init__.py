"""Everything that is wrong with a configuration at once, each with its file, line and key."""

from lightning_suite.cli.problems.accepted import wrong_values
from lightning_suite.cli.problems.sources import Problem
from lightning_suite.cli.problems.stack import command_of, explain, find_problems, refuse_lists

__all__ = ["Problem", "command_of", "explain", "find_problems", "refuse_lists", "wrong_values"]
