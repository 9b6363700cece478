"""Folders of features: what they hold is read and checked, what is wrong is said; and the split of the test rows."""

import hashlib
from pathlib import Path

import pytest
import torch

from opnp.bench.features import feature_folders, read_feature_folder, read_models, split_test
from opnp.data import write_features
from opnp.errors import DataFileError, MissingFileError, OptionError
from tests.unit.bench.bench_world import CLASSES, FEATURES, read_world, write_world


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    model = read_world(tmp_path / "net")
    assert (model.name, model.classes, model.features) == ("net", CLASSES, FEATURES)
    assert list(model.ood) == ["cifar100", "noise"]
    assert {name: source.samples for name, source in model.sources.items()} == {
        "head": CLASSES,
        "train": 240,
        "test": 240,
        "ood_cifar100": 120,
        "ood_noise": 90,
    }
    content = (tmp_path / "net" / "test.safetensors").read_bytes()
    assert model.sources["test"].sha256 == hashlib.sha256(content).hexdigest()
    assert model.test.labels is not None
    assert model.test.labels.dtype == torch.int64


def test_ood_validation_samples_are_no_ood_set_and_are_read_where_they_are_wanted(tmp_path: Path) -> None:
    folder, rows = write_world(tmp_path / "net"), torch.rand(50, FEATURES)
    write_features(folder / "validation_ood.safetensors", rows)
    model = read_feature_folder(folder)
    assert model.validation_ood is not None
    assert torch.equal(model.validation_ood, rows)
    assert model.sources["validation_ood"].samples == 50
    assert {*model.ood, *model.judged} == {"cifar100", "noise", "test", "ood_cifar100", "ood_noise"}
    [other] = read_models(folder, near=(), is_tunable=False)
    assert other.validation_ood is None
    assert "validation_ood" not in other.sources


def test_one_folder_or_a_folder_of_folders(tmp_path: Path) -> None:
    one, other = write_world(tmp_path / "one"), write_world(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    assert feature_folders(tmp_path) == [one, other]
    assert feature_folders(one) == [one]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"absent does not exist: expected a folder with head\.safetensors"):
        feature_folders(tmp_path / "absent")
    with pytest.raises(MissingFileError, match="holds no model"):
        feature_folders(tmp_path)
    folder = write_world(tmp_path / "net")
    with pytest.raises(MissingFileError, match="is a file"):
        feature_folders(folder / "head.safetensors")
    (folder / "train.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"train\.safetensors does not exist"):
        read_feature_folder(folder)
    for file in folder.glob("ood_*"):
        file.unlink()
    with pytest.raises(MissingFileError, match="holds no ood_"):
        read_feature_folder(folder)


@pytest.mark.parametrize(
    ("name", "features", "labels", "message"),
    [
        ("train", torch.rand(5, FEATURES + 1), None, f"must have {FEATURES} columns to fit the head"),
        ("ood_noise", torch.rand(0, FEATURES), None, "has no rows"),
        ("test", torch.full((5, FEATURES), float("nan")), None, "80 NaN"),
        ("test", torch.rand(2, FEATURES), torch.tensor([0, CLASSES]), "must lie in 0 to 3, got 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, name: str, features: torch.Tensor, labels: torch.Tensor | None, message: str
) -> None:
    folder = write_world(tmp_path / "net")
    write_features(folder / f"{name}.safetensors", features, labels=labels)
    with pytest.raises(DataFileError, match=message) as caught:
        read_feature_folder(folder)
    assert f"{name}.safetensors" in str(caught.value)


def test_an_ood_set_may_be_called_as_it_likes(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "net")
    write_features(folder / "ood_test.safetensors", torch.rand(3, FEATURES))
    model = read_feature_folder(folder)
    assert model.sources["ood_test"].samples == len(model.ood["test"]) == 3
    assert model.sources["test"].samples == 240


@pytest.mark.parametrize(("samples", "expected"), [(10000, 2000), (1300, 400), (50, 20), (5000, 2000), (2, 1)])
def test_default_validation_samples(samples: int, expected: int) -> None:
    assert len(split_test(samples).validation) == expected


def test_a_split_has_every_row_once_follows_the_seed_and_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (split_test(100, validation_samples=30, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.cat([one.validation, one.rest]).sort().values, torch.arange(100))
    assert len(one.validation) == 30
    assert torch.equal(one.validation, again.validation)
    assert not torch.equal(one.validation, other.validation)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("count", [0, 10, -1, 11])
def test_a_split_with_an_empty_part_is_refused(count: int) -> None:
    with pytest.raises(OptionError, match="must lie in 1 to 9, as `test` has 10 rows"):
        split_test(10, validation_samples=count)


def test_near_sets_that_no_model_has_are_told(tmp_path: Path) -> None:
    model = read_world(tmp_path)
    known = next(iter(model.ood))
    assert [each.name for each in read_models(tmp_path, near=[known, f"{model.name}:{known}"])] == [model.name]
    for wrong in ("foo", f"{model.name}:foo", f"foo:{known}"):
        with pytest.raises(OptionError, match=rf"got {wrong}\. There are: .*{known}"):
            read_models(tmp_path, near=[known, wrong])
