"""Features cached from a model and images: the right ones, however the model is run, and once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.bench.odin import read_odin
from opnp.bench.origin import FeatureSource
from opnp.data import InputSet, open_inputs, read_features, read_head
from opnp.errors import DataFileError, EmptyDataError, NonFiniteError, OptionError
from tests.contract.snapshot import unchanged
from tests.unit.bench.image_world import CLASSES, INPUTS, cached, class_images, image_sets, tiny_model, write_images
from tests.unit.data.image_files import save_image, write_tree

WIDTH = 12
FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, InputSet]:
    return image_sets(write_images(tmp_path / "images"))


@pytest.fixture
def two(sets: dict[str, InputSet]) -> dict[str, InputSet]:
    return {name: sets[name] for name in ("test", "ood_noise")}


def slow_features(model: nn.Sequential, images: InputSet) -> Tensor:
    """Return the features by running the layers before the head in eval mode."""
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    loaded = next(iter(images.batches(len(images))))
    inputs = loaded[0] if isinstance(loaded, tuple) else loaded
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


@pytest.mark.parametrize("name", ["training", "ood_", "ood_a/b", "ood_..\\x", "head"])
def test_names_of_sets(tmp_path: Path, sets: dict[str, InputSet], name: str) -> None:
    with pytest.raises(OptionError, match="`sets` must be called train, test, validation_ood or ood_NAME"):
        cached(tiny_model(), {name: sets["test"]}, tmp_path)


def test_another_precision_of_the_pass_is_refused(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    with pytest.raises(OptionError, match="none or bf16, got 'fp8'"):
        cached(tiny_model(), sets, tmp_path / "out", amp="fp8")
    assert not (tmp_path / "out").exists()


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


def test_odin_is_computed_for_what_is_judged_and_only_if_wanted(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    assert cached(tiny_model(), sets, tmp_path, is_odin_wanted=False).odin is None
    assert read_odin(tmp_path) is None
    report = cached(tiny_model(), sets, tmp_path)
    assert report.computed == ()
    found = read_odin(tmp_path)
    assert found is not None
    assert sorted(found.scores) == ["ood_grey", "ood_noise", "test"]
    assert found.about.norm_std == INPUTS.std


def features(model: nn.Module, two: dict[str, InputSet], out: Path, **options: Any) -> Tensor:
    """Return the float32 features of `test` as they are cached."""
    cached(model, two, out, dtype=torch.float32, is_odin_wanted=False, **options)
    return read_features(out / "test.safetensors").features


@FORKING
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit_of_any_file(tmp_path: Path, two: dict[str, InputSet], workers: int) -> None:
    state = torch.random.get_rng_state()
    for name, number in {"alone": 0, "helped": workers}.items():
        cached(tiny_model(), two, tmp_path / name, batch_size=7, workers=number)
    assert torch.equal(torch.random.get_rng_state(), state)
    files = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert "odin.safetensors" in files
    for name in files:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "helped" / name).read_bytes()


@FORKING
def test_a_broken_image_in_a_worker_is_told_as_here(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {str(each): 2 for each in range(CLASSES)})
    broken = next((tree / "2").iterdir())
    broken.write_bytes(b"no image")
    messages = []
    for workers in (0, 2):
        images = open_inputs(tree, INPUTS, is_strict=True)
        with pytest.raises(DataFileError, match=rf"^test: .*2/{broken.name} cannot be read \(no image\)") as caught:
            cached(tiny_model(), {"test": images}, tmp_path / "out", batch_size=2, workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_bfloat16_is_near_and_not_equal(tmp_path: Path, two: dict[str, InputSet]) -> None:
    model = tiny_model()
    plain = features(model, two, tmp_path / "plain")
    with unchanged(model, "a pass in bfloat16"):
        rough = features(model, two, tmp_path / "bf16", amp="bf16")
    assert not torch.equal(rough, plain)
    torch.testing.assert_close(rough, plain, rtol=0, atol=0.03 * float(plain.max()))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        inputs, _ = next(iter(two["test"].batches(32)))
        expected = tiny_model().eval()[:-1](inputs)
    assert torch.equal(rough[:32], expected.float())
    assert not torch.is_autocast_enabled("cpu")
    accuracy = FeatureSource.read(tmp_path / "bf16").sets["test"].accuracy
    answers = model[-1](rough).argmax(1)
    assert accuracy == float((answers == two["test"].labels).double().mean())


def test_channels_last_gives_weights_back_as_they_lay(
    tmp_path: Path, two: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    seen: list[bool] = []
    plain = features(model, two, tmp_path / "plain")
    layouts = {name: tensor.stride() for name, tensor in model.state_dict().items()}

    def look(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        seen.extend(each.is_contiguous(memory_format=torch.channels_last) for each in (args[0], module.weight))

    handle = model[0].register_forward_pre_hook(look)
    with unchanged(model, "a pass with channels last"):
        found = features(model, two, tmp_path / "last", is_channels_last=True)
    handle.remove()
    assert seen
    assert all(seen)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == layouts
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("opnp.bench.cache.head_stream", failing)
    with unchanged(model, "a pass that fails"), pytest.raises(EmptyDataError, match="no luck"):
        features(model, two, tmp_path / "failed", is_channels_last=True)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == layouts


def failing(*_: object, **__: object) -> None:
    message = "no luck"
    raise EmptyDataError(message)


@pytest.mark.parametrize("options", [{"amp": "bf16"}, {"is_channels_last": True}])
def test_features_of_another_pass_are_stale(
    tmp_path: Path, two: dict[str, InputSet], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    features(tiny_model(), two, tmp_path / "out")
    with pytest.raises(DataFileError, match=r"holds features of another origin \(options of the forward pass\)"):
        features(tiny_model(), two, tmp_path / "out", **options)
    features(tiny_model(), two, tmp_path / "out", is_replacing=True, **options)
    report = cached(tiny_model(), two, tmp_path / "out", dtype=torch.float32, is_odin_wanted=False, **options)
    assert report.computed == ()
    assert list(report.source.model.forward) == [name.removeprefix("is_") for name in options]


def test_records_without_options_of_the_pass_are_kept(tmp_path: Path, two: dict[str, InputSet]) -> None:
    features(tiny_model(), two, tmp_path)
    record = tmp_path / "source.json"
    lines = [line for line in record.read_text(encoding="utf-8").splitlines() if '"forward"' not in line]
    assert len(lines) < len(record.read_text(encoding="utf-8").splitlines())
    record.write_text("\n".join(lines), encoding="utf-8")
    assert cached(tiny_model(), two, tmp_path, dtype=torch.float32, is_odin_wanted=False).computed == ()


class Answering(nn.Module):
    """A body, a head that is a convolution, and pooling before or after it."""

    def __init__(self, *, is_pooled_after: bool) -> None:
        super().__init__()
        pool, flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.body = nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), *([] if is_pooled_after else [pool]))
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)
        self.after = nn.Sequential(*([pool] if is_pooled_after else []), flat)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.after(self.head(self.body(inputs)))
        return logits


@pytest.mark.parametrize("is_pooled_after", [False, True], ids=["pooled before", "pooled after"])
@pytest.mark.parametrize(
    "options",
    [{}, {"amp": "bf16"}, {"is_channels_last": True}],
    ids=str,
)
def test_features_and_head_give_the_models_logits(
    tmp_path: Path,
    two: dict[str, InputSet],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    *,
    is_pooled_after: bool,
) -> None:
    model = Answering(is_pooled_after=is_pooled_after)
    with unchanged(model, "caching"):
        report = cached(model, two, tmp_path / "out", dtype=torch.float32, is_odin_wanted=False, **options)
    assert report.source.head == "head"
    head, features = read_head(tmp_path / "out" / "head.safetensors"), read_features(tmp_path / "out/test.safetensors")
    assert head.weight.shape == (CLASSES, WIDTH)
    with torch.no_grad():
        logits = torch.cat([model(inputs) for inputs, _ in two["test"].batches(16)])
    tolerance = 0.05 if "amp" in options else 1e-5
    found = linear(features.features, head.weight, head.bias)
    torch.testing.assert_close(found, logits, rtol=tolerance, atol=tolerance)
