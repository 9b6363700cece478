"""What is drawn of a head, counted value by value, and the inputs that are most easily mistaken."""

import base64
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opnp import OPNP, Ratios, Verdict
from opnp.bench.gallery import detector_pictures, gallery_set, thumbnail
from opnp.core import pruned_weight
from opnp.values.pictures import BEYOND, PictureRecord, SensitivityPicture


def fitted(ratios: Ratios, *, classes: int = 5, features: int = 40, seed: int = 0) -> tuple[OPNP, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, features, generator=generator)
    rows = torch.rand(200, features, generator=generator)
    return OPNP(ratios=ratios).fit_features(rows, weight=weight, bias=None), weight


def rows_and_weight() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 600 features and the weight of a head of 12 classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(600, 30, generator=generator), torch.randn(12, 30, generator=generator)


def counted(picture: SensitivityPicture, values: torch.Tensor) -> list[int]:
    """Count, value by value, what lies in each bin: left edge in, right edge out, but for the last bin."""
    shares = [value / picture.maximum for value in values.flatten().tolist()]
    last = len(picture.kept) - 1
    return [
        sum(low <= share < high or (place == last and share == high) for share in shares)
        for place, (low, high) in enumerate(zip(picture.edges[:-1], picture.edges[1:], strict=True))
    ]


@given(
    shares=st.tuples(*[st.sampled_from([0.0, 0.05, 0.25])] * 4),
    classes=st.integers(2, 6),
    features=st.integers(20, 50),
    seed=st.integers(0, 5),
)
def test_pictures_hold_every_weight_and_neuron_once(
    shares: tuple[float, float, float, float], classes: int, features: int, seed: int
) -> None:
    ratios = Ratios(*shares)
    detector, weight = fitted(ratios, classes=classes, features=features, seed=seed)
    pictures = detector_pictures(detector, weight, model="m", method="OPNP")

    weights, neurons = pictures.weight_sensitivity, pictures.neuron_sensitivity
    assert (sum(weights.lowest), sum(weights.highest)) == (
        round(ratios.w_min * weight.numel()),
        round(ratios.w_max * weight.numel()),
    )
    assert (sum(neurons.lowest), sum(neurons.highest)) == (
        round(ratios.o_min * features),
        round(ratios.o_max * features),
    )
    assert list(weights.total) == counted(weights, detector.sensitivity.weight)
    assert list(neurons.total) == counted(neurons, detector.sensitivity.neuron("gradient"))
    assert weights.mean == pytest.approx(float(detector.sensitivity.weight.mean()) / weights.maximum)

    assert sum(pictures.weights.before) == weight.numel()
    kept = detector.masks.weight & detector.masks.neuron
    assert sum(pictures.weights.after) == int(kept.sum())
    assert all(after <= before for after, before in zip(pictures.weights.after, pictures.weights.before, strict=True))
    assert (pictures.neurons.removed_lowest, pictures.neurons.removed_highest) == (
        sum(neurons.lowest),
        sum(neurons.highest),
    )
    assert PictureRecord.from_json(PictureRecord((pictures,)).to_json()) == PictureRecord((pictures,))


def test_the_pictures_of_a_fusion_are_those_of_its_pruned_head() -> None:
    rows, weight = rows_and_weight()
    detector = OPNP().fit_features(rows, weight=weight, bias=None)
    pictures = detector_pictures(detector, weight, model="m", method="OPNP()")
    assert sum(pictures.weights.before) == 12 * 30
    assert sum(pictures.weights.after) == int((detector.pruned_head.weight != 0).sum()) == 12 * 30 / 2
    assert (pictures.neurons.removed_lowest, pictures.neurons.removed_highest) == (0, 0)


def test_neurons_are_in_the_order_of_their_sensitivity_with_the_norms_of_their_columns() -> None:
    detector, weight = fitted(Ratios(w_min=0.2, o_min=0.1, o_max=0.05))
    picture = detector_pictures(detector, weight, model="m", method="OPNP").neurons
    sensitivity = detector.sensitivity.neuron("gradient")
    order = sorted(range(len(sensitivity)), key=lambda place: float(sensitivity[place]))
    assert picture.ranks == tuple(range(40))
    after = pruned_weight(weight.double(), detector.masks)
    for rank, place in enumerate(order):
        assert picture.sensitivity[rank] == pytest.approx(float(sensitivity[place] / sensitivity.max()))
        assert picture.norm_before[rank] == pytest.approx(float(weight[:, place].double().norm()))
        assert picture.norm_after[rank] == pytest.approx(float(after[:, place].norm()))
    assert all(norm == 0 for norm in picture.norm_after[:4] + picture.norm_after[-2:])


def test_many_neurons_are_thinned_with_both_ends_kept() -> None:
    detector, weight = fitted(Ratios(), features=2000)
    picture = detector_pictures(detector, weight, model="m", method="OPNP").neurons
    assert len(picture.ranks) == 512
    assert picture.ranks[0] == 0
    assert picture.ranks[-1] == 1999
    assert list(picture.sensitivity) == sorted(picture.sensitivity)


def test_mean_sensitivity_by_bin_is_that_of_its_weights() -> None:
    detector, weight = fitted(Ratios(w_min=0.3))
    picture = detector_pictures(detector, weight, model="m", method="OPNP").weights
    values, sensitivity = weight.double().flatten().tolist(), detector.sensitivity.weight.flatten().tolist()
    largest = max(sensitivity)
    for place, mean in enumerate(picture.sensitivity):
        low, high = picture.edges[place], picture.edges[place + 1]
        is_last = place == len(picture.sensitivity) - 1
        inside = [
            each / largest
            for value, each in zip(values, sensitivity, strict=True)
            if low <= value < high or (is_last and value == high)
        ]
        assert mean == (None if not inside else pytest.approx(sum(inside) / len(inside)))


def test_weights_that_are_all_equal_have_a_picture() -> None:
    weight = torch.ones(3, 4)
    detector = OPNP(ratios=Ratios()).fit_features(torch.rand(20, 4), weight=weight, bias=None)
    assert sum(detector_pictures(detector, weight, model="m", method="OPNP").weights.before) == 12


@pytest.mark.parametrize(("name", "expected"), [("test", [4, 1, 0]), ("ood_noise", [2, 3, 0])])
def test_the_gallery_shows_what_is_most_easily_mistaken(name: str, expected: list[int]) -> None:
    scores = torch.tensor([1.0, 2.0, -5.0, 0.5, float("inf")])
    verdict = Verdict(torch.tensor([0, 1, 0, 1, 2]), scores, p_value=scores.sigmoid(), is_ood=scores > 1)
    found = gallery_set(
        name,
        verdict,
        index=torch.tensor([10, 11, 12, 13, 14]),
        labels=torch.zeros(5, dtype=torch.int64),
        image_of=lambda row: Image.new("RGB", (8, 8), (row, 0, 0)),
        name_of="row {}".format,
        class_names=["cat", "dog"],
        count=3,
    )
    places = expected
    assert (BEYOND in [item.score for item in found.items]) == (4 in places)
    assert [item.index for item in found.items] == [10 + place for place in places]
    assert [item.name for item in found.items] == [f"row {10 + place}" for place in places]
    assert [item.is_ood for item in found.items] == [bool(scores[place] > 1) for place in places]
    named = {0: "cat", 1: "dog", 2: None}
    assert [item.predicted_name for item in found.items] == [named[item.predicted_class] for item in found.items]


@pytest.mark.parametrize(("size", "expected"), [((8, 8), (96, 96)), ((10, 4), (90, 36)), ((400, 200), (96, 48))])
def test_a_thumbnail_is_a_picture_of_at_most_96_pixels_in_the_same_shape(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    text = thumbnail(Image.new("RGB", size, (200, 30, 30)))
    kind, _, content = text.partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert image.size == expected
    pixel = image.getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert all(abs(one - other) < 6 for one, other in zip(pixel, (200, 30, 30), strict=True))
