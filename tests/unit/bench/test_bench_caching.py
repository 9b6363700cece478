"""Features cached from a model and images: the right ones, once, and never stale ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import OPNP, Ratios
from opnp.bench.feature_folder import read_feature_folder
from opnp.bench.odin_file import read_odin
from opnp.data import InputSet, open_inputs, read_features, read_head
from opnp.errors import (
    DataFileError,
    HeadNotFoundError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
)
from opnp.model import head_stream, inputs_of
from tests.contract.snapshot import unchanged
from tests.unit.bench.image_world import CLASSES, INPUTS, cached, class_images, image_sets, tiny_model, write_images
from tests.unit.data.image_files import save_image, write_tree


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, InputSet]:
    return image_sets(write_images(tmp_path / "images"))


def slow_features(model: nn.Sequential, images: InputSet) -> Tensor:
    """Return the features by running the layers before the head in eval mode."""
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    inputs = inputs_of(next(iter(images.batches(len(images)))))
    with torch.no_grad():
        features: Tensor = other.eval()[:-1](inputs)
    return features


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_features_are_those_before_the_head(tmp_path: Path, sets: dict[str, InputSet], dtype: torch.dtype) -> None:
    model = tiny_model()
    report = cached(model, sets, tmp_path / "out", dtype=dtype)
    for name, images in sets.items():
        found = read_features(tmp_path / "out" / f"{name}.safetensors")
        assert found.features.dtype == dtype
        expected = slow_features(model, images).to(dtype)
        torch.testing.assert_close(found.features, expected, rtol=1e-3 if dtype == torch.float16 else 1e-5, atol=1e-5)
        if name.startswith("ood_"):
            assert found.labels is None
        else:
            assert found.labels is not None
            assert found.labels.dtype == torch.int64
            assert found.labels.tolist() == class_images(120, seed=0)[1].tolist()
    head = read_head(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head.weight, model[-1].weight)  # type: ignore[arg-type]  # the last layer is a linear one
    assert report.computed == ("train", "test", "ood_noise", "ood_grey")
    assert report.source.head == "6"


def test_they_are_what_a_fit_on_the_model_sees(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    cached(model, {"train": sets["train"]}, tmp_path, dtype=torch.float32)
    found = read_features(tmp_path / "train.safetensors").features
    with head_stream(model, sets["train"].batches(32)) as stream:
        assert torch.equal(found, torch.cat([features for features, _, _ in stream.batches]))
    ratios = Ratios(w_min=0.3, o_min=0.2)
    one = OPNP(ratios=ratios, shaping=None).fit(model, sets["train"].batches(32))
    head = read_head(tmp_path / "head.safetensors")
    other = OPNP(ratios=ratios, shaping=None).fit_features(found, weight=head.weight, bias=head.bias)
    torch.testing.assert_close(one.sensitivity.weight, other.sensitivity.weight, rtol=1e-5, atol=0)
    assert all(torch.equal(left, right) for left, right in zip(one.masks, other.masks, strict=True))


def test_a_benchmark_reads_the_folder(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    report = cached(tiny_model(), sets, tmp_path)
    data = read_feature_folder(tmp_path)
    assert (data.classes, data.features, sorted(data.ood)) == (CLASSES, 48, ["grey", "noise"])
    assert sorted(read_feature_folder(tmp_path, ood=["noise"]).ood) == ["noise"]
    assert data.odin is not None
    assert {name: len(scores) for name, scores in data.odin.scores.items()} == {
        "test": 120,
        "ood_noise": 60,
        "ood_grey": 50,
    }
    assert data.head.bias is not None
    logits = linear(data.test.features.float(), data.head.weight, data.head.bias)
    assert data.test.labels is not None
    accuracy = float((logits.argmax(1) == data.test.labels).double().mean())
    assert report.source.sets["test"].accuracy == pytest.approx(accuracy, abs=0.02)
    assert report.source.sets["ood_grey"].accuracy is None


def test_the_model_is_left_as_it_was(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    with unchanged(model, "caching"):
        cached(model, sets, tmp_path)


def test_the_model_is_left_as_it_was_after_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    folder = write_tree(tmp_path / "images", {"0": 3})
    save_image(folder / "0" / "zz.png", class_images(1, seed=0)[0][0]).write_bytes(b"broken")
    with (
        unchanged(model, "an unreadable image"),
        pytest.raises(DataFileError, match=r"train: .*0/zz\.png cannot be read \(no image\): mend"),
    ):
        cached(model, {"train": open_inputs(folder, INPUTS, is_strict=True)}, tmp_path / "out", batch_size=2)
    assert not (tmp_path / "out" / "train.safetensors").exists()


def test_features_too_large_for_half_precision_name_the_remedy(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model[1].parameters()).fill_(3e5)
    message = r"test: a feature of \d.* is too large for float16, which ends at 65504: .*`--dtype float32`"
    with pytest.raises(OptionError, match=message):
        cached(model, {"test": sets["test"]}, tmp_path)
    assert not (tmp_path / "test.safetensors").exists()
    cached(model, {"test": sets["test"]}, tmp_path, dtype=torch.float32)
    assert float(read_features(tmp_path / "test.safetensors").features.max()) > 65504


def test_features_that_are_no_numbers_are_told(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    with torch.no_grad():
        next(model[1].parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="test: `features` in batch 0 must be finite"):
        cached(model, {"test": sets["test"]}, tmp_path)


def images_of(folder: Path, counts: dict[str, int]) -> InputSet:
    return open_inputs(write_tree(folder, counts), INPUTS)


def test_labels_must_be_classes_of_the_model(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    with pytest.raises(OptionError, match=r"test: `labels` must lie in 0 to 3 for 4 classes, got 0 to 4"):
        cached(model, {"test": images_of(tmp_path / "numbered", {"0": 1, "4": 1})}, tmp_path / "out")
    with pytest.raises(DataFileError, match=r"test: .*three names 3 classes, and the model has 4, so that"):
        cached(model, {"test": images_of(tmp_path / "three", {"a": 1, "b": 1, "c": 1})}, tmp_path / "out")
    cached(model, {"ood_three": images_of(tmp_path / "three", {})}, tmp_path / "out")
    four = {
        name: images_of(tmp_path / name, {first: 2, "b": 2, "c": 2, "d": 2})
        for name, first in {"train": "a", "test": "z"}.items()
    }
    with pytest.raises(DataFileError, match=r"train and .*test must have the same names of classes"):
        cached(model, four, tmp_path / "out")


def test_images_without_labels_are_cached_without(tmp_path: Path) -> None:
    for index, image in enumerate(class_images(5, seed=0)[0]):
        save_image(tmp_path / "flat" / f"{index}.png", image)
    report = cached(tiny_model(), {"train": open_inputs(tmp_path / "flat", INPUTS)}, tmp_path / "out")
    assert read_features(tmp_path / "out" / "train.safetensors").labels is None
    assert report.source.sets["train"].accuracy is None


@pytest.mark.parametrize("name", ["training", "ood_", "ood_a/b", "ood_..\\x", "head"])
def test_names_of_sets(tmp_path: Path, sets: dict[str, InputSet], name: str) -> None:
    with pytest.raises(OptionError, match="`sets` must be called train, test or ood_NAME"):
        cached(tiny_model(), {name: sets["test"]}, tmp_path)


def test_a_head_that_is_not_there_is_told(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    with pytest.raises(HeadNotFoundError, match=r"test: `head` = 'fc' is no layer of the model"):
        cached(tiny_model(), {"test": sets["test"]}, tmp_path, head="fc")


class Auxiliary(nn.Module):
    """A model of two outputs, of which the second is the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs.mean(), self.model(inputs)


def test_logits_in_a_tuple(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    test = {"test": sets["test"]}
    plain = cached(tiny_model(), test, tmp_path / "plain", is_odin_wanted=False).source
    found = cached(Auxiliary(), test, tmp_path / "tuple", logits=1, is_odin_wanted=False).source
    one, other = (read_features(tmp_path / name / "test.safetensors").features for name in ("plain", "tuple"))
    assert torch.equal(one, other)
    assert found.head == "model.6"
    assert found.sets["test"].accuracy == plain.sets["test"].accuracy
    assert found.model.forward == {"logits": 1}


def test_progress_goes_by_batches(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    lengths = []

    def progress(items: Any) -> Any:
        lengths.append(len(items))
        return items

    cached(tiny_model(), {"train": sets["train"], "test": sets["test"]}, tmp_path, batch_size=50, progress=progress)
    assert lengths == [3, 3, 3]  # train, test, and test for ODIN


def test_odin_is_computed_for_what_is_judged_and_only_if_wanted(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached(tiny_model(), sets, tmp_path, is_odin_wanted=False).odin is None
    assert read_odin(tmp_path) is None
    report = cached(tiny_model(), sets, tmp_path)
    assert report.computed == ()
    found = read_odin(tmp_path)
    assert found is not None
    assert sorted(found.scores) == ["ood_grey", "ood_noise", "test"]
    assert found.norm_std == INPUTS.std
    monkeypatch.setattr("opnp.adapters.baselines.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="ODIN needs pytorch-ood"):
        cached(tiny_model(), sets, tmp_path / "new")
    cached(tiny_model(), sets, tmp_path / "new", is_odin_wanted=False)


def test_training_images_alone_need_no_odin(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opnp.adapters.baselines.find_spec", lambda name: None)
    assert cached(tiny_model(), {"train": sets["train"]}, tmp_path).odin is None
    assert read_odin(tmp_path) is None
