"""Calibration by predicted class: every answer, the file, the module and its graph go by the group of the class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import torch
from torch import Tensor

from opnp import OPNP
from opnp.artifact import read_artifact, write_artifact
from opnp.core import conformal_p_value
from opnp.detector.storage import FORMAT_VERSION
from opnp.errors import ArtifactError, CalibrationError, InputTypeError, OptionError
from opnp.export.files import exported_program, write_onnx
from tests.unit.detector.detector_world import CLASSES, KINDS, bias, features, loader, made, model, weight

KEEP = 0.8
PROBE = torch.cat([features(60, seed=2), 3 * features(20, seed=3), torch.zeros(1, 12)])


def by_class(kind: str) -> OPNP:
    """Return a detector with its model; every class but the last has calibration samples, one of them few."""
    return made(kind).fit(model(), loader(20)).calibrate(loader(4, seed=1), keep=KEEP, by="predicted")


@pytest.fixture(scope="module", params=KINDS)
def detector(request: pytest.FixtureRequest) -> OPNP:
    return by_class(request.param)


def test_an_input_is_compared_with_the_samples_of_its_group(detector: OPNP) -> None:
    verdict, held_out = detector.verdict_features(PROBE), features(80, seed=1)
    known, labels = detector.score_features(held_out), detector.classify_features(held_out)
    for row, label in enumerate(verdict.predicted_class.tolist()):
        group = detector.calibration_group_of(label)
        sources = group.classes if group.name == "pooled" else (label,)
        assert label in group.classes
        own = known[torch.isin(labels, torch.tensor(sources))]
        assert torch.equal(group.calibration.scores, own.double().sort().values)
        assert verdict.p_value[row] == conformal_p_value(verdict.score[row : row + 1], own)[0]
        assert bool(verdict.is_ood[row]) == bool(verdict.score[row] > group.threshold)
    assert {group.name.partition(" ")[0] for group in detector.calibration_groups} == {"class", "pooled"}
    assert sorted(label for group in detector.calibration_groups for label in group.classes) == [*range(CLASSES)]
    assert (detector.calibrated_by, len(detector.calibration_scores)) == ("predicted", 80)
    assert "calibrated on 80 at keep=0.8 by predicted class" in repr(detector)


def test_every_way_to_ask_gives_the_same(detector: OPNP) -> None:
    verdict = detector.verdict_features(PROBE)
    for p_values in (detector.p_value_features(PROBE), detector.p_value(PROBE), detector.verdict(PROBE).p_value):
        assert torch.equal(p_values, verdict.p_value)
    for flags in (detector.predict_features(PROBE), detector.predict(PROBE), detector.predict(iter(PROBE.split(7)))):
        assert torch.equal(flags, verdict.is_ood)
    assert torch.equal(detector.p_value_features(PROBE[0]), verdict.p_value[0])
    assert torch.equal(detector.predict(PROBE[0]), verdict.is_ood[0])
    explained = detector.explain_features(PROBE).p_value
    assert torch.equal(explained, torch.stack([detector.explain_features(row).p_value for row in PROBE]))
    counts = [detector.calibration_group_of(label).samples + 1 for label in verdict.predicted_class.tolist()]
    ranks = explained * torch.tensor(counts)[:, None]
    assert torch.allclose(ranks, ranks.round(), rtol=0, atol=1e-9)


def test_there_is_no_one_threshold(detector: OPNP) -> None:
    with pytest.raises(CalibrationError, match="no one threshold: `calibration_groups` hold one each"):
        _ = detector.threshold
    calibration = detector._calibration()
    with pytest.raises(CalibrationError, match="needs the predicted class"):
        calibration.p_value(torch.zeros(3))


def test_calibrating_by_all_again_replaces_it_and_gives_one_group() -> None:
    detector = by_class("paper")
    alone = made("paper").fit(model(), loader(20)).calibrate(loader(4, seed=1), keep=KEEP)
    detector.calibrate(loader(4, seed=1), keep=KEEP)
    assert all(map(torch.equal, detector.verdict_features(PROBE), alone.verdict_features(PROBE)))
    [group] = detector.calibration_groups
    assert (detector.calibrated_by, group.name, list(group.classes)) == (None, "all", list(range(CLASSES)))
    assert (group.samples, group.threshold) == (80, detector.threshold)
    assert detector.calibration_group_of(2) == group


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_with_held_out_data_calibrates_in_the_same_way(kind: str) -> None:
    options: dict[str, Any] = {"keep": KEEP, "by": "predicted"}
    whole = made(kind).fit(model(), loader(20), validation=loader(4, seed=1), **options)
    cached = made(kind).fit_features(
        torch.cat(loader(20)), weight=weight(), bias=bias(), validation=features(80, seed=1), **options
    )
    wanted = by_class(kind).verdict_features(PROBE)
    for found in (whole, cached):
        assert all(map(torch.equal, found.verdict_features(PROBE), wanted))


@pytest.mark.parametrize("by", ["class", "true", True, ["predicted"]])
def test_other_groupings_are_refused_before_anything_is_run(by: Any) -> None:
    detector = made("paper")
    asks: list[Callable[[], OPNP]] = [
        lambda: detector.fit(model(), loader(), by=by),
        lambda: detector.fit_features(features(), weight=weight(), bias=None, by=by),
        lambda: detector.calibrate(loader(), by=by),
        lambda: detector.calibrate_features(features(), by=by),
    ]
    for ask in asks:
        with pytest.raises(OptionError, match='`by` must be None or "predicted", got '):
            ask()


# ----------------------------------------------------------------------------------------------------- files and graphs
def test_a_file_holds_the_groups(detector: OPNP, tmp_path: Path) -> None:
    detector.save(tmp_path / "one")
    loaded = OPNP.load(tmp_path / "one")
    assert all(map(torch.equal, loaded.verdict_features(PROBE), detector.verdict_features(PROBE)))
    assert torch.equal(loaded.explain_features(PROBE).p_value, detector.explain_features(PROBE).p_value)
    assert repr(loaded) == repr(detector)
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, _: tensors.pop("calibration.classes"),
        lambda _, metadata: metadata.pop("calibrated_by"),
        lambda _, metadata: metadata.update(calibrated_by="true"),
        lambda tensors, _: tensors["calibration.classes"].add_(CLASSES),
        lambda tensors, _: tensors["calibration.classes"].sub_(CLASSES),
        lambda tensors, _: tensors.update({"calibration.classes": tensors["calibration.classes"][:-1].clone()}),
        lambda tensors, _: tensors.update({"calibration.classes": tensors["calibration.classes"].double()}),
    ],
)
def test_classes_that_do_not_belong_to_the_calibration_are_refused(detector: OPNP, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "detector"
    detector.save(path)
    tensors, metadata = read_artifact(path, kind="detector", format_version=FORMAT_VERSION)
    copied = json.loads(json.dumps(metadata))
    change(tensors, copied)
    write_artifact(path, kind="detector", format_version=FORMAT_VERSION, tensors=tensors, metadata=copied)
    with pytest.raises(ArtifactError, match="detector"):
        OPNP.load(path)


def test_a_module_and_its_graph_judge_by_the_group_of_the_predicted_class(detector: OPNP) -> None:
    module, verdict = detector.to_module(), detector.verdict_features(PROBE)
    logits, scores, p_values = module(PROBE)
    assert torch.equal(logits.argmax(1), verdict.predicted_class)
    graph: tuple[Tensor, ...] = exported_program(module, PROBE).module()(PROBE)
    for found in ((scores, p_values, module.judge.is_ood(scores, logits)), graph[1:]):
        assert torch.allclose(found[0].double(), verdict.score.double(), rtol=1e-5)
        assert torch.equal(found[1], verdict.p_value)
        assert torch.equal(found[2], verdict.is_ood)
    broken = PROBE.clone()
    broken[3, 2] = torch.nan
    _, scores, p_values = module(broken)
    assert bool(scores[3].isnan())
    assert float(p_values[3]) in {1 / (group.samples + 1) for group in detector.calibration_groups}
    with pytest.raises(InputTypeError, match="needs the logits of the original head"):
        module.judge(PROBE)
    assert json.loads(module.facts["opnp_threshold"]) == {
        group.name: repr(group.threshold) for group in detector.calibration_groups
    }


def test_an_onnx_file_judges_by_the_group_of_the_predicted_class(tmp_path: Path) -> None:
    detector, path = by_class("paper"), tmp_path / "detector.onnx"
    write_onnx(path, detector.to_module(), PROBE)
    session, verdict = onnxruntime.InferenceSession(path), detector.verdict_features(PROBE)
    found = session.run(["p_value", "is_ood"], {session.get_inputs()[0].name: PROBE.numpy()})
    assert [values.tolist() for values in found] == [verdict.p_value.tolist(), verdict.is_ood.tolist()]


def test_the_card_names_every_group(detector: OPNP) -> None:
    card = detector.model_card()
    for group in detector.calibration_groups:
        assert (
            f"| {group.name} | {', '.join(map(str, group.classes))} | {group.samples} | {group.threshold!r} |" in card
        )
    assert "It holds for the inputs predicted as each class" in card
    assert "It is an average over all known inputs" not in card
