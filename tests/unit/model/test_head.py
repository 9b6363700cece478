"""Heads of every kind, read as a linear layer: 1x1 convolutions, computed weights, and logits of their own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from opnp import OPNP, Ratios
from opnp.errors import HeadNotFoundError, OptionError, ShapeError
from opnp.model import find_head, head_layers, head_stream, pruned, pruned_copy, sensitivity
from opnp.model.head import OwnLogits
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, FEATURES, Answering, batch, batches, mlp

CHANNELS = 6


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


def classifier(*after: nn.Module, before: tuple[nn.Module, ...] = ()) -> Classifier:
    torch.manual_seed(0)
    return Classifier(before, after)


POOL, FLAT = nn.AdaptiveAvgPool2d(1), nn.Flatten()


class Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3))


class Weighted(nn.Module):
    """Weighs positions, the weights adding up to 1."""

    def forward(self, inputs: Tensor) -> Tensor:
        weights = torch.arange(1.0, inputs.shape[2] * inputs.shape[3] + 1, dtype=inputs.dtype)
        return (inputs.flatten(2) * weights / weights.sum()).sum(2)


class Pair(nn.Module):
    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, inputs.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "is_averaged"),
    [
        (classifier(FLAT, before=(POOL,)), False),
        (classifier(before=(POOL,)), False),
        (classifier(POOL, FLAT), True),
        (classifier(POOL), True),
        (classifier(nn.Dropout(), Mean()), True),
        (classifier(Mean()).double(), True),
        (classifier(Mean()).half(), True),
    ],
    ids=["pooled before", "no flatten", "pooled after", "pooled, no flatten", "dropout", "double", "half"],
)
def test_the_logits_are_linear_in_the_mean_of_the_input(model: nn.Module, *, is_averaged: bool) -> None:
    dtype = next(model.parameters()).dtype
    inputs = images().to(dtype)
    with unchanged(model, "reading a convolution head"):
        assert find_head(model, inputs * float("nan")).name == "head"
        found = find_head(model, inputs)
        assert (found.name, found.is_output, found.is_averaged) == ("head", True, is_averaged)
        assert found.weight.shape == (CLASSES, CHANNELS)
        with head_stream(model, [inputs, images(3, seed=1).to(dtype)]) as stream:
            read = list(stream.batches)
    rtol, atol = (0.02, 0.01) if dtype == torch.float16 else (1e-5, 1e-6)
    for (features, logits, _), count in zip(read, (5, 3), strict=True):
        assert (features.shape, logits.shape) == ((count, CHANNELS), (count, CLASSES))
        torch.testing.assert_close(linear(features, found.weight, found.bias), logits, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "after",
    [
        (nn.ReLU(), Mean()),
        (nn.ReLU(inplace=True), Mean()),
        (nn.Hardtanh(0, 99), Mean()),
        (nn.Softmax(1), Mean()),
        (nn.AdaptiveMaxPool2d(1),),
        (Weighted(),),
    ],
)
@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize("bias", [0.0, 50.0], ids=["some outputs are negative", "all are positive"])
def test_what_is_no_mean_of_the_output_is_refused(after: tuple[nn.Module, ...], head: str | None, bias: float) -> None:
    model = classifier(*after)
    model.get_parameter("head.bias").data.fill_(bias)
    with (
        unchanged(model, "refusing"),
        pytest.raises(HeadNotFoundError, match=r"`head` is a 1x1 convolution at 4 x 4 positions.*not the mean.*ReLU"),
    ):
        find_head(model, images(), head=head)


def test_a_chosen_head_with_something_after_the_mean() -> None:
    found = find_head(classifier(FLAT, nn.Softmax(1), before=(POOL,)), images(), head="head")
    assert (found.name, found.is_output) == ("head", False)
    with pytest.raises(HeadNotFoundError, match="not the mean of its output"):
        find_head(classifier(POOL, FLAT, nn.Softmax(1)), images(), head="head")
    with pytest.raises(HeadNotFoundError, match=r"is a tuple .*`logits=1`"):
        find_head(classifier(Pair()), images(), head="head")
    assert find_head(classifier(Pair()), images(), head="head", logits=1).is_averaged
    with pytest.raises(HeadNotFoundError, match=r"No nn\.Linear has the model's output, of shape \(5, 3, 4, 4\)"):
        find_head(classifier(), images())


def test_positions_that_were_not_there_when_the_head_was_found() -> None:
    with (
        head_stream(classifier(Mean()), [images(size=3), images(size=9)]) as stream,
        pytest.raises(ShapeError, match=r"`head` received features at 4 x 4 positions, and it was found on"),
    ):
        list(stream.batches)


def test_layers_that_can_be_a_head() -> None:
    others = [{"stride": 2}, {"groups": 2}, {"padding": 1}]
    fine = [{}, {"padding": "same"}, {"bias": False}]
    convolutions = [nn.Conv2d(4, 4, 1, **options) for options in others + fine]  # type: ignore[arg-type]  # options by name
    assert list(head_layers(nn.Sequential(nn.Conv2d(4, 4, 3), *convolutions, nn.Linear(4, 4)))) == ["4", "5", "6", "7"]


def fitted(model: nn.Module, loader: object = None, **ratios: float) -> OPNP:
    loader = loader or [images(seed=seed) for seed in range(4)]
    return OPNP(ratios=Ratios(**ratios), shaping=None).fit(model, loader)  # type: ignore[arg-type]  # an iterable


@pytest.mark.parametrize("make", [lambda: classifier(Mean()), lambda: classifier(FLAT, before=(POOL,))])
def test_a_detector_is_that_of_the_equal_linear_head(make: Callable[[], Classifier], tmp_path: Path) -> None:
    model = make()
    layer, head = nn.Linear(CHANNELS, CLASSES), find_head(model, images())
    layer.load_state_dict({"weight": head.weight, "bias": head.bias})
    equal = nn.Sequential(model.body, POOL, FLAT, layer)
    one, other = fitted(model, w_min=0.25), fitted(equal, w_min=0.25)
    torch.testing.assert_close(one.sensitivity.weight, other.sensitivity.weight)
    assert torch.equal(one.masks.weight, other.masks.weight)
    torch.testing.assert_close(one.score(images(seed=9)), other.score(images(seed=9)))
    one.save(tmp_path / "detector.safetensors")
    for loaded_on in (model, equal):
        loaded = OPNP.load(tmp_path / "detector.safetensors", loaded_on)
        torch.testing.assert_close(loaded.score(images(seed=9)), one.score(images(seed=9)))


def test_a_detectors_mask_fits_the_convolution_and_its_sensitivity_is_that_of_the_layer() -> None:
    model = classifier(Mean())
    detector = fitted(model, w_min=0.25)
    kept = detector.masks.kept
    copy = pruned_copy(model, {"head": kept})
    assert isinstance(copy, Classifier)
    assert torch.equal(copy.head.weight.flatten(1) != 0, kept)
    torch.testing.assert_close(-copy(images(seed=3)).logsumexp(1).detach(), detector.score(images(seed=3)))
    with pruned(model, {"head": kept}):
        torch.testing.assert_close(model(images()), copy(images()))
    named, found = (sensitivity(model, [images()], head=head) for head in ("head", None))
    for name, layer in found.items():
        torch.testing.assert_close(named[name].weight, layer.weight)


class Cosine(nn.Linear):
    """Logits that are no linear function of the features."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as nn.Linear has it
        return linear(normalize(input), normalize(self.weight), self.bias)


def test_a_head_with_a_forward_of_its_own_must_do_what_a_linear_layer_does() -> None:
    model = Answering()
    model.fc = Cosine(FEATURES, CLASSES)
    for head in (None, "fc"):
        with pytest.raises(HeadNotFoundError, match=r"`fc` is a Cosine with a forward of its own: .*`fit_features`"):
            find_head(model, batch(), head=head)


@pytest.mark.parametrize("parametrization", [weight_norm, spectral_norm, orthogonal])
def test_a_parametrized_head_is_read_as_it_is_in_eval_mode(
    parametrization: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = mlp()
    parametrization(model[2])
    model.train()  # in which spectral_norm writes to its buffers whenever its weight is read
    with unchanged(model, "a parametrized head"):
        detector = fitted(model, [batch()], w_min=0.2)
        scores = detector.score(batch(seed=1))
        detector.save(tmp_path / "detector.safetensors")
        assert torch.equal(OPNP.load(tmp_path / "detector.safetensors", model).score(batch(seed=1)), scores)
        found = find_head(model, batch())
        assert found.is_output
        assert not found.weight.requires_grad
        of_layer = sensitivity(model, [batch()], layers=["2"])
    torch.testing.assert_close(of_layer["2"].weight, detector.sensitivity.weight)
    expected = -model.eval()(batch(seed=1)).logsumexp(1)
    torch.testing.assert_close(detector.with_ratios(Ratios()).score(batch(seed=1)), expected.detach())


def test_logits_that_are_clamped_are_refused_where_they_are_used_alone() -> None:
    model = Answering(lambda logits: logits.clamp(-30, 30))
    far = 100 * batch(seed=5)
    detector, plain = fitted(model, batches()), fitted(mlp(), batches())
    with unchanged(model, "a score of what is clamped"):
        assert torch.equal(detector.score(far), plain.score(far))
        detector.calibrate([far] * 4, keep=0.9)
        detector.verdict(far)
    message = r"logits are not what its head `fc` makes.*clamps or masks.*`logits=lambda"
    with pytest.raises(HeadNotFoundError, match=message):
        fitted(model, [batch(), far])


@pytest.mark.parametrize(("row", "count"), [(0, 8), (99, 8), (37, 100)])
def test_the_first_batch_is_compared_whole_and_later_ones_in_eight_rows(row: int, count: int) -> None:
    head, features = find_head(mlp(), batch()), batch(100, width=FEATURES)
    right = linear(features, head.weight, head.bias)
    wrong = right.clone()
    wrong[row] += 100
    own = OwnLogits(head)
    if count == 8:
        own.require(features, right)
        own.require(features[:5], right[:5])
    with pytest.raises(HeadNotFoundError, match=f"in 1 of {count} rows"):
        own.require(features, wrong)


class Pooled(nn.Module):
    """Several inputs make one sample: a bag of them, or ten crops of one image."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.inner, self.size = mlp(), size

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner[2](self.inner[:2](x).unflatten(0, (-1, self.size)).mean(1))
        return outputs


@pytest.mark.parametrize(("size", "samples"), [(30, 1), (10, 8)])
def test_bags_and_crops_are_taken_with_labels_or_as_a_mapping(size: int, samples: int) -> None:
    model, labels = Pooled(size), torch.arange(samples) % CLASSES
    bags = [batch(size * samples, seed=seed) for seed in range(3)]
    detector, named = fitted(model, [(bag, labels) for bag in bags]), fitted(model, [{"x": bag} for bag in bags])
    assert detector.sensitivity.count == 3 * samples
    assert torch.equal(detector.sensitivity.weight, named.sensitivity.weight)
    expected = -model(bags[0]).logsumexp(1).detach()
    for inputs in ((bags[0], labels), {"x": bags[0]}):
        torch.testing.assert_close(detector.score(inputs), expected)
    message = rf"received {samples} rows for a batch of {size * samples} inputs.*`{{\"x\": bag}}`.*`\(bag, labels\)`"
    for refused in (lambda: fitted(model, bags), lambda: detector.score(bags[0])):
        with pytest.raises(ShapeError, match=message):
            refused()


class ByKeyword(nn.Linear):
    """A linear layer whose input has another name."""

    def forward(self, x: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        assert x is not None
        return super().forward(x if mask is None else x * mask)


class Calling(nn.Module):
    """A body, and a head called with these keywords beside its input."""

    def __init__(self, **keywords: Tensor) -> None:
        super().__init__()
        self.body, self.fc, self.keywords = mlp()[:2], ByKeyword(FEATURES, CLASSES), keywords
        self.fc.load_state_dict(mlp()[2].state_dict())

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.fc(x=self.body(inputs), **self.keywords)
        return outputs


def test_a_head_that_is_given_its_input_by_another_keyword_is_read() -> None:
    model = Calling()
    with head_stream(model, batches()) as found, head_stream(mlp(), batches()) as expected:
        assert found.head.name == "fc"
        for one, other in zip(found.batches, expected.batches, strict=True):
            assert torch.equal(one[0], other[0])
    layers = sensitivity(model, batches())["fc"], sensitivity(mlp(), batches())["2"]
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    masked = Calling(mask=torch.ones(FEATURES))
    with unchanged(masked, "a refusal"), pytest.raises(HeadNotFoundError, match=r"2 tensors, all by keyword \(x, mask"):
        find_head(masked, batch())


# ------------------------------------------------------------------------------------------ axes that come and go
class Squeezed(nn.Module):
    """Changes the axes round its head."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.body, self.fc, self.before, self.after = mlp()[:2], mlp()[2], before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(self.before(self.body(x))))


@pytest.mark.parametrize(
    "model",
    [
        Squeezed(lambda h: h.squeeze()),
        Squeezed(lambda h: h[:, :, None, None].squeeze()),
        Squeezed(lambda h: h.flatten() if len(h) == 1 else h),
    ],
)
def test_a_model_that_drops_the_batch_axis_is_told_so(model: nn.Module) -> None:
    detector = fitted(model, batches())
    for refused in (lambda: detector.score(batch(1)), lambda: fitted(model, [batch(1)])):
        with pytest.raises(ShapeError, match=r"of shape \(5,\), which have no batch axis.*`features\.flatten\(1\)`"):
            refused()
    convolution = Classifier((nn.AdaptiveAvgPool2d(1),), (nn.Flatten(-3),))
    convolution.body.append(Apply(lambda h: h.squeeze(0)))
    with pytest.raises(ShapeError, match=r"of shape \(6, 1, 1\), which have no batch axis"):
        fitted(convolution, [images(4)]).score(images(1))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


@pytest.mark.parametrize(
    "model",
    [
        Squeezed(lambda h: h[:, None], lambda logits: logits.squeeze(1)),
        Squeezed(lambda h: h[:, None], lambda logits: logits[:, 0].clone()),
        Squeezed(lambda h: h[:, None]),
        Squeezed(lambda h: h[:, None, None], lambda logits: logits.flatten(1)),
        Squeezed(lambda h: h, lambda logits: logits.squeeze()),
    ],
)
@pytest.mark.parametrize("head", [None, "fc"])
def test_axes_of_length_one_round_a_head_change_nothing(model: nn.Module, head: str | None) -> None:
    plain = Squeezed(lambda h: h)
    one, other = (OPNP(ratios=Ratios(w_min=0.3)).fit(each, batches(), head=head) for each in (model, plain))
    assert torch.equal(one.sensitivity.weight, other.sensitivity.weight)
    for given in (batch(), batch(1), batch()[0]):
        torch.testing.assert_close(one.score(given), other.score(given))
    torch.testing.assert_close(one.calibrate(batches()).to_module()(batch())[1], other.score(batch()))


# ------------------------------------------------------------------------------------------ one logit, and no classes
class OneLogit(nn.Module):
    """A binary classifier of one logit, and the same of two."""

    def __init__(self, shape: Callable[[Tensor], Tensor] = lambda z: z, *, bias: bool = True) -> None:
        super().__init__()
        self.body, self.shape = mlp()[:2], shape
        self.fc = nn.Linear(FEATURES, 1, bias=bias)
        torch.nn.init.normal_(self.fc.weight, generator=torch.Generator().manual_seed(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.shape(self.fc(self.body(x)))

    def of_two(self) -> nn.Sequential:
        """Return the model of two logits."""
        fc = nn.Linear(FEATURES, 2, bias=self.fc.bias is not None)
        fc.weight.data = torch.cat([-self.fc.weight, self.fc.weight]).detach() / 2
        if self.fc.bias is not None:
            fc.bias.data = torch.cat([-self.fc.bias, self.fc.bias]).detach() / 2
        return nn.Sequential(*self.body, fc)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (OneLogit(), None),
        (OneLogit(bias=False), None),
        (OneLogit(lambda z: z.squeeze(1)), None),
        (OneLogit(lambda z: z.sigmoid()), "fc"),
        (OneLogit(lambda z: z.sigmoid()[:, 0]), "fc"),
    ],
    ids=["column", "no bias", "squeezed", "sigmoid", "sigmoid squeezed"],
)
def test_one_logit_is_two_classes(tmp_path: Path, model: OneLogit, head: str | None) -> None:
    other, kept = model.of_two(), Ratios(w_min=0.3)
    targets = (model.fc(model.body(batch()))[:, 0] > 0).float()
    one = OPNP(ratios=kept).fit(model, [(each, targets) for each in batches()], head=head)
    two = OPNP(ratios=kept).fit(other, batches())
    assert one.masks.weight.shape == (2, FEATURES)
    torch.testing.assert_close(one.sensitivity.weight, two.sensitivity.weight)
    torch.testing.assert_close(one.score(batch()), two.score(batch()))
    verdict = one.calibrate(batches()).verdict(batch())
    assert verdict.predicted_class.tolist() == targets.tolist()
    one.save(tmp_path / "one.safetensors")
    loaded = OPNP.load(tmp_path / "one.safetensors", model)
    torch.testing.assert_close(loaded.to_module()(batch())[1], verdict.score)
    of_features = OPNP(ratios=kept).fit_features(model.body(batch()), weight=model.fc.weight, bias=model.fc.bias)
    assert torch.equal(of_features.original_head.weight, two.original_head.weight)
    if head is None and model(batch()).ndim == 2:
        layers = [sensitivity(each, batches(), layers=[name]) for each, name in ((model, "body.0"), (other, "0"))]
        torch.testing.assert_close(layers[0]["body.0"].weight, layers[1]["0"].weight)
    else:
        with pytest.raises(HeadNotFoundError, match='name the head yourself: `head="fc"`'):
            find_head(OneLogit(lambda z: z.sigmoid()), batch())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"problem_type": "multi_label_classification", "num_labels": 3}, "its 3 labels do not exclude each other"),
        ({"problem_type": "regression", "num_labels": 3}, "names a regression"),
        ({"problem_type": None, "num_labels": 1}, "names a regression"),
        ({"problem_type": "single_label_classification", "num_labels": 3}, None),
        ({"problem_type": None, "num_labels": 3}, None),
        ({"num_labels": 1}, None),
    ],
)
def test_models_that_say_that_they_are_no_classifiers(facts: dict[str, object], message: str | None) -> None:
    model: Any = Answering()
    model.config = SimpleNamespace(**facts)
    actions: list[Callable[[], object]] = [
        lambda: find_head(model, batch()),
        lambda: fitted(model, batches()),
        lambda: sensitivity(model, batches(), layers=["fc"]),
    ]
    for action in actions:
        if message is None:
            assert action() is not None
            continue
        with pytest.raises(OptionError, match=message) as caught:
            action()
        assert str(caught.value).count(". ") < 3
