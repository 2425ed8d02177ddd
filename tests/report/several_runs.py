"""Folders of several runs as `fit` leaves them, and the tables of the page over them."""

from __future__ import annotations

import re
from pathlib import Path

from test_page import Page

from lightning_suite.run_folder import RunFolder

CONFIG = """\
trainer:
  max_epochs: 2
  callbacks:
  - class_path: lightning_suite.callbacks.{callback}
    init_args:
      every_n_steps: 5
model:
  class_path: my.Net
  init_args:
    lr: {lr}
"""


def fit(folder: Path, lr: float, losses: list[float], callback: str = "A") -> Path:
    """A folder as `fit` leaves it."""
    RunFolder(folder).write_record(
        command=["lightning-suite", "fit", "-c", "my.yaml"],
        seed=0,
        config=CONFIG.format(lr=lr, callback=callback),
    )
    rows = [f"{step},{loss},{lr}" for step, loss in enumerate(losses)]
    (folder / "metrics.csv").write_text("\n".join(["step,val_loss,lr-SGD", *rows, ""]))
    return folder


def rows(page: Page, label: str) -> list[list[str]]:
    """The cells of the table in the region of this name."""
    _, _, rest = page.source.partition(f'aria-label="{label}"')
    assert rest, f"no table {label}"
    body = rest.partition("<tbody>")[2].partition("</tbody>")[0]
    found = re.findall(r"<tr>(.*?)</tr>", body, re.S)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in found]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in cells]
