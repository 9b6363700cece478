"""Sensitivities of any layer: models and batches of every kind, what is refused, and a model that is as it was."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from opnp import sensitivity, sensitivity_sums
from opnp.core import Sensitivity
from opnp.errors import (
    EmptyDataError,
    HeadNotFoundError,
    InputTypeError,
    LayerError,
    LayerNotFoundError,
    LayerWarning,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from opnp.model.head import tensor_of
from tests.contract.snapshot import unchanged
from tests.unit.model.layer_models import TinyViT, cnn, images, seeded
from tests.unit.model.tiny_models import Answering, Named, WithLogits, batch, batches, compiled, mlp


def assert_equal(found: dict[str, Sensitivity], expected: dict[str, Sensitivity], *, tolerance: float = 1e-6) -> None:
    assert list(found) == list(expected)
    for name, layer in expected.items():
        for attribute in ("weight", "neuron_gradient", "neuron_aggregate"):
            left, right = getattr(found[name], attribute), getattr(layer, attribute)
            torch.testing.assert_close(left, right, rtol=0, atol=tolerance * float(right.max()))
        assert found[name].count == layer.count


def cnn_that_has_run() -> nn.Module:
    model = cnn()
    model(images(1).float())
    return model


def refused(
    model: nn.Module, loader: list[Tensor], layers: list[Any] | None = None
) -> pytest.ExceptionInfo[LayerError]:
    with unchanged(model, "sensitivity"), pytest.raises(LayerError) as caught:
        sensitivity(model, loader, layers=layers)
    return caught


class Stepwise(nn.Module):
    """Two layers and a head, with something done to the inputs of all three."""

    def __init__(self, step: Callable[[Tensor, "Stepwise"], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.step = step

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.step(inputs, self)))
        return logits


def in_turn(inputs: Tensor, model: Stepwise) -> Tensor:
    return torch.tanh(model.two(model.one(inputs)))


@pytest.mark.parametrize("make", [TinyViT, cnn_that_has_run])
@pytest.mark.parametrize("around", [nullcontext, torch.no_grad, torch.inference_mode])
def test_the_model_is_as_it_was(
    make: Callable[[], nn.Module], around: Callable[[], AbstractContextManager[None]]
) -> None:
    model = seeded(make).train()
    next(model.children()).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad = index % 3 > 0
        parameter.grad = torch.ones_like(parameter) if index % 2 else None
    model.register_forward_pre_hook(lambda _module, _args: None)
    loader = images().split(3)
    expected = sensitivity(model, loader)
    with around(), unchanged(model, "sensitivity"):
        assert_equal(sensitivity(model, loader), expected)


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["loader", "forward", "backward"])
def test_the_model_is_as_it_was_after_an_exception(error: BaseException, place: str) -> None:
    model = seeded(TinyViT).train()
    calls: list[int] = []

    def fail(*_args: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise error

    def loader() -> Iterator[Tensor]:
        yield images(2)
        if place == "loader":
            raise error
        yield images(2)

    if place == "forward":
        model.get_submodule("norm").register_forward_hook(fail)
    if place == "backward":
        model.get_submodule("norm").register_full_backward_hook(fail)
    with unchanged(model, "sensitivity"), pytest.raises(type(error)):
        sensitivity(model, loader())
    assert bool(calls) is (place != "loader")


def test_frozen_layers_and_layers_that_train_have_the_same() -> None:
    model, loader = seeded(cnn_that_has_run), images().split(4)
    expected = sensitivity(model, loader)
    assert_equal(sensitivity(model.requires_grad_(requires_grad=False), loader), expected)
    assert_equal(sensitivity(model.train(), [pixels.requires_grad_() for pixels in loader]), expected)


def test_one_layer_alone_by_name_or_as_it_is_has_what_it_has_among_others() -> None:
    model, loader = seeded(TinyViT), images().split(4)
    together = sensitivity(model, loader)
    assert list(together) == ["patches", "qkv", "out", "mlp.0", "mlp.2", "head"]
    for name, layer in together.items():
        for given in (name, model.get_submodule(name)):
            assert_equal(sensitivity(model, loader, layers=[given]), {name: layer}, tolerance=1e-12)
    assert list(sensitivity(model, loader, layers=("mlp.2", "patches"))) == ["mlp.2", "patches"]
    single = nn.Linear(6, 3)
    assert list(sensitivity(single, batches())) == list(sensitivity(single, batches(), layers=[single])) == [""]


@pytest.mark.parametrize(
    "wrap",
    [compiled, nn.DataParallel, lambda model: nn.DataParallel(compiled(model))],
    ids=["compiled", "parallel", "both"],
)
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    expected = sensitivity(model, batches())
    wrapped = wrap(model)
    with unchanged(wrapped, "sensitivity"):
        assert_equal(sensitivity(wrapped, batches(), layers=["0", model[2]]), expected)


def test_keywords_and_outputs_in_the_manner_of_hugging_face() -> None:
    expected = sensitivity(mlp(), batches())
    with torch.inference_mode():
        loader = [({"pixel_values": inputs, "scale": 1.0}, torch.arange(8) % 3) for inputs in batches()]
    assert_equal(sensitivity(Named(), loader), {f"inner.{name}": layer for name, layer in expected.items()})
    for after in (WithLogits, lambda logits: {"logits": logits}):
        assert_equal(sensitivity(Answering(after), batches()), {"body.0": expected["0"], "fc": expected["2"]})


@pytest.mark.parametrize("layers", [["fc"], ["body.0", "fc"]])
@pytest.mark.parametrize(
    "after", [lambda logits: logits.softmax(1), lambda logits: logits.div_(10), lambda logits: (logits, 0)]
)
def test_a_head_that_is_named_is_what_the_energy_is_of(after: Callable[[Tensor], object], layers: list[str]) -> None:
    expected = sensitivity(Answering(), batches(), layers=layers, temperature=2.0)
    model = Answering(after)
    with unchanged(model, "sensitivity"):
        assert_equal(sensitivity(model, batches(), layers=layers, head="fc", temperature=2.0), expected)
    if not isinstance(after(torch.ones(1, 3)), tuple):
        other = sensitivity(model, batches(), layers=layers, temperature=2.0)
        assert not torch.allclose(other[layers[0]].weight, expected[layers[0]].weight)


class ByLength(nn.Module):
    """Decides by the values of a sample how it is answered, which no sample may see of another."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.often, self.seldom = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.gru(inputs[:, None])[0][:, -1]
        logits: list[Tensor] = [self.seldom(row) if bool(row[0] > 0) else self.often(row) for row in hidden]
        return torch.stack(logits)


def test_models_that_decide_by_values_run_sample_by_sample() -> None:
    model, inputs = seeded(ByLength), batch(9).double()
    found = sensitivity(model, [inputs])
    with torch.no_grad():
        hidden: Tensor = model.get_submodule("gru")(inputs[:, None])[0][:, -1]
    for name, rows in {"seldom": hidden[:, 0] > 0, "often": hidden[:, 0] <= 0}.items():
        assert 0 < int(rows.sum()) < 9
        alone = sensitivity(nn.Sequential(model.get_submodule(name)), [hidden[rows]])["0"]
        torch.testing.assert_close(found[name].weight, alone.weight * int(rows.sum()) / 9)
        assert found[name].count == 9


def test_hooks_of_the_user_that_replace_inputs_and_outputs_are_part_of_the_model() -> None:
    class Scaled(nn.Module):
        def __init__(self, inner: nn.Sequential) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.inner[2](self.inner[1](self.inner[0](inputs * 2) * 3))
            return logits

    expected = sensitivity(Scaled(mlp()), batches())
    model = mlp()
    model[0].register_forward_pre_hook(lambda _module, args: (args[0] * 2,))
    model[0].register_forward_hook(lambda _module, _args, output: output * 3)
    assert_equal(sensitivity(model, batches()), {"0": expected["inner.0"], "2": expected["inner.2"]})


@pytest.mark.parametrize("is_frozen", [True, False])
def test_what_a_layer_was_given_may_be_written_to_afterwards(*, is_frozen: bool) -> None:
    def writes(inputs: Tensor, model: Stepwise) -> Tensor:
        hidden: Tensor = model.one(inputs)
        other: Tensor = model.two(hidden)
        return hidden.mul_(2) + other

    def copies(inputs: Tensor, model: Stepwise) -> Tensor:
        hidden: Tensor = model.one(inputs)
        other: Tensor = model.two(hidden)
        return 2 * hidden + other

    one, other = (seeded(partial(Stepwise, step)).requires_grad_(not is_frozen) for step in (writes, copies))
    assert_equal(sensitivity(one, [batch().double()]), sensitivity(other, [batch().double()]), tolerance=1e-12)


@pytest.mark.parametrize("parametrization", [weight_norm, spectral_norm])
def test_a_weight_that_is_computed_is_taken_as_it_is(parametrization: Callable[[nn.Module], nn.Module]) -> None:
    model, plain = mlp(), mlp()
    parametrization(model[0])
    weight = tensor_of(model.eval()[0], "weight")
    assert weight is not None
    plain[0].weight = nn.Parameter(weight.detach().clone())
    model.train()
    with unchanged(model, "sensitivity"):
        assert_equal(sensitivity(model, batches()), sensitivity(plain, batches()), tolerance=1e-5)


def test_modules_that_hide_a_layer_from_its_own_call_are_left_out_with_a_warning() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            self.unused, self.head = nn.Linear(2, 2), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(inputs).mean(1))
            return logits

    message = r"2 layers were left out\. 'layer\.self_attn\.out_proj', 'unused': never ran; another module may read"
    with pytest.warns(LayerWarning, match=message) as caught:
        found = sensitivity(seeded(Attending), [images()[:, 0, :, :6]])
    assert caught[0].filename == __file__
    with pytest.raises(LayerNotFoundError, match=r"have no sensitivity\. 'unused': never ran; .*Leave them out"):
        sensitivity(seeded(Attending), [images()[:, 0, :, :6]], layers=["head", "unused"])
    assert list(found) == ["layer.linear1", "layer.linear2", "head"]


@pytest.mark.parametrize(
    ("dtype", "options", "tolerance"),
    [
        (torch.float32, {}, 1e-5),
        (torch.float32, {"precision": "float64"}, 1e-5),
        (torch.bfloat16, {}, 0.1),
    ],
)
def test_models_in_lower_precision_come_close_to_that_in_float64(
    dtype: torch.dtype, options: dict[str, Any], tolerance: float
) -> None:
    exact = sensitivity(seeded(TinyViT), [images()])
    found = sensitivity(seeded(TinyViT).to(dtype), [images().to(dtype)], **options)
    assert_equal(found, exact, tolerance=tolerance)


def test_autocast_around_the_call() -> None:
    exact = sensitivity(seeded(TinyViT), [images()])
    model = seeded(TinyViT).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), unchanged(model, "sensitivity"):
        found = sensitivity(model, [images().float()])
    assert_equal(found, exact, tolerance=0.1)


@pytest.mark.parametrize("chunk", [1, 3000, None])
def test_parts_and_chunks_make_the_sum_of_the_whole(chunk: int | None) -> None:
    model = seeded(TinyViT)
    first, second = (sensitivity_sums(model, [part], chunk_bytes=chunk) for part in (images()[:3], images()[3:]))
    for name, total in sensitivity_sums(model, [images()]).items():
        merged = first[name] + second[name]
        assert (merged.count, total.count) == (7, 7)
        torch.testing.assert_close(merged.weight, total.weight, rtol=1e-9, atol=1e-13)


def test_memory_of_a_batch_is_let_go() -> None:
    alive: list[weakref.ref[Any]] = []
    model = seeded(TinyViT)
    model.get_submodule("norm").register_forward_hook(lambda _module, _args, output: alive.append(weakref.ref(output)))
    sensitivity(model, images().split(4))
    gc.collect()
    assert alive
    assert not any(reference() is not None for reference in alive)


MODEL = mlp()
MANY = nn.Sequential(*(nn.Linear(6, 6) for _ in range(30)))


@pytest.mark.parametrize(
    ("model", "layers", "error", "message"),
    [
        (MODEL, ["0", "7"], LayerNotFoundError, r"`layers` holds '7', which is no layer .* layers: '0', '2'\."),
        (MODEL, [nn.Linear(2, 2)], LayerNotFoundError, "holds a module of type Linear, which is no layer of the model"),
        (MODEL, [], LayerNotFoundError, "There is no layer to take the sensitivity of"),
        (nn.Sequential(nn.ReLU()), None, LayerNotFoundError, r"The model has no nn\.Linear and no nn\.Conv2d\."),
        (MANY, ["x"], LayerNotFoundError, r"\(the last ones\): '10', '11'"),
        (MODEL, "2", InputTypeError, r'`layers` must be a list .*got str\. For one layer write `layers=\["2"\]`'),
        (MODEL, [3], InputTypeError, "`layers` must hold layers or their names, got int"),
        (MODEL, ["1"], LayerError, r"holds '1' of type ReLU: it must be an nn\.Linear or an nn\.Conv2d\. Its nn\.Lin"),
        (nn.Linear(6, 3, dtype=torch.complex64), [""], LayerError, r"its weight is torch\.complex64, not floating"),
        (nn.Sequential(nn.LazyLinear(3)), None, LookupError, "lazy layers that were never run"),
    ],
)
def test_layers_that_there_are_not(model: Any, layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sensitivity(model, batches(), layers=layers)


@pytest.mark.parametrize("step", [lambda x, m: m.one(x).detach() + m.two(x), lambda x, m: m.two(x) + 0 * len(m.one(x))])
def test_layers_that_the_logits_do_not_depend_on(step: Callable[[Tensor, Stepwise], Tensor]) -> None:
    model = Stepwise(step)
    message = "'one': the logits do not depend on its output in a way that"
    assert refused(model, batches(), ["one", "two"]).match(message)
    with pytest.warns(LayerWarning, match=message):
        assert list(sensitivity(model, batches())) == ["two", "head"]
    frozen = model.requires_grad_(requires_grad=False)
    assert refused(frozen, batches(), ["one"]).match("The logits do not depend on any of the layers")


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_forwards_that_turn_autograd_off(context: Callable[[], Any]) -> None:
    def without(inputs: Tensor, model: Stepwise) -> Tensor:
        with context():
            hidden = model.one(inputs)
        return torch.tanh(model.two(hidden.clone()))

    model = seeded(partial(Stepwise, without))
    for layers in (["one", "two"], ["one"], None):
        assert refused(model, [batch().double()], layers).match("The model's forward turns autograd off")
    found = sensitivity(model, [batch().double()], layers=["two", "head"])
    expected = sensitivity(seeded(partial(Stepwise, in_turn)), [batch().double()], layers=["two", "head"])
    assert_equal(found, expected, tolerance=1e-12)


@pytest.mark.parametrize(
    "mix",
    [
        lambda hidden: hidden - hidden.mean(0),
        lambda hidden: hidden.flip(0),
        lambda hidden: hidden + 1e-3 * hidden.roll(1, 0),
        lambda hidden: torch.softmax(hidden @ hidden.mT, 1) @ hidden,
    ],
    ids=["mean", "flip", "roll", "attention"],
)
@pytest.mark.parametrize("rows", [2, 200])
def test_samples_that_influence_one_another(mix: Callable[[Tensor], Tensor], rows: int) -> None:
    model = seeded(lambda: Stepwise(lambda inputs, model: mix(in_turn(inputs, model))))
    for layers in (["one"], None):
        found = refused(model, [batch(rows).double()], layers)
        assert found.match("samples of a batch influence one another, or the model draws random numbers")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x, m: m.one(x).sigmoid().mul_(2), "The model writes in place to something that the gradient is made"),
        (lambda x, m: nn.functional.dropout(m.one(x), training=True), ".*or the model draws random numbers"),
        (
            lambda x, m: nn.functional.batch_norm(m.one(x), None, None, training=True),
            "The model answers a batch, and not one sample of it alone, .*: Expected more than 1 value",
        ),
    ],
    ids=["in place", "random", "of a batch"],
)
def test_models_whose_gradient_cannot_be_taken(step: Callable[[Tensor, Stepwise], Tensor], message: str) -> None:
    with torch.random.fork_rng(), pytest.raises(LayerError, match=message):
        sensitivity(Stepwise(step), batches(), layers=["one"])


@pytest.mark.parametrize("samples", [4, 7])
def test_layers_that_get_the_batch_as_another_axis(samples: int) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.tanh(self.rows(tokens)).mean(0))
            return logits

    tokens = images(samples)[:, 0, :4, :5].transpose(0, 1)
    assert refused(seeded(First), [tokens]).match("batch_first=True")
    one_by_one = sensitivity(seeded(First), tokens.split(1, dim=1))
    assert list(one_by_one) == ["rows", "head"]


class Tied(nn.Module):
    """A head that shares its weight with an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.other = nn.Linear(4, 4)
        self.head.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.other(self.embedding(inputs).mean(1))))
        return logits


class Standardized(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
        output: Tensor = self._conv_forward(input, self.weight - self.weight.mean(), self.bias)
        return output


class OtherStep(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002  # the parent's name
        output: Tensor = super()._conv_forward(input * 2, weight, bias)
        return output


OWN = "has a forward of its own, which changes weight or input first"


@pytest.mark.parametrize(
    ("model", "inputs", "name", "message", "left"),
    [
        (Tied(), torch.arange(12).view(4, 3) % 7, "head", "its weight belongs to a Embedding as well", ["other"]),
        (nn.Sequential(Standardized(3, 2, 10), nn.Flatten(), nn.Linear(2, 3)), images().float(), "0", OWN, ["2"]),
        (nn.Sequential(OtherStep(3, 2, 10), nn.Flatten(), nn.Linear(2, 3)), images().float(), "0", OWN, ["2"]),
        (nn.Sequential(Standardized(3, 2, 10), nn.Flatten()), images().float(), "0", OWN, []),
    ],
    ids=["tied", "standardized", "other step", "nothing left"],
)
def test_layers_whose_gradient_cannot_be_told_are_left_out(
    model: nn.Module, inputs: Tensor, name: str, message: str, left: list[str]
) -> None:
    assert refused(model, [inputs], [name]).match(f"The sensitivity of '{name}' cannot be taken: .*{message}")
    if left:
        with pytest.warns(LayerWarning, match=f"'{name}': .*{message}"):
            assert list(sensitivity(model, [inputs])) == left
    else:
        assert refused(model, [inputs]).match(rf"No layer of the model has a sensitivity\. '{name}': .*{message}")


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        model = mlp()
    with pytest.raises(LayerError, match=r"were made under `torch\.inference_mode\(\)`"):
        sensitivity(model, batches())


@pytest.mark.parametrize(
    ("after", "error", "message"),
    [
        (
            lambda logits: (logits, 0),
            HeadNotFoundError,
            r"nor holds `\.logits`: .*`logits=0`, say\. Or name the layer whose output are the logits: `head=",
        ),
        (lambda logits: logits[..., None], ShapeError, r"`logits` must have shape \(batch, classes\), got \(8, 3, 1\)"),
    ],
)
def test_outputs_without_logits(after: Callable[[Tensor], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sensitivity(Answering(after), batches())


def test_what_is_not_finite() -> None:
    spoilt = batches()
    spoilt[1][2, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="`logits` in batch 1 must be finite"):
        sensitivity(mlp(), spoilt)
    model = Stepwise(lambda inputs, model: (0 * model.one(inputs)).sqrt())
    with pytest.raises(NonFiniteError, match=r"`gradient for one\.weight` must be finite"):
        sensitivity(model, batches(), layers=["one"])


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        ([batch(0)], {}, EmptyDataError, "`loader` yields no batch"),
        ([], {"temperature": 0.0}, OptionError, "`temperature` must be"),
        ([], {"precision": "half"}, OptionError, "`precision` must be"),
        ([], {"chunk_bytes": 0}, OptionError, "`chunk_bytes` must be a whole number of bytes above 0, got 0"),
        (batches(), {"head": "x"}, HeadNotFoundError, "`head` = 'x' is no layer of the model"),
    ],
)
def test_loaders_and_options(loader: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sensitivity(mlp(), loader, **options)
