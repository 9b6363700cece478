"""How a model is run while its features are cached: workers, precision, memory format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp.bench.feature_source import FeatureSource
from opnp.data import InputSet, open_inputs, read_features
from opnp.errors import DataFileError, EmptyDataError, OptionError
from tests.contract.snapshot import unchanged
from tests.unit.bench.image_world import CLASSES, INPUTS, cached, image_sets, tiny_model, write_images
from tests.unit.data.image_files import write_tree

FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, InputSet]:
    found = image_sets(write_images(tmp_path / "images", rows=50))
    return {name: found[name] for name in ("test", "ood_noise")}


def features(model: nn.Module, sets: dict[str, InputSet], out: Path, **options: Any) -> Tensor:
    """Return the float32 features of `test` as they are cached."""
    cached(model, sets, out, dtype=torch.float32, is_odin_wanted=False, **options)
    return read_features(out / "test.safetensors").features


@FORKING
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_bit_of_any_file(tmp_path: Path, sets: dict[str, InputSet], workers: int) -> None:
    state = torch.random.get_rng_state()
    for name, number in {"alone": 0, "helped": workers}.items():
        cached(tiny_model(), sets, tmp_path / name, batch_size=7, workers=number)
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


def test_numbers_of_workers(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    with pytest.raises(
        OptionError, match="`workers` must be 0 or the number of processes that read inputs, at most 1024, got -1"
    ):
        cached(tiny_model(), sets, tmp_path / "out", workers=-1)
    assert not (tmp_path / "out").exists()


def test_bfloat16_is_near_and_not_equal(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    model = tiny_model()
    plain = features(model, sets, tmp_path / "plain")
    with unchanged(model, "a pass in bfloat16"):
        rough = features(model, sets, tmp_path / "bf16", amp="bf16")
    assert not torch.equal(rough, plain)
    torch.testing.assert_close(rough, plain, rtol=0, atol=0.03 * float(plain.max()))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        inputs, _ = next(iter(sets["test"].batches(32)))
        expected = tiny_model().eval()[:-1](inputs)
    assert torch.equal(rough[:32], expected.float())
    assert not torch.is_autocast_enabled("cpu")
    accuracy = FeatureSource.read(tmp_path / "bf16").sets["test"].accuracy
    answers = model[-1](rough).argmax(1)
    assert accuracy == float((answers == sets["test"].labels).double().mean())


def test_channels_last_gives_weights_back_as_they_lay(
    tmp_path: Path, sets: dict[str, InputSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    seen: list[bool] = []
    plain = features(model, sets, tmp_path / "plain")
    layouts = {name: tensor.stride() for name, tensor in model.state_dict().items()}

    def look(module: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
        seen.extend(each.is_contiguous(memory_format=torch.channels_last) for each in (args[0], module.weight))

    handle = model[0].register_forward_pre_hook(look)
    with unchanged(model, "a pass with channels last"):
        found = features(model, sets, tmp_path / "last", is_channels_last=True)
    handle.remove()
    assert seen
    assert all(seen)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == layouts
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("opnp.bench.feature_pass.head_stream", failing)
    with unchanged(model, "a pass that fails"), pytest.raises(EmptyDataError, match="no luck"):
        features(model, sets, tmp_path / "failed", is_channels_last=True)
    assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == layouts


def failing(*_: object, **__: object) -> None:
    message = "no luck"
    raise EmptyDataError(message)


@pytest.mark.parametrize("options", [{"amp": "bf16"}, {"is_channels_last": True}])
def test_features_of_another_pass_are_stale(tmp_path: Path, sets: dict[str, InputSet], options: dict[str, Any]) -> None:
    features(tiny_model(), sets, tmp_path / "out")
    with pytest.raises(DataFileError, match=r"holds features of another origin \(options of the forward pass\)"):
        features(tiny_model(), sets, tmp_path / "out", **options)
    features(tiny_model(), sets, tmp_path / "out", is_replacing=True, **options)
    report = cached(tiny_model(), sets, tmp_path / "out", dtype=torch.float32, is_odin_wanted=False, **options)
    assert report.computed == ()
    assert list(report.source.model.forward) == [name.removeprefix("is_") for name in options]


def test_records_without_options_of_the_pass_are_kept(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    features(tiny_model(), sets, tmp_path)
    record = tmp_path / "source.json"
    lines = [line for line in record.read_text(encoding="utf-8").splitlines() if '"forward"' not in line]
    assert len(lines) < len(record.read_text(encoding="utf-8").splitlines())
    record.write_text("\n".join(lines), encoding="utf-8")
    assert cached(tiny_model(), sets, tmp_path, dtype=torch.float32, is_odin_wanted=False).computed == ()


def test_precisions(tmp_path: Path, sets: dict[str, InputSet]) -> None:
    with pytest.raises(OptionError, match="`amp` must be none or bf16, got 'fp8'"):
        cached(tiny_model(), sets, tmp_path, amp="fp8")
