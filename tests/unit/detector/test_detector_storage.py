"""Saved detectors: one file without code, checked against itself and against the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from opnp import ASHS, OPNP, Ratios, ReAct
from opnp.artifact import read_artifact, write_artifact
from opnp.detector.storage import FORMAT_VERSION
from opnp.errors import ArtifactError, HeadMismatchError, MissingFileError, NotFittedError, TuningWarning
from tests.unit.detector.detector_world import FEATURES, bias, features, fitted, loader, model, weight


def saved(path: Path, detector: OPNP | None = None) -> Path:
    (fitted().calibrate_features(features(40)) if detector is None else detector).save(path)
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """Write the detector again with other content and a digest that fits it."""
    tensors, metadata = read_artifact(path, kind="detector", format_version=FORMAT_VERSION)
    copied: dict[str, Any] = json.loads(json.dumps(metadata))
    change(tensors, copied)
    write_artifact(path, kind="detector", format_version=FORMAT_VERSION, tensors=tensors, metadata=copied)
    return path


@pytest.mark.parametrize("shaping", [None, ReAct(0.9), ASHS(0.5)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, shaping: Any, has_bias: bool, dtype: torch.dtype) -> None:
    detector = OPNP(ratios=Ratios(0.3, 0.1, 0.1, 0.1), neuron="aggregate", temperature=1 / 3, shaping=shaping)
    head_bias = bias().to(dtype) if has_bias else None
    detector.fit_features(features(), weight=weight().to(dtype), bias=head_bias, validation=features(40, seed=1))
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    for one, other in zip(
        detector.verdict_features(features(seed=2)), loaded.verdict_features(features(seed=2)), strict=True
    ):
        assert torch.equal(one, other)
    assert repr(loaded) == repr(detector)
    assert loaded.pruned_head.weight.dtype == dtype


def test_the_same_detector_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_the_file_is_safetensors_with_readable_metadata(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "detector", OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader(), validation=loader(seed=1))
    )
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        body = json.loads(json.loads(file.metadata()["opnp"])["body"])
    assert {"head.weight", "head.bias", "sensitivity.weight", "calibration.scores"} <= names
    assert (body["kind"], body["format_version"]) == ("detector", FORMAT_VERSION)
    assert set(body["versions"]) >= {"opnp", "torch"}
    metadata = body["metadata"]
    assert metadata["settings"]["ratios"]["w_min"] == 0.3
    assert metadata["training_samples"] == 60
    assert metadata["head"]["name"] == "1"
    assert len(metadata["head"]["sha256"]) == 64


def test_an_unfitted_detector_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        OPNP().save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"does not exist: expected a file .* opnp detector"):
        OPNP.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        OPNP.load(tmp_path)


def test_a_model_with_that_head_is_tied_to_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "detector", OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader()))
    loaded = OPNP.load(path, model=nn.DataParallel(model()))
    assert torch.equal(loaded.score(features()), loaded.score_features(features()))
    assert loaded.score(features()[0]).shape == ()


@pytest.mark.parametrize("name", ["1", "0"])
def test_of_equal_layers_the_one_of_that_name_is_taken(tmp_path: Path, name: str) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", model()[1])
            self.add_module("1", model()[1])

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            first, second = (self.get_submodule(name)(inputs / (int(name) + 1)) for name in ("0", "1"))
            both: torch.Tensor = first + second
            return both

    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(Twins(), loader(), head=name)
    loaded = OPNP.load(saved(tmp_path / "detector", detector), model=Twins())
    assert torch.equal(loaded.score(features()), detector.score(features()))
    assert torch.equal(loaded.score(features()), loaded.score_features(features() / (int(name) + 1)))


@pytest.mark.parametrize("change", ["weights", "dtype", "no linear layer"])
def test_a_model_with_another_head_is_refused(tmp_path: Path, change: str) -> None:
    path = saved(tmp_path / "detector", OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader()))
    other: nn.Module = model()
    if change == "weights":
        other.get_parameter("1.bias").data[0] += 1e-6
    else:
        other = other.double() if change == "dtype" else nn.ReLU()
    with pytest.raises(HeadMismatchError, match=r"fitted on a head with digest [0-9a-f]{12}"):
        OPNP.load(path, model=other)


def test_loading_without_a_model_forgets_nothing(tmp_path: Path) -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader(), validation=loader(seed=1))
    path = saved(tmp_path / "detector", detector)
    content = path.read_bytes()
    OPNP.load(path).save(path)
    assert path.read_bytes() == content
    assert OPNP.load(path, model=model()).score(features()[0]).shape == ()


def test_loading_is_quiet_and_keeps_automatic_settings(tmp_path: Path) -> None:
    with pytest.warns(TuningWarning):
        detector = OPNP().fit_features(features(), weight=weight(), bias=bias())
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    with pytest.warns(TuningWarning):
        loaded.fit_features(features(), weight=weight(), bias=bias())


def set_metadata(**values: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _tensors, metadata: metadata.update(values)


def drop_tensor(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _metadata: tensors.pop(name)


def set_tensor(name: str, value: torch.Tensor) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _metadata: tensors.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        set_metadata(given="text"),
        set_metadata(given=None),
        set_metadata(settings={"ratios": {"w_min": 3}}),
        set_metadata(settings=["ratios"]),
        set_metadata(head=None),
        set_metadata(head={"name": "1"}),
        set_metadata(head={"name": "1", "sha256": "0" * 64}),
        set_metadata(keep=None),
        set_metadata(keep=95),
        set_metadata(keep=0.999),
        drop_tensor("head.weight"),
        drop_tensor("sensitivity.weight"),
        drop_tensor("sensitivity.neuron_gradient"),
        set_tensor("head.weight", torch.ones(2, 3)),
        set_tensor("sensitivity.weight", torch.ones(2, 3)),
        set_tensor("sensitivity.neuron_gradient", torch.ones(FEATURES + 1)),
        set_tensor("calibration.scores", torch.full((40,), float("nan")).double()),
    ],
    ids=range(17),
)
def test_sound_files_with_unsound_content(tmp_path: Path, change: Any) -> None:
    path = rewritten(saved(tmp_path / "detector"), change)
    with pytest.raises(ArtifactError, match=r"detector"):
        OPNP.load(path)
