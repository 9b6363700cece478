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
from opnp.core import MEMBERS, PANEL
from opnp.detector.storage import FORMAT_VERSION
from opnp.errors import ArtifactError, HeadMismatchError, MemberWarning, MissingFileError, NotFittedError
from tests.unit.detector.detector_world import (
    CLASSES,
    FEATURES,
    KINDS,
    bias,
    features,
    fitted,
    fused,
    loader,
    made,
    model,
    weight,
)


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


@pytest.mark.parametrize("members", [PANEL, MEMBERS, ("norm", "gen"), ("vim",), ("relative_mahalanobis", "opnp_gen")])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_round_trip_of_a_fusion(tmp_path: Path, members: tuple[str, ...], has_bias: bool, dtype: torch.dtype) -> None:
    detector = OPNP(members=members, precision="float64" if dtype == torch.float64 else "float32")
    head_bias = bias().to(dtype) if has_bias else None
    detector.fit_features(features(300), weight=weight().to(dtype), bias=head_bias, validation=features(40, seed=1))
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    probe = torch.cat([features(30, seed=2), torch.zeros(1, FEATURES), torch.full((1, FEATURES), 1e30)])
    for one, other in (
        (detector.verdict_features(probe), loaded.verdict_features(probe)),
        (detector.explain_features(probe)[1:], loaded.explain_features(probe)[1:]),
    ):
        assert all(map(torch.equal, one, other))
    assert loaded.members == detector.members == members
    assert loaded.explain_features(probe).members == detector.explain_features(probe).members
    assert (loaded.left_out, loaded.samples, repr(loaded)) == (detector.left_out, 300, repr(detector))
    assert torch.equal(loaded.pruned_head.weight, detector.pruned_head.weight)
    assert loaded.original_head.weight.dtype == dtype


def test_members_that_were_left_out_and_why_are_kept(tmp_path: Path) -> None:
    given = features(200)
    given[:, 0], given[:, 1:] = torch.rand(200) + 0.1, 0.0
    with pytest.warns(MemberWarning):
        detector = OPNP().fit_features(given, weight=weight(), bias=bias(), validation=given)
    assert detector.left_out
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    assert (loaded.members, loaded.left_out) == (detector.members, detector.left_out)
    assert loaded.settings.members == PANEL
    assert torch.equal(loaded.score_features(features()), detector.score_features(features()))


def test_a_calibration_with_infinite_scores_comes_back(tmp_path: Path) -> None:
    held_out = features(40, seed=1)
    held_out[:2] = 0.0
    detector = fused().calibrate_features(held_out, keep=0.9)
    assert detector.calibration_scores.isposinf().tolist() == [False] * 38 + [True] * 2
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    assert torch.equal(loaded.calibration_scores, detector.calibration_scores)
    assert torch.equal(loaded.p_value_features(held_out), detector.p_value_features(held_out))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_detector_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    def detector() -> OPNP:
        return made(kind).fit_features(features(), weight=weight(), bias=bias(), validation=features(40))

    one, other = saved(tmp_path / "one", detector()), saved(tmp_path / "other", detector())
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
    assert metadata["fusion"] is None


def test_what_a_fusion_is_made_of_can_be_read_off_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "detector", fused().calibrate_features(features(40, seed=1)))
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        metadata = json.loads(json.loads(file.metadata()["opnp"])["body"])["metadata"]
    panel = {"mean", "gaussian.center", "gaussian.whitening", "gaussian.means", "space.origin", "space.basis"}
    assert {f"panel.{name}" for name in panel} == {name for name in names if name.startswith("panel.")}
    assert {"fusion.scales", "calibration.members"} < names
    assert metadata["settings"]["members"] == metadata["fusion"]["fused"] == list(PANEL)
    assert (metadata["training_samples"], metadata["fusion"]["kept"]) == (320, 80)
    assert set(metadata["fusion"]["numbers"]) == {"react_threshold", "typical_norm", "alpha"}


def test_an_unfitted_detector_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        OPNP().save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"does not exist: expected a file .* opnp detector"):
        OPNP.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        OPNP.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_that_head_is_tied_to_it(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "detector", made(kind).fit(model(), loader()))
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


@pytest.mark.parametrize("kind", KINDS)
def test_loading_without_a_model_forgets_nothing(tmp_path: Path, kind: str) -> None:
    detector = made(kind).fit(model(), loader(), validation=loader(seed=1))
    path = saved(tmp_path / "detector", detector)
    content = path.read_bytes()
    OPNP.load(path).save(path)
    assert path.read_bytes() == content
    assert OPNP.load(path, model=model()).score(features()[0]).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_detector_can_be_fitted_again(tmp_path: Path, kind: str) -> None:
    detector = made(kind).fit_features(features(), weight=weight(), bias=bias())
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    assert loaded.settings == detector.settings
    loaded.fit_features(features(seed=1), weight=weight(), bias=bias())
    anew = made(kind).fit_features(features(seed=1), weight=weight(), bias=bias())
    assert torch.equal(loaded.score_features(features()), anew.score_features(features()))


# ------------------------------------------------------------------------------------------------- files of version 0.1
def of_first_version(path: Path, detector: OPNP, *, given: dict[str, object] | None = None) -> Path:
    """Write a detector of the paper's method as version 0.1 did, with what its user had given."""
    state = detector._fitted()
    settings = state.settings.to_json()
    tensors = {
        "head.weight": state.weight,
        "sensitivity.weight": state.sensitivity.weight,
        "sensitivity.neuron_gradient": state.sensitivity.neuron_gradient,
        "sensitivity.neuron_aggregate": state.sensitivity.neuron_aggregate,
    }
    if state.bias is not None:
        tensors["head.bias"] = state.bias
    if state.calibration is not None:
        tensors["calibration.scores"] = state.calibration.scores
    metadata = {
        "given": settings | (given or {}),
        "settings": settings,
        "training_samples": state.sensitivity.count,
        "react_thresholds": sorted(state.react_thresholds.items()),
        "tuning": None,
        "keep": None if state.calibration is None else state.calibration.keep,
        "head": {"name": state.head_name, "sha256": detector.head_digest},
        "input_axes": state.axes,
    }
    write_artifact(path, kind="detector", format_version=1, tensors=tensors, metadata=metadata)
    return path


@pytest.mark.parametrize("shaping", [None, ReAct(0.9), ASHS(0.5)])
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_a_file_of_version_0_1_with_given_settings_is_read(tmp_path: Path, shaping: Any, is_calibrated: bool) -> None:
    detector = OPNP(ratios=Ratios(0.3, 0.1, 0.1, 0.1), neuron="aggregate", temperature=1 / 3, shaping=shaping)
    detector.fit(model(), loader(), validation=loader(seed=1) if is_calibrated else None)
    # Where no shaping was given, version 0.1 said "auto", which with given ratios meant none.
    given: dict[str, object] = {"shaping": "auto"} if shaping is None else {}
    loaded = OPNP.load(of_first_version(tmp_path / "detector", detector, given=given), model=model())
    assert torch.equal(loaded.score(features(seed=2)), detector.score(features(seed=2)))
    assert repr(loaded) == repr(detector)
    assert loaded.members == ("opnp",)
    assert loaded.tuning is None
    if is_calibrated:
        assert all(map(torch.equal, loaded.verdict(features(seed=2)), detector.verdict(features(seed=2))))
    again = saved(tmp_path / "again", loaded)
    assert again.read_bytes() == saved(tmp_path / "anew", detector).read_bytes()


@pytest.mark.parametrize("given", [{"ratios": "auto"}, {"ratios": "auto", "shaping": "auto"}])
def test_a_file_of_version_0_1_that_chose_by_itself_is_refused(tmp_path: Path, given: dict[str, object]) -> None:
    path = of_first_version(tmp_path / "detector", fitted().calibrate_features(features(40)), given=given)
    with pytest.raises(
        ArtifactError, match=r"opnp 0\.1 that chose its settings by itself\. .* fit again with OPNP\(\)"
    ):
        OPNP.load(path)


def test_a_file_of_a_version_to_come_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "detector")
    tensors, metadata = read_artifact(path, kind="detector", format_version=FORMAT_VERSION)
    for version in (0, FORMAT_VERSION + 1):
        write_artifact(path, kind="detector", format_version=version, tensors=tensors, metadata=metadata)
        with pytest.raises(ArtifactError, match=f"has format version {version} of an opnp detector"):
            OPNP.load(path)


# ------------------------------------------------------------------------------------------------------ unsound content
def set_metadata(**values: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _tensors, metadata: metadata.update(values)


def drop_tensor(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _metadata: tensors.pop(name)


def set_tensor(name: str, value: torch.Tensor) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _metadata: tensors.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        set_metadata(given={}),
        set_metadata(fusion={}),
        set_metadata(tuning={"tried": 3}),
        set_metadata(training_samples=0),
        set_metadata(fusion={"fused": ["opnp"], "left_out": {}, "kept": 3, "numbers": {}}),
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
        set_tensor("calibration.scores", torch.full((40,), float("inf")).double()),
        set_tensor("calibration.members", torch.zeros(40, 1)),
        set_tensor("sensitivity.weight", torch.full((CLASSES, FEATURES), float("inf"))),
    ],
    ids=range(23),
)
def test_sound_files_with_unsound_content(tmp_path: Path, change: Any) -> None:
    path = rewritten(saved(tmp_path / "detector"), change)
    with pytest.raises(ArtifactError, match=r"detector"):
        OPNP.load(path)


def set_fusion(**values: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda _tensors, metadata: metadata["fusion"].update(values)


def scaled(name: str, factor: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, _metadata: tensors.update({name: tensors[name] * factor})


NUMBERS = {"react_threshold": 1.0, "typical_norm": 1.0, "alpha": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        set_metadata(fusion=None),
        set_metadata(settings={"ratios": {"w_min": 0.5}}),
        set_metadata(settings={"members": ["gen"]}),
        set_metadata(settings={"members": [*PANEL, "odin"]}),
        set_metadata(react_thresholds=[]),
        set_fusion(fused=[]),
        set_fusion(fused=[*PANEL[:-1], "energy"]),
        set_fusion(fused=[*PANEL, "gen"]),
        set_fusion(left_out={"gen": "it is fused as well"}),
        set_fusion(left_out={"energy": "it was not asked for"}),
        set_fusion(kept=0),
        set_fusion(kept="many"),
        set_fusion(numbers={}),
        set_fusion(numbers={"react_threshold": 1.0, "typical_norm": 1.0}),
        set_fusion(numbers=NUMBERS | {"alpha": "large"}),
        drop_tensor("fusion.scales"),
        set_tensor("fusion.scales", torch.zeros(2, 7).double()),
        set_tensor("fusion.scales", torch.tensor([[0.0], [1.0]]).double()),
        set_tensor("fusion.scales", torch.tensor([[0.0] * 7, [1.0] * 7])),
        set_tensor("fusion.scales", torch.tensor([[0.0] * 7, [1.0] * 6 + [float("inf")]]).double()),
        scaled("fusion.scales", -1.0),
        drop_tensor("panel.mean"),
        set_tensor("panel.mean", torch.zeros(FEATURES)),
        set_tensor("panel.mean", torch.zeros(FEATURES + 1).double()),
        scaled("panel.mean", float("nan")),
        drop_tensor("panel.gaussian.whitening"),
        drop_tensor("panel.gaussian.means"),
        set_tensor("panel.gaussian.means", torch.zeros(0, FEATURES).double()),
        set_tensor("panel.gaussian.means", torch.zeros(FEATURES).double()),
        set_tensor("panel.gaussian.means", torch.zeros(CLASSES, FEATURES - 1).double()),
        set_tensor("panel.gaussian.whitening", torch.zeros(FEATURES, 2).double()),
        scaled("panel.gaussian.whitening", float("inf")),
        drop_tensor("panel.space.basis"),
        set_tensor("panel.space.basis", torch.zeros(FEATURES - 1, 3).double()),
        drop_tensor("panel.space.origin"),
        set_tensor("panel.space.origin", torch.zeros(2).double()),
        set_tensor("calibration.scores", torch.full((40,), float("nan")).double()),
        set_tensor("calibration.scores", torch.zeros(39).double()),
        drop_tensor("calibration.members"),
        set_tensor("calibration.members", torch.zeros(40, 6)),
        set_tensor("calibration.members", torch.zeros(40, 7).long()),
        scaled("calibration.members", float("nan")),
    ],
    ids=range(42),
)
def test_sound_files_of_a_fusion_with_unsound_content(tmp_path: Path, change: Any) -> None:
    path = rewritten(saved(tmp_path / "detector", fused().calibrate_features(features(40, seed=1))), change)
    with pytest.raises(ArtifactError, match="detector"):
        OPNP.load(path)
