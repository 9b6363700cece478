"""Saved detectors: one file without code, checked against itself and against the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from opnp import ASHS, OPNP, Ratios, ReAct
from opnp.artifact import read_artifact, write_artifact
from opnp.core import MEMBERS, PANEL
from opnp.detector.storage import FORMAT_VERSION
from opnp.errors import ArtifactError, MemberWarning, MissingFileError
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


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {"ratios": Ratios(0.3, 0.1, 0.1, 0.1), "neuron": "aggregate", "temperature": 1 / 3},
    "react": {"ratios": Ratios(w_min=0.3), "shaping": ReAct(0.9)},
    "ash": {"shaping": ASHS(0.5), "precision": "float64"},
    "fusion": {},
    "all": {"members": MEMBERS, "precision": "float64"},
    "two": {"members": ("norm", "gen")},
    "others": {"members": ("relative_mahalanobis", "opnp_gen")},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("dtype", "has_bias"), [(torch.float16, True), (torch.float32, False), (torch.float64, True)])
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype, has_bias: bool) -> None:
    detector = OPNP(**OPTIONS[name])
    head_bias = bias().to(dtype) if has_bias else None
    detector.fit_features(features(300), weight=weight().to(dtype), bias=head_bias, validation=features(40, seed=1))
    loaded, probe = OPNP.load(saved(tmp_path / "detector", detector)), features(30, seed=2)
    if detector.settings.is_fusion:
        probe = torch.cat([probe, torch.zeros(1, FEATURES), torch.full((1, FEATURES), 1e30)])
    for one, other in (
        (detector.verdict_features(probe), loaded.verdict_features(probe)),
        (detector.explain_features(probe)[1:], loaded.explain_features(probe)[1:]),
    ):
        assert all(map(torch.equal, one, other))
    for held in ("members", "explained", "left_out", "samples", "settings"):
        assert getattr(loaded, held) == getattr(detector, held)
    assert repr(loaded) == repr(detector)
    assert torch.equal(loaded.pruned_head.weight, detector.pruned_head.weight)
    assert loaded.original_head.weight.dtype == dtype
    assert saved(tmp_path / "again", loaded).read_bytes() == (tmp_path / "detector").read_bytes()


def test_members_that_were_left_out_and_infinite_calibration_scores_come_back(tmp_path: Path) -> None:
    given, held_out = features(200), features(40, seed=1)
    given[:, 0], given[:, 1:], held_out[:2] = torch.rand(200) + 0.1, 0.0, 0.0
    with pytest.warns(MemberWarning):
        detector = OPNP().fit_features(given, weight=weight(), bias=bias(), validation=held_out, keep=0.9)
    assert detector.left_out
    assert detector.calibration_scores.isposinf().tolist() == [False] * 38 + [True] * 2
    loaded = OPNP.load(saved(tmp_path / "detector", detector))
    assert (loaded.members, loaded.left_out) == (detector.members, detector.left_out)
    assert loaded.settings.members == PANEL
    assert torch.equal(loaded.calibration_scores, detector.calibration_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_safetensors_that_says_what_it_holds(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "detector", made(kind).fit(model(), loader(20), validation=loader(seed=1)))
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        body = json.loads(json.loads(file.metadata()["opnp"])["body"])
    assert {"head.weight", "head.bias", "sensitivity.weight", "calibration.scores"} <= names
    assert (body["kind"], body["format_version"]) == ("detector", FORMAT_VERSION)
    assert set(body["versions"]) >= {"opnp", "torch"}
    metadata = body["metadata"]
    assert (metadata["head"]["name"], len(metadata["head"]["sha256"])) == ("1", 64)
    if kind == "paper":
        assert (metadata["fusion"], metadata["training_samples"]) == (None, 400)
        assert metadata["settings"]["ratios"]["w_min"] == 0.3
        return
    panel = {"mean", "gaussian.center", "gaussian.whitening", "gaussian.means", "space.origin", "space.basis"}
    assert {f"panel.{name}" for name in panel} == {name for name in names if name.startswith("panel.")}
    assert {"fusion.scales", "calibration.members"} < names
    assert metadata["settings"]["members"] == metadata["fusion"]["fused"] == list(PANEL)
    assert (metadata["training_samples"], metadata["fusion"]["kept"]) == (320, 80)
    assert set(metadata["fusion"]["numbers"]) == {"react_threshold", "typical_norm", "alpha"}


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"does not exist: expected a file .* opnp detector"):
        OPNP.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        OPNP.load(tmp_path)


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
        set_metadata(feature_names=["width"] * FEATURES),
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
    ids=range(24),
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
