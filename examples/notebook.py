# %% [markdown]
# # Does one sample teach the net more than another?
#
# A script of cells: editors and Jupyter (through jupytext) open it as a notebook, and
# `python examples/notebook.py` runs it as it is.

# %% The data: scikit-learn's digits, in which a tenth of the labels is wrong
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from pyarrow import parquet
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

from lightning_suite import GradientFeatureCallback, ResidualNetModule

seed_everything(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).div(16)[:, None]
true = torch.tensor(digits.target)
wrong = torch.rand(len(true)) < 0.1
labels = torch.where(wrong, (true + torch.randint(1, 10, true.shape)) % 10, true)


# %% Each batch says which samples it holds: `ids` names the rows of the table
class Digits(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    def __len__(self) -> int:
        return len(labels)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return images[place], labels[place], place


# %% Train for four epochs, and record the norm of each sample's own gradient
class Net(ResidualNetModule):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return super().training_step((batch[0], batch[1]), batch_idx)


folder = tempfile.mkdtemp()
features = GradientFeatureCallback(["grad_norm"], ids=2, folder=folder)
trainer = Trainer(
    max_epochs=4,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[features],
)
loader = DataLoader(Digits(), batch_size=64, shuffle=True)
trainer.fit(Net(depth=4, width=32), loader)

# %% One row a sample and epoch: mean norm over the layers, in the last epoch
table = parquet.read_table(sorted(Path(folder).rglob("*.parquet")))
layers = [name for name in table.column_names if name.endswith(".grad_norm")]
norms = torch.stack([torch.tensor(table[name].to_numpy()) for name in layers]).mean(0)
last = torch.tensor(table["step"].to_numpy()) >= 3 * len(loader)
ids = torch.tensor([int(name) for name in table["sample_id"].to_pylist()])
is_wrong = wrong[ids]
print(f"{int(last.sum())} samples, {int(is_wrong[last].sum())} with a wrong label")
print(f"median norm, right label: {norms[last & ~is_wrong].median():.3f}")
print(f"median norm, wrong label: {norms[last & is_wrong].median():.3f}")
