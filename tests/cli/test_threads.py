"""A command computes with its own number of threads and leaves the process's as it was."""

from __future__ import annotations

import pytest
import torch

from lightning_suite.cli.threads import cpu_threads


def test_the_number_of_threads_is_given_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before
