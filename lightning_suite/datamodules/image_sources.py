"""Where images come from: scikit-learn's digits, IDX files, any Hugging Face image data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_suite.datamodules.hf_datasets import (
    HUB_PREFIX,
    load_folder_dataset,
    load_hub_dataset,
)
from lightning_suite.datamodules.idx import read_idx
from lightning_suite.errors import SuiteError, did_you_mean
from lightning_suite.extras import import_extra
from lightning_suite.given_paths import given_path

IDX_PREFIX = "idx:"

_SPLIT_NAMES = {
    "train": ("train",),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_LABEL_NAMES = ("label", "labels", "class", "target", "y")
_GREY_MODES = {"1", "L", "LA"}
_COLOUR_MODES = {"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa"}


class ImageSource(Protocol):
    """Labelled images in splits, read only when asked for."""

    name: str
    white: int
    """The largest value that a pixel can have."""

    def labels(self, split: str) -> Tensor | None:
        """Return all labels of ``split`` (int64 [N]), or None when the source has no such split."""

    def images(self, split: str, rows: Sequence[int]) -> Tensor:
        """Return those images as uint8 [len(rows), C, H, W]."""


def open_source(
    source: str, *, image_column: str | None, label_column: str | None, resize: int | None
) -> ImageSource:
    """Find out what ``source`` names and open it.

    Args:
        source: See :class:`~lightning_suite.datamodules.image.ImageDataModule`.
        image_column: Column of the images; None finds it. Hugging Face data sets only.
        label_column: Column of the labels; None finds it. Hugging Face data sets only.
        resize: Height and width to resize to; None keeps the size. Hugging Face data sets only.

    Raises:
        SuiteError: There is no such source, or it has not what is asked for.
    """
    if source == "digits":
        return DigitsSource()
    if source.startswith(HUB_PREFIX):
        splits = load_hub_dataset(source)
    else:
        folder = given_path(source.removeprefix(IDX_PREFIX))
        if not folder.is_dir():
            raise SuiteError(
                f"source {source!r}: no such folder.{did_you_mean(source, ['digits'])} "
                "Use 'digits', a folder with IDX files, a folder of images (one subfolder a "
                "class), a folder written by Dataset.save_to_disk, or 'hub:OWNER/NAME' for a data "
                "set of the Hub."
            )
        if source.startswith(IDX_PREFIX) or any(folder.glob("*-ubyte*")):
            return IdxSource(folder)
        splits = load_folder_dataset(folder)
    return DatasetsSource(
        source, splits, image_column=image_column, label_column=label_column, resize=resize
    )


class DigitsSource:
    """scikit-learn's digits: 1,797 grey images of 8×8 pixels, 10 classes, one split."""

    name = "digits"
    white = 16

    def __init__(self) -> None:
        # The file inside the wheel; no download.
        bunch = import_extra("sklearn.datasets", "demo").load_digits()
        self._images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
        self._labels = torch.from_numpy(bunch.target).long()

    def labels(self, split: str) -> Tensor | None:
        """Return the labels; only ``"train"`` exists."""
        return self._labels if split == "train" else None

    def images(self, split: str, rows: Sequence[int]) -> Tensor:
        """Return images, uint8 [N, 1, 8, 8]."""
        assert split == "train"
        return self._images[list(rows)]


class IdxSource:
    """A folder of ``{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]``."""

    white = 255

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._images: dict[str, Tensor] = {}
        self._labels: dict[str, Tensor] = {}

    def labels(self, split: str) -> Tensor | None:
        """Return the labels; None when the folder has no files of that split."""
        prefixes = {"train": ("train",), "test": ("t10k", "test"), "val": ()}[split]
        if split not in self._labels:
            found = [p for p in prefixes if any(self._folder.glob(f"{p}-*-ubyte*"))]
            if not found:
                return None
            images = self._file(f"{found[0]}-images", 3)
            labels = self._file(f"{found[0]}-labels", 1)
            self._images[split], self._labels[split] = read_idx(images, 3), read_idx(labels, 1)
            if len(self._images[split]) != len(self._labels[split]):
                raise SuiteError(
                    f"{self._folder}: {images.name} holds {len(self._images[split]):,} images, "
                    f"{labels.name} {len(self._labels[split]):,} labels. They must be as many."
                )
        return self._labels[split].long()

    def images(self, split: str, rows: Sequence[int]) -> Tensor:
        """Return images, uint8 [N, 1, H, W]."""
        self.labels(split)
        return self._images[split][list(rows)].unsqueeze(1)

    def _file(self, stem: str, dimensions: int) -> Path:
        names = [f"{stem}{dot}idx{dimensions}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
        for name in names:
            if (self._folder / name).is_file():
                return self._folder / name
        there = ", ".join(sorted(p.name for p in self._folder.glob("*-ubyte*")))
        raise SuiteError(f"{self._folder}: {names[0]}[.gz] is missing. There is: {there}.")


class DatasetsSource:
    """An image set of the ``datasets`` package, by columns."""

    white = 255

    def __init__(
        self,
        name: str,
        splits: dict[str, Any],
        *,
        image_column: str | None,
        label_column: str | None,
        resize: int | None,
    ) -> None:
        self.name = name
        self._resize = resize
        self._splits = {
            ours: splits[theirs]
            for ours, names in _SPLIT_NAMES.items()
            for theirs in reversed(names)
            if theirs in splits
        }
        if "train" not in self._splits:
            raise SuiteError(f"{name}: has no split 'train'. It has: {', '.join(splits)}.")
        features = self._splits["train"].features
        self._image_column = _image_column(name, features, image_column)
        self._label_column = _label_column(name, features, label_column)
        self._class_names: list[str] | None = None  # of text labels, as the training split has them
        self._channels: int | None = None

    def labels(self, split: str) -> Tensor | None:
        """Return the labels; text labels are numbered in sorted order of the training split's."""
        if split not in self._splits:
            return None
        values = list(self._splits[split][self._label_column])
        if any(isinstance(value, str) for value in values):
            if self._class_names is None:
                self._class_names = sorted(set(self._splits["train"][self._label_column]))
            number = {name: i for i, name in enumerate(self._class_names)}
            unknown = sorted({str(v) for v in values} - number.keys())
            if unknown:
                raise SuiteError(
                    f"{self.name}: split '{split}' has labels that the training split has not: "
                    f"{', '.join(unknown[:5])}."
                )
            values = [number[value] for value in values]
        bad = next(((i, v) for i, v in enumerate(values) if not isinstance(v, int) or v < 0), None)
        if bad is not None:
            raise SuiteError(
                f"{self.name}: row {bad[0]} of split '{split}' has label {bad[1]!r} in column "
                f"'{self._label_column}'; expected a class number from 0 or a class name."
            )
        return torch.tensor(values, dtype=torch.long)

    def images(self, split: str, rows: Sequence[int]) -> Tensor:
        """Decode images to uint8 [N, C, H, W]: C = 1 if the training images are grey, else 3."""
        column = self._splits[split].select(rows).select_columns(self._image_column)
        pictures = []
        decoded = iter(column)
        for row in rows:
            try:
                picture = next(decoded)[self._image_column]
            except OSError as err:  # PIL's errors are OSErrors
                raise SuiteError(f"{self._where(split, row)}: cannot be decoded: {err}") from err
            if picture is None:
                raise SuiteError(f"{self._where(split, row)}: there is no image in this row.")
            if picture.mode not in _GREY_MODES | _COLOUR_MODES:
                raise SuiteError(
                    f"{self._where(split, row)}: pixel format {picture.mode!r} has more than 8 "
                    "bits a channel; convert the images to 8 bits first."
                )
            pictures.append(picture)
        if self._channels is None:
            self._channels = 1 if {p.mode for p in pictures} <= _GREY_MODES else 3
        if self._resize is not None:
            size = (self._resize, self._resize)
            pictures = [p.convert(self._mode).resize(size) for p in pictures]
        sizes = {p.size for p in pictures}
        if len(sizes) > 1:
            shown = ", ".join(f"{w}×{h}" for w, h in sorted(sizes)[:4])
            raise SuiteError(
                f"{self.name}: the images have {len(sizes)} sizes (width×height: {shown}"
                f"{', …' if len(sizes) > 4 else ''}). Set resize, for example resize: 32."
            )
        numpy = import_extra("numpy", "llm")
        stacked = torch.from_numpy(numpy.stack([p.convert(self._mode) for p in pictures]))
        return stacked.reshape(len(rows), *stacked.shape[1:3], self._channels).movedim(-1, 1)

    @property
    def _mode(self) -> str:
        return "L" if self._channels == 1 else "RGB"

    def _where(self, split: str, row: int) -> str:
        return f"{self.name}: row {row} of split '{split}', column '{self._image_column}'"


def _image_column(name: str, features: Any, wanted: str | None) -> str:
    image = import_extra("datasets", "llm").Image
    found = [column for column, feature in features.items() if isinstance(feature, image)]
    if wanted is None and len(found) == 1:
        return str(found[0])
    if wanted in found:
        return str(wanted)
    listed = _listed(features)
    if wanted is None:
        raise SuiteError(
            f"{name}: {len(found)} columns hold images; set image_column. Columns: {listed}."
        )
    what = "does not hold images" if wanted in features else "does not exist"
    raise SuiteError(
        f"{name}: image_column {wanted!r} {what}.{did_you_mean(wanted, found)} Columns: {listed}."
    )


def _label_column(name: str, features: Any, wanted: str | None) -> str:
    class_label = import_extra("datasets", "llm").ClassLabel
    if wanted is not None:
        if wanted in features:
            return wanted
        raise SuiteError(
            f"{name}: label_column {wanted!r} does not exist.{did_you_mean(wanted, features)} "
            f"Columns: {_listed(features)}."
        )
    found = [column for column, feature in features.items() if isinstance(feature, class_label)]
    found = found or [column for column in _LABEL_NAMES if column in features]
    if len(found) == 1:
        return str(found[0])
    raise SuiteError(
        f"{name}: {len(found)} columns look like labels; set label_column. "
        f"Columns: {_listed(features)}."
    )


def _listed(features: Any) -> str:
    return ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
