"""What `Scorer` makes of batches as Ray Data gives them, without Ray; and sums on their way between tasks."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opnp import OPNP
from opnp.adapters import model_origin, ray
from opnp.adapters.ray import Scorer
from opnp.detector.fit_pass import FitSum
from opnp.errors import DataFileError, InputTypeError, OptionError, ShapeError, WorkerError
from opnp.model import InputAxes
from tests.unit.bench.image_world import INPUTS, class_images, tiny_model, write_module

WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.rand(400, 6, generator=torch.Generator().manual_seed(1))
NAMES = ("bird", "cat", "dog", "emu")


@pytest.fixture(scope="module")
def detector() -> OPNP:
    """Return a calibrated detector of features."""
    return OPNP().fit_features(ROWS[:300], weight=WEIGHT, bias=None).calibrate_features(ROWS[300:])


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a detector that remembers its model, by a module that can be imported from its folder."""
    folder = write_module(tmp_path_factory.mktemp("model"))
    images, _ = class_images(80, seed=0)
    inputs = INPUTS.batch([INPUTS(Image.fromarray(each.numpy())) for each in images])
    model = tiny_model()
    found = OPNP().fit(model, [inputs]).calibrate([inputs])
    origin = model_origin(
        model,
        INPUTS,
        name="tinynets:net",
        weights=None,
        detector=folder / "detector.safetensors",
        classes=4,
        class_names=NAMES,
    )
    found.remember(origin).save(folder / "detector.safetensors")
    return folder / "detector.safetensors"


def test_features_leave_as_the_verdicts_of_the_detector(detector: OPNP) -> None:
    batch = {"features": ROWS[:9].numpy(), "id": np.arange(9)}
    found = Scorer(detector, is_explained=True)(batch)
    expected, why = detector.verdict_features(ROWS[:9]), detector.explain_features(ROWS[:9])
    for name, values in expected._asdict().items():
        np.testing.assert_array_equal(found[name], values.numpy())
    for place, name in enumerate(why.members):
        np.testing.assert_array_equal(found[f"p_value_{name}"], why.p_value[:, place].numpy())
        np.testing.assert_array_equal(found[f"share_{name}"], why.share[:, place].numpy())
    assert found["id"].tolist() == list(range(9))
    assert "features" not in found


@pytest.mark.parametrize("kind", ["lists", "columns"])
def test_features_come_as_lists_or_as_columns(detector: OPNP, kind: str) -> None:
    values = ROWS[:5].numpy()
    lists = np.empty(5, dtype=object)
    lists[:] = [*values]
    columns = {f"c{place}": values[:, place] for place in range(6)}
    scorer = Scorer(detector, columns=None if kind == "lists" else [*columns])
    found = scorer({"features": lists} if kind == "lists" else columns | {"id": np.arange(5)})
    np.testing.assert_array_equal(found["score"], detector.score_features(ROWS[:5]).numpy())
    assert ("id" in found) == (kind == "columns")


def test_columns_are_those_of_the_fit_by_name_or_refused() -> None:
    names = ("c", "a", "f", "b", "e", "d")
    total = FitSum.of([(ROWS, None)], WEIGHT, None, OPNP().settings)
    named = OPNP().fit_sum(total, feature_names=names)
    batch = {name: ROWS[:5, place].numpy() for place, name in enumerate(names)}
    expected = named.score_features(ROWS[:5]).numpy()
    in_order = {name: batch[name] for name in sorted(names)} | {"id": np.arange(5)}
    for scorer in (Scorer(named), Scorer(named, columns=names)):
        found = scorer(dict(in_order))
        np.testing.assert_array_equal(found["score"], expected)
        assert sorted(found) == ["id", "predicted_class", "score"]
    np.testing.assert_array_equal(Scorer(named)({"features": ROWS[:5].numpy()})["score"], expected)
    with pytest.raises(OptionError, match="got another order, `a`, `b`, `c`"):
        Scorer(named, columns=sorted(names))
    with pytest.raises(OptionError, match="got others, `x`"):
        Scorer(named, columns=["x"])
    with pytest.raises(InputTypeError, match="lacks `f`"):
        Scorer(named)({name: values for name, values in batch.items() if name != "f"})


@pytest.mark.parametrize(
    ("column", "why"),
    [(["a", "b"], "got <U1"), ([[1.0, 2.0], [3.0]], "must have the same shape"), ([object(), object()], "float")],
)
def test_a_column_of_no_numbers_is_named(detector: OPNP, column: list[Any], why: str) -> None:
    values = np.empty(2, dtype=object)
    values[:] = column
    numbers = {f"c{place}": ROWS[:2, place].numpy() for place in range(6)}
    with pytest.raises(InputTypeError, match=f"`c3` must hold numbers.*{why}"):
        Scorer(detector, columns=[*numbers])(numbers | {"c3": values})
    with pytest.raises(InputTypeError, match=f"`features` must hold numbers.*{why}"):
        Scorer(detector)({"features": values})


def test_a_detector_that_is_not_calibrated_gives_class_and_score() -> None:
    found = Scorer(OPNP().fit_features(ROWS, weight=WEIGHT, bias=None))({"features": ROWS[:2].numpy()})
    assert sorted(found) == ["predicted_class", "score"]


@pytest.mark.parametrize("kind", ["image", "bytes", "objects"])
def test_images_go_through_the_model_that_the_detector_remembers(
    remembering: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(remembering.parent)
    images = class_images(6, seed=3)[0].numpy()
    column: Any = images
    if kind != "image":
        column = np.empty(6, dtype=object)
        column[:] = [each if kind == "objects" else _as_png(each) for each in images]
    found = Scorer(remembering)({"bytes" if kind == "bytes" else "image": column, "path": np.array(["a.png"] * 6)})
    expected = OPNP.load(remembering, tiny_model()).verdict(
        INPUTS.batch([INPUTS(Image.fromarray(each)) for each in images])
    )
    np.testing.assert_array_equal(found["score"], expected.score.numpy())
    assert found["class_name"].tolist() == [NAMES[number] for number in expected.predicted_class]
    assert set(found) == {"path", "predicted_class", "class_name", "score", "p_value", "is_ood"}


def _as_png(pixels: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def test_what_cannot_be_scored_is_named(detector: OPNP, remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(remembering.parent)
    with pytest.raises(OptionError, match="give `model`, or a column `features`"):
        Scorer(detector)({"image": np.zeros((1, 8, 8, 3), dtype=np.uint8)})
    with pytest.raises(ShapeError, match="must have 6 columns"):
        Scorer(detector)({"features": ROWS[:2, :5].numpy()})
    with pytest.raises(InputTypeError, match="must have `image` or `bytes`, got text"):
        Scorer(remembering)({"text": np.array(["a"])})
    with pytest.raises(DataFileError, match="no image"):
        Scorer(remembering)({"bytes": np.array([b"none"], dtype=object)})
    with pytest.raises(OptionError, match="No preprocessing is known"):
        Scorer(detector, model="tinynets:net")


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.zeros((2, 8, 8, 4), dtype=np.uint8), r"uint8 of shape \(8, 8, 4\)"),  # CMYK, or RGBA
        (np.zeros((2, 8, 8), dtype=np.uint8), r"uint8 of shape \(8, 8\)"),  # a palette's, or grey
        (np.zeros((2, 8, 8, 1), dtype=np.uint8), r"uint8 of shape \(8, 8, 1\)"),
        (np.zeros((2, 8, 8, 3)), "float64"),
        (np.array(["a.png"], dtype=object), "got str"),
    ],
)
def test_pixels_that_may_be_of_another_mode_are_refused(
    remembering: Path, monkeypatch: pytest.MonkeyPatch, pixels: Any, got: str
) -> None:
    monkeypatch.chdir(remembering.parent)
    with pytest.raises(InputTypeError, match=rf"{got}.*read_images\(\.\.\., mode='RGB'\)"):
        Scorer(remembering)({"image": pixels})


def test_what_makes_inputs_can_be_given(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(remembering.parent)
    batch = {"image": class_images(3, seed=3)[0].numpy()}
    found = Scorer(remembering, "tinynets:net", transform=INPUTS)(dict(batch))
    np.testing.assert_array_equal(found["score"], Scorer(remembering)(batch)["score"])


def test_half_precision_becomes_arrays() -> None:
    rows, labels = ROWS[:3].bfloat16(), torch.tensor([2, 0, 1])
    found = ray.feature_batch(rows, labels)
    np.testing.assert_array_equal(found["features"], rows.float().numpy())
    assert found["label"].tolist() == [2, 0, 1]
    assert [*ray.feature_batch(ROWS[:3].half(), None)] == ["features"]


@pytest.mark.parametrize("bias", [None, torch.arange(4.0)])
def test_a_sum_arrives_as_it_was_sent(bias: torch.Tensor | None) -> None:
    settings = OPNP().settings
    empty = FitSum.zeros(WEIGHT, bias, settings)
    parts = [FitSum.of([(rows, None)], WEIGHT, bias, settings) for rows in ROWS.split(150)]
    head = ray._plain_head(empty)
    sent = [ray._sent(part) for part in parts]
    total = ray._received(ray._empty(head), ray._added(head, ray._added(head, sent[0], sent[1]), sent[2]))
    expected = parts[0] + parts[1] + parts[2]
    for name, tensor in expected.to_tensors().items():
        assert torch.equal(total.to_tensors()[name], tensor)
    fitted = OPNP().fit_sum(total, head_name="head", axes=4)
    axes: InputAxes | None = fitted._fitted().axes
    assert (fitted.samples, fitted._fitted().head_name, axes) == (400, "head", 4)


def test_a_sum_of_other_settings_is_refused() -> None:
    total = FitSum.of([(ROWS, None)], WEIGHT, None, OPNP(members=["gen", "norm"]).settings)
    with pytest.raises(OptionError, match="for the settings of this detector"):
        OPNP().fit_sum(total)
    with pytest.raises(OptionError, match="needs `validation`"):
        OPNP(ratios="tuned").fit_sum(total)


def test_neither_a_head_nor_a_model_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(OptionError, match="got neither"):
        ray.fit(None)  # type: ignore[arg-type]  # not looked at


def test_columns_that_verdicts_would_replace_are_refused() -> None:
    scorer = Scorer(OPNP().fit_features(ROWS, weight=WEIGHT, bias=None))
    with pytest.raises(OptionError, match=r"names of verdicts, score: rename .*\{'score': 'old_score'\}"):
        scorer({"features": ROWS[:2].numpy(), "score": np.zeros(2)})


def test_an_address_of_ray_client_is_refused() -> None:
    refused = pytest.raises(OptionError, match=r"'ray://host:10001': .* or by `ray job submit`, with `--ray auto`")
    with refused, ray.cluster("ray://host:10001"):
        pass


def test_what_a_task_raised_is_told_and_not_what_ray_advises() -> None:
    exceptions = pytest.importorskip("ray.exceptions", reason="Ray is not installed")
    lines = 'File "a.py", line 1', "ValueError: no such colour", "Failed to apply: 1/1 attempts", "To change: see `x`."
    with pytest.raises(WorkerError, match=r"failed: ValueError: no such colour$"), ray.plain_errors():
        raise exceptions.RayError("\n".join(lines))
    with pytest.raises(WorkerError, match=r"failed: The worker died\.$"), ray.plain_errors():
        raise exceptions.RayError("ray::task()\n  The worker died.\n")
