"""1x1 convolutions as heads: linear where nothing but a mean over positions follows, else refused."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import OPNP, Ratios
from opnp.errors import HeadNotFoundError, ShapeError
from opnp.model import find_head, head_layers, head_stream, pruned, pruned_copy, sensitivity
from tests.contract.snapshot import unchanged

CLASSES, CHANNELS = 4, 6


def images(rows: int = 5, *, seed: int = 0, size: int = 9) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Classifier(nn.Module):
    """Convolution, what is before the head, the head, and what is after it."""

    def __init__(self, before: tuple[nn.Module, ...], after: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, CHANNELS, 3, stride=2), nn.ReLU(), *before)
        self.head = nn.Conv2d(CHANNELS, CLASSES, 1)
        self.after = nn.Sequential(*after)

    def forward(self, inputs: Tensor) -> object:
        return self.after(self.head(self.body(inputs)))


def classifier(*after: nn.Module, before: tuple[nn.Module, ...] = (), dtype: torch.dtype = torch.float32) -> Classifier:
    torch.manual_seed(0)
    return Classifier(before, after).to(dtype)


POOL = nn.AdaptiveAvgPool2d(1)


class Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3))


class Weighted(nn.Module):
    """Weighs positions, the weights adding up to 1."""

    def forward(self, inputs: Tensor) -> Tensor:
        weights = torch.arange(1.0, inputs.shape[2] * inputs.shape[3] + 1, dtype=inputs.dtype)
        return (inputs.flatten(2) * weights / weights.sum()).sum(2)


@pytest.mark.parametrize(
    ("model", "is_averaged"),
    [
        (classifier(nn.Flatten(), before=(POOL,)), False),
        (classifier(before=(POOL,)), False),
        (classifier(POOL, nn.Flatten()), True),
        (classifier(POOL), True),
        (classifier(Mean()), True),
        (classifier(nn.Dropout(), Mean()), True),
        (classifier(Mean(), dtype=torch.float64), True),
        (classifier(Mean(), dtype=torch.float16), True),
    ],
    ids=["pooled before", "no flatten", "pooled after", "pooled, no flatten", "mean", "dropout", "double", "half"],
)
def test_the_logits_are_linear_in_the_mean_of_the_input(model: nn.Module, *, is_averaged: bool) -> None:
    dtype = next(model.parameters()).dtype
    inputs = images().to(dtype)
    with unchanged(model, "reading a convolution head"):
        found = find_head(model, inputs)
        assert (found.name, found.is_output, found.is_averaged) == ("head", True, is_averaged)
        assert found.weight.shape == (CLASSES, CHANNELS)
        with head_stream(model, [inputs, images(3, seed=1).to(dtype)]) as stream:
            read = list(stream.batches)
    rtol, atol = (0.02, 0.01) if dtype == torch.float16 else (1e-5, 1e-6)
    for (features, logits, _), count in zip(read, (5, 3), strict=True):
        assert (features.shape, logits.shape) == ((count, CHANNELS), (count, CLASSES))
        torch.testing.assert_close(linear(features, found.weight, found.bias), logits, rtol=rtol, atol=atol)
        torch.testing.assert_close(found.linear(features), linear(features, found.weight, found.bias))


@pytest.mark.parametrize("after", [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.Softmax(1)])
@pytest.mark.parametrize("head", [None, "head"])
def test_what_stands_between_head_and_mean_is_refused(after: nn.Module, head: str | None) -> None:
    model = classifier(after, Mean())
    with (
        unchanged(model, "refusing"),
        pytest.raises(HeadNotFoundError, match=r"`head` is a 1x1 convolution at 4 x 4 positions.*not the mean.*ReLU"),
    ):
        find_head(model, images(), head=head)


@pytest.mark.parametrize("after", [nn.AdaptiveMaxPool2d(1), Weighted()])
def test_another_pooling_is_refused(after: nn.Module) -> None:
    with pytest.raises(HeadNotFoundError, match=r"not the mean of its output"):
        find_head(classifier(after), images())


@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU(inplace=True), nn.Hardtanh(0, 99)])
def test_a_relu_that_does_nothing_on_the_batch_is_seen_all_the_same(between: nn.Module) -> None:
    model = classifier(between, Mean())
    model.get_parameter("head.bias").data.fill_(50.0)  # all outputs are positive
    assert bool((model.head(model.body(images())) > 0).all())
    with pytest.raises(HeadNotFoundError, match=r"not the mean of its output"):
        find_head(model, images())


@pytest.mark.parametrize("positions", [1, 16])
def test_heads_of_zeros_are_told_apart(positions: int) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.auxiliary, self.main = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 1)
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.main(inputs).mean((2, 3))
            self.auxiliary(inputs)
            return outputs

    assert find_head(Two(), images(size=int(positions**0.5))).name == "main"


def test_a_first_batch_that_is_not_finite_still_shows_the_head() -> None:
    assert find_head(classifier(Mean()), images() * float("nan")).name == "head"


def test_a_chosen_head_with_something_after_the_mean() -> None:
    pooled_before = classifier(nn.Flatten(), nn.Softmax(1), before=(POOL,))
    found = find_head(pooled_before, images(), head="head")
    assert (found.name, found.is_output) == ("head", False)
    with pytest.raises(HeadNotFoundError, match=r"not the mean of its output"):
        find_head(classifier(POOL, nn.Flatten(), nn.Softmax(1)), images(), head="head")


def test_the_tuple_output_of_a_pooled_head_needs_a_selector() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, inputs.mean((2, 3))

    model = classifier(Pair())
    with pytest.raises(HeadNotFoundError, match=r"is a tuple .*`logits=1`"):
        find_head(model, images(), head="head")
    assert find_head(model, images(), head="head", logits=1).is_averaged


def test_an_image_of_logits_is_no_head() -> None:
    with pytest.raises(HeadNotFoundError, match=r"No nn\.Linear has the model's output, of shape \(5, 4, 4, 4\)"):
        find_head(classifier(), images())


def test_positions_that_were_not_there_when_the_head_was_found() -> None:
    model = classifier(Mean())
    with (
        head_stream(model, [images(size=3), images(size=9)]) as stream,
        pytest.raises(ShapeError, match=r"`head` received features at 4 x 4 positions, and it was found on"),
    ):
        list(stream.batches)


def test_convolutions_that_can_be_a_head() -> None:
    others = [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 1, padding=1),
    ]
    fine = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, padding="same"),
        nn.Linear(4, 4),
        nn.Conv2d(4, 4, (1, 1), bias=False),
    ]
    assert list(head_layers(nn.Sequential(*others, *fine))) == ["4", "5", "6", "7"]
    with pytest.raises(HeadNotFoundError, match=r"'body\.0' is of type Conv2d, not nn\.Linear, nor a 1x1 convolution"):
        find_head(classifier(Mean()), images(), head="body.0")


def fitted(model: nn.Module, **options: object) -> OPNP:
    loader = [images(seed=seed) for seed in range(4)]
    return OPNP(ratios=Ratios(w_min=0.25), shaping=None).fit(model, loader, **options)  # type: ignore[arg-type]  # options of fit


@pytest.mark.parametrize("make", [lambda: classifier(Mean()), lambda: classifier(nn.Flatten(), before=(POOL,))])
def test_a_detector_is_that_of_the_equal_linear_head(make: Callable[[], Classifier], tmp_path: Path) -> None:
    model = make()
    equal = nn.Sequential(model.body, POOL, nn.Flatten(), find_head(model, images()).linear)
    one, other = fitted(model), fitted(equal)
    torch.testing.assert_close(one.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(one.masks.weight, other.masks.weight)
    torch.testing.assert_close(one.score(images(seed=9)), other.score(images(seed=9)))
    path = tmp_path / "detector.safetensors"
    one.save(path)
    for loaded_on in (model, equal):
        loaded = OPNP.load(path, loaded_on)
        torch.testing.assert_close(loaded.score(images(seed=9)), one.score(images(seed=9)))
    loader = [images(20, seed=5)]
    assert OPNP.load(path, model).calibrate(loader, keep=0.9).threshold == one.calibrate(loader, keep=0.9).threshold


def test_the_sensitivity_with_the_head_named_is_that_of_the_models_output() -> None:
    model = classifier(Mean())
    named, found = (sensitivity(model, [images()], head=head) for head in ("head", None))
    for name, layer in found.items():
        torch.testing.assert_close(named[name].weight, layer.weight)


def test_a_detectors_mask_fits_the_convolution() -> None:
    model = classifier(Mean())
    detector = fitted(model)
    kept = detector.masks.kept
    copy = pruned_copy(model, {"head": kept})
    assert isinstance(copy, Classifier)
    assert torch.equal(copy.head.weight.flatten(1) != 0, kept)
    scores = -copy(images(seed=3)).logsumexp(1)
    torch.testing.assert_close(scores.detach(), detector.score(images(seed=3)))
    with pruned(model, {"head": kept}):
        torch.testing.assert_close(model(images()), copy(images()))


class Copied(Classifier):
    """Keeps a copy of its head, hooks and all, from each run."""

    def forward(self, inputs: Tensor) -> object:
        answer = super().forward(inputs)
        self.copies = nn.ModuleList([deepcopy(self.head)])
        return answer


def test_the_second_run_of_a_search_leaves_no_hook_in_copies() -> None:
    torch.manual_seed(0)
    model = Copied((), (Mean(),))
    assert find_head(model, images(), head="head").is_averaged
    assert not [name for name, module in model.named_modules() if module._forward_hooks]
