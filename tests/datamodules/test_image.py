"""ImageDataModule: the same contract over every source, on real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import idx_bytes
from sklearn.datasets import load_digits

from lightning_suite import ImageDataModule
from lightning_suite.datamodules.image import pixel_moments
from lightning_suite.errors import SuiteError

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.disable_progress_bars()


def set_up(*args: Any, stage: str | None = None, **options: Any) -> ImageDataModule:
    data = ImageDataModule(*args, **options)
    data.prepare_data()
    data.setup(stage)
    return data


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_scikit_learns() -> None:
    data = set_up(normalise=False)
    assert (data.in_channels, data.image_size, data.num_classes) == (1, (8, 8), 10)
    splits = [data.tensors(split) for split in ("train", "val", "test")]
    assert [len(labels) for _, labels in splits] == [1437, 180, 180]
    images = torch.cat([images for images, _ in splits]).squeeze(1) * 16
    labels = torch.cat([labels for _, labels in splits])
    truth = load_digits()
    ours = {(*map(int, image.flatten()), int(y)) for image, y in zip(images, labels, strict=True)}
    theirs = {
        (*map(int, image.ravel()), int(y))
        for image, y in zip(truth.images, truth.target, strict=True)
    }
    assert ours == theirs
    assert len(ours) == 1797  # all differ: no image is in two splits


def test_a_batch_is_images_float32_and_labels_int64() -> None:
    images, labels = next(iter(set_up(batch_size=32).train_dataloader()))
    assert (images.shape, images.dtype) == ((32, 1, 8, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((32,), torch.int64)


def test_normalisation_is_measured_on_the_training_split_alone() -> None:
    data = set_up()
    train, _ = data.tensors("train")
    assert train.mean().item() == pytest.approx(0, abs=1e-6)
    assert train.std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    assert abs(data.tensors("val")[0].mean().item()) > 1e-4
    raw, _ = set_up(normalise=False).tensors("train")
    torch.testing.assert_close(data.mean, raw.double().mean((0, 2, 3)))
    torch.testing.assert_close(data.std, raw.double().std((0, 2, 3), unbiased=False))


def test_moments_of_a_constant_channel_do_not_divide_by_zero() -> None:
    mean, std = pixel_moments(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))
    assert (mean.item(), std.item()) == (pytest.approx(0.2), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_first_batch_depends_on_the_seed_alone(num_workers: int) -> None:
    first, _ = next(iter(set_up(seed=3).train_dataloader()))
    torch.rand(5)
    again, _ = next(iter(set_up(seed=3, num_workers=num_workers).train_dataloader()))
    other, _ = next(iter(set_up(seed=4).train_dataloader()))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_splits_follow_the_split_seed_and_not_the_order_seed() -> None:
    val = set_up(seed=1).tensors("val")[0]
    assert torch.equal(val, set_up(seed=2).tensors("val")[0])
    assert not torch.equal(val, set_up(split_seed=1).tensors("val")[0])


def test_val_fraction_does_not_change_what_is_tested_on() -> None:
    first = set_up(val_fraction=0.1, normalise=False).tensors("test")[0]
    assert torch.equal(first, set_up(val_fraction=0.5, normalise=False).tensors("test")[0])


def test_limit_keeps_a_subset_of_every_split() -> None:
    whole, some = (set_up(normalise=False, limit=limit) for limit in (None, 50))
    for split in ("train", "val", "test"):
        few = {tuple(image.flatten().tolist()) for image in some.tensors(split)[0]}
        all_of_it = {tuple(image.flatten().tolist()) for image in whole.tensors(split)[0]}
        assert len(few) == 50
        assert few < all_of_it


def test_without_validation_there_is_no_validation_loader() -> None:
    data = set_up(val_fraction=0, test_fraction=0)
    assert data.val_dataloader() == []
    assert len(data.tensors("train")[1]) == 1797
    with pytest.raises(SuiteError, match="no split 'test', and test_fraction is 0. Set test_fr"):
        data.test_dataloader()


def test_fit_reads_no_test_images() -> None:
    assert set(set_up(stage="fit")._datasets) == {"train", "val"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"val_fraction": 1.0}, r"val_fraction is 1.0; it must be in \[0, 1\)"),
        ({"limit": 0}, "limit is 0"),
        ({"source": "digit"}, "source 'digit': no such folder. Did you mean 'digits'"),
        ({"source": "/no/where"}, "no such folder. Use 'digits', a folder with IDX"),
        ({"val_fraction": 0.0001}, "val_fraction 0.0001 of 1,797 training images is 0"),
        ({"val_fraction": 0.9, "test_fraction": 0.9}, "val_fraction 0.9 .* is 1617, and 180 are"),
    ],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        set_up(**options)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(SuiteError, match="split 'tran' does not exist. Did you mean 'train'"):
        set_up().tensors("tran")


# --- IDX files ------------------------------------------------------------------------------------


def write_idx_folder(folder: Path, *, gz: bool, labels: int = 20) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 5), dtype=np.uint8)
    for split in ("train", "t10k"):
        for stem, data in (
            (f"{split}-images-idx3-ubyte", idx_bytes((20, 4, 5), pixels.tobytes())),
            (
                f"{split}-labels-idx1-ubyte",
                idx_bytes((labels,), bytes(i % 3 for i in range(labels))),
            ),
        ):
            name, content = (f"{stem}.gz", gzip.compress(data)) if gz else (stem, data)
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("prefix", ["", "idx:"])
def test_a_folder_of_idx_files(tmp_path: Path, gz: bool, prefix: str) -> None:
    folder = write_idx_folder(tmp_path / "mnist", gz=gz)
    data = set_up(f"{prefix}{folder}", val_fraction=0.25)
    assert (data.in_channels, data.image_size, data.num_classes) == (1, (4, 5), 3)
    assert [len(data.tensors(s)[1]) for s in ("train", "val", "test")] == [15, 5, 20]


def test_as_many_labels_as_images(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "mnist", gz=False, labels=19)
    message = "train-images-idx3-ubyte holds 20 images, train-labels-idx1-ubyte 19 labels"
    with pytest.raises(SuiteError, match=message):
        set_up(str(folder))


def test_a_missing_idx_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    folder = write_idx_folder(tmp_path / "mnist", gz=False)
    (folder / "train-labels-idx1-ubyte").unlink()
    message = r"train-labels-idx1-ubyte\[.gz\] is missing. There is: t10k-images"
    with pytest.raises(SuiteError, match=message):
        set_up(str(folder))


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist() -> None:
    data = set_up(str(FASHION_MNIST), normalise=True)
    assert (data.in_channels, data.image_size, data.num_classes) == (1, (28, 28), 10)
    assert [len(data.tensors(s)[1]) for s in ("train", "val", "test")] == [54_000, 6_000, 10_000]
    assert data.tensors("test")[1].bincount().tolist() == [1000] * 10
    # the figures that everybody uses, of all 60,000 training images
    assert data.mean.item() == pytest.approx(0.2860, abs=1e-3)
    assert data.std.item() == pytest.approx(0.3530, abs=1e-3)


# --- data sets of the `datasets` package ----------------------------------------------------------


def picture(mode: str = "RGB", size: tuple[int, int] = (6, 4), seed: int = 0) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_image_folder(folder: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for i in range(12):
            path = folder / split / ("cat" if i % 2 else "dog") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed=i).save(path)
    return folder


def save_set(folder: Path, images: list[Any], labels: list[Any], feature: Any = None) -> Path:
    """Save a set with the columns ``picture``, ``kind`` and ``note``."""
    columns = {"picture": images, "kind": labels, "note": ["x"] * len(images)}
    features = datasets.Features(
        picture=datasets.Image(),
        kind=feature or datasets.ClassLabel(names=["a", "b"]),
        note=datasets.Value("string"),
    )
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder)
    return folder


def test_a_folder_of_pngs(tmp_path: Path) -> None:
    data = set_up(str(write_image_folder(tmp_path)), val_fraction=0.25, normalise=False)
    assert (data.in_channels, data.image_size, data.num_classes) == (3, (4, 6), 2)
    assert [len(data.tensors(s)[1]) for s in ("train", "val", "test")] == [9, 3, 12]
    images, labels = data.tensors("test")
    truth = {
        tuple(np.asarray(picture(seed=i)).transpose(2, 0, 1).ravel()): 1 - i % 2 for i in range(12)
    }  # cat is 0, dog is 1
    for image, label in zip(images, labels, strict=True):
        assert truth[tuple((image * 255).round().int().flatten().tolist())] == label


def test_a_folder_without_a_test_split_gives_some_of_its_images_to_it(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path, ("train",))
    data = set_up(str(folder), val_fraction=0.25, test_fraction=0.25)
    assert [len(data.tensors(s)[1]) for s in ("train", "val", "test")] == [6, 3, 3]


def test_a_saved_set_with_a_validation_split_keeps_it(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    splits = {
        name: datasets.Dataset.from_dict(
            {"image": [picture(seed=i) for i in range(n)], "label": list(range(n))}, features
        )
        for name, n in (("train", 8), ("validation", 4), ("test", 5))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    data = set_up(str(tmp_path))
    assert [len(data.tensors(s)[1]) for s in ("train", "val", "test")] == [8, 4, 5]


def test_columns_are_found_by_their_types(tmp_path: Path) -> None:
    save_set(tmp_path, [picture(seed=i) for i in range(10)], [0, 1] * 5)
    assert set_up(str(tmp_path)).num_classes == 2


def test_class_names_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    labels = ["pear", "apple"] * 5
    save_set(tmp_path, [picture(seed=i) for i in range(10)], labels, datasets.Value("string"))
    data = set_up(str(tmp_path), label_column="kind", val_fraction=0, test_fraction=0)
    assert data.tensors("train")[1].tolist() == [1, 0] * 5


def test_grey_images_have_one_channel_and_a_coloured_one_makes_all_coloured(tmp_path: Path) -> None:
    grey = [picture("L", seed=i) for i in range(10)]
    save_set(tmp_path / "grey", grey, [0] * 10)
    save_set(tmp_path / "mixed", [*grey[:9], picture("RGBA")], [0] * 10)
    options = {"val_fraction": 0, "test_fraction": 0}
    assert set_up(str(tmp_path / "grey"), **options).in_channels == 1
    assert set_up(str(tmp_path / "mixed"), **options).in_channels == 3


def test_images_of_several_sizes_need_resize(tmp_path: Path) -> None:
    images = [picture(size=(4 + i % 2, 4), seed=i) for i in range(10)]
    save_set(tmp_path, images, [0] * 10)
    with pytest.raises(SuiteError, match=r"2 sizes \(width×height: 4×4, 5×4\). Set resize"):
        set_up(str(tmp_path))
    assert set_up(str(tmp_path), resize=8).image_size == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_column": "pictur"},
            r"'pictur' does not exist. Did you mean 'picture'\? Columns: ",
        ),
        ({"image_column": "note"}, r"'note' does not hold images.* picture \(Image\), kind \(Cl"),
        ({"label_column": "kin"}, "label_column 'kin' does not exist. Did you mean 'kind'"),
        ({"label_column": "note", "val_fraction": 0.3}, None),  # text labels: one class, fine
    ],
)
def test_a_wrong_column_is_answered_with_the_columns(
    tmp_path: Path, options: dict[str, Any], message: str | None
) -> None:
    save_set(tmp_path, [picture(seed=i) for i in range(10)], [0] * 10)
    if message is None:
        assert set_up(str(tmp_path), **options).num_classes == 1
        return
    with pytest.raises(SuiteError, match=message):
        set_up(str(tmp_path), **options)


def test_two_label_columns_are_a_question_to_the_user(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(img=datasets.Image(), fine=names, coarse=names)
    columns = {"img": [picture()] * 4, "fine": [0] * 4, "coarse": [1] * 4}
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path)
    with pytest.raises(SuiteError, match="2 columns look like labels; set label_column. Columns"):
        set_up(str(tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([None], [0], "row 9 of split 'train', column 'picture': there is no image in this row"),
        (
            [{"path": None, "bytes": b"GIF89a no"}],
            [0],
            "row 9 of split 'train', column 'picture': cannot be decoded: ",
        ),
        ([Image.new("I;16", (6, 4))], [0], "row 9 .* pixel format 'I;16' has more than 8 bits"),
        ([Image.new("RGB", (6, 4))], [-1], "row 9 of split 'train' has label -1 in column 'kind'"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, images: list[Any], labels: list[int], message: str
) -> None:
    good = [picture(seed=i) for i in range(9)]
    save_set(tmp_path, good + images, [0] * 9 + labels, datasets.Value("int64"))
    with pytest.raises(SuiteError, match=message):
        set_up(str(tmp_path), label_column="kind", val_fraction=0, test_fraction=0)


def test_a_set_without_training_split_or_images(tmp_path: Path) -> None:
    pytest.importorskip("datasets", minversion="4")  # datasets 3.0 cannot save an empty set
    save_set(tmp_path / "empty", [], [])
    with pytest.raises(SuiteError, match="empty: cannot be loaded as a data set"):
        set_up(str(tmp_path / "empty"))
    only = datasets.load_from_disk(str(save_set(tmp_path / "one", [picture()], [0])))
    datasets.DatasetDict({"evaluation": only}).save_to_disk(tmp_path / "other")
    with pytest.raises(SuiteError, match="has no split 'train'. It has: evaluation"):
        set_up(str(tmp_path / "other"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SuiteError, match=r"nothing: holds no data \(images\). Give the folder"):
        set_up(str(tmp_path / "nothing"))


def test_the_test_split_must_look_like_the_training_split(tmp_path: Path) -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))

    def save(name: str, image: Any, label: int) -> str:
        train = {"image": [picture(seed=i) for i in range(10)], "label": [0, 1] * 5}
        test = {"image": [image], "label": [label]}
        datasets.DatasetDict(
            train=datasets.Dataset.from_dict(train, features),
            test=datasets.Dataset.from_dict(test, features),
        ).save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    with pytest.raises(SuiteError, match=r"'test' have shape \(3, 9, 9\), those of 'train' \(3, 4"):
        set_up(save("size", picture(size=(9, 9)), 0))
    with pytest.raises(SuiteError, match="'test' has label 2; the training split has 2 classes"):
        set_up(save("label", picture(), 2))


def test_a_grey_test_image_of_a_coloured_set_is_made_coloured(tmp_path: Path) -> None:
    for name, mode in (("train/a/0", "RGB"), ("train/b/1", "RGB"), ("test/a/2", "L")):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(mode).save(path)
    data = ImageDataModule(str(tmp_path), val_fraction=0)
    assert data.tensors("test")[0].shape == (1, 3, 4, 6)  # asked for before the training split


def test_a_set_of_the_hub_is_only_asked_for_by_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(SuiteError, match="'hub:no/such-set': the Hub's data set 'no/such-set'"):
        set_up("hub:no/such-set")


def test_the_options_are_plain_values(tmp_path: Path) -> None:
    assert json.loads(json.dumps(dict(ImageDataModule().hparams)))["source"] == "digits"
