"""Sensitivities of any layer: models and batches of every kind, and a model that is afterwards as it was."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from opnp import Sensitivity, sensitivity, sensitivity_sums
from opnp.errors import LayerWarning
from tests.contract.snapshot import unchanged
from tests.unit.model.layer_models import TinyViT, Twice, cnn, images, seeded
from tests.unit.model.tiny_models import Answering, Named, WithLogits, batch, batches, compiled, mlp


def assert_equal(found: dict[str, Sensitivity], expected: dict[str, Sensitivity], *, tolerance: float = 0.0) -> None:
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


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


def no_hook(_module: nn.Module, _args: object) -> None:
    """Stand for a hook of the user's."""


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
    model.register_forward_pre_hook(no_hook)
    loader = images().split(3)
    expected = sensitivity(model, loader)
    with around(), unchanged(model, "sensitivity"):
        assert_equal(sensitivity(model, loader), expected)


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
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
    assert len(calls) == (0 if place == "loader" else 2)


def test_frozen_layers_and_layers_that_train_have_the_same() -> None:
    model, loader = seeded(cnn_that_has_run), images().split(4)
    expected = sensitivity(model, loader)
    assert_equal(sensitivity(model.requires_grad_(requires_grad=False), loader), expected)
    assert_equal(sensitivity(model.train(), [pixels.requires_grad_() for pixels in loader]), expected)


def test_one_layer_alone_has_what_it_has_among_others() -> None:
    model, loader = seeded(TinyViT), images().split(4)
    together = sensitivity(model, loader)
    assert list(together) == ["patches", "qkv", "out", "mlp.0", "mlp.2", "head"]
    for name, layer in together.items():
        assert_equal(sensitivity(model, loader, layers=[name]), {name: layer}, tolerance=1e-12)


def test_layers_are_given_by_name_or_as_they_are_in_any_order() -> None:
    model = seeded(TinyViT)
    by_name = sensitivity(model, [images()], layers=["mlp.2", "patches"])
    as_they_are = sensitivity(model, [images()], layers=(model.get_submodule("mlp.2"), model.get_submodule("patches")))
    assert list(by_name) == ["mlp.2", "patches"]
    assert_equal(as_they_are, by_name)


def test_a_layer_with_two_names_answers_to_both() -> None:
    model = mlp()
    model.add_module("last", model[2])
    found = sensitivity(model[:3], batches(), layers=["2"])
    both = sensitivity(nn.Sequential(model[:2], nn.ModuleDict({"a": model[2]})["a"]), batches(), layers=["1"])
    assert_equal({"2": both["1"]}, found)
    twins = nn.ModuleDict({"left": model[2], "right": model[2]})
    twins.forward = lambda inputs: twins["right"](model[:2](inputs))
    assert_equal(sensitivity(twins, batches(), layers=["right"]), {"right": found["2"]})


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


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda inputs: (inputs, torch.arange(8) % 3),
        lambda inputs: [inputs],
        lambda inputs: {"input": inputs},
        lambda inputs: {"pixel_values": inputs, "labels": torch.arange(8) % 3},
    ],
)
def test_every_kind_of_batch(wrapped: Callable[[Tensor], object]) -> None:
    expected = sensitivity(mlp(), batches())
    assert_equal(sensitivity(mlp(), [wrapped(inputs) for inputs in batches()]), expected)
    assert_equal(sensitivity(mlp(), (wrapped(inputs) for inputs in [batch(0), *batches()])), expected)


def test_keywords_and_outputs_in_the_manner_of_hugging_face() -> None:
    expected = sensitivity(mlp(), batches())
    found = sensitivity(Named(), [{"pixel_values": inputs, "scale": 1.0} for inputs in batches()])
    assert_equal(found, {f"inner.{name}": layer for name, layer in expected.items()})
    for after in (WithLogits, lambda logits: {"logits": logits}):
        assert_equal(sensitivity(Answering(after), batches()), {"body.0": expected["0"], "fc": expected["2"]})


@pytest.mark.parametrize("layers", [["fc"], ["body.0"], ["body.0", "fc"]])
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


def test_inputs_made_under_inference_mode() -> None:
    with torch.inference_mode():
        loader = batches()
        as_mappings = [{"pixel_values": inputs, "scale": 1.0} for inputs in loader]
    model = mlp()
    expected = sensitivity(model, batches())
    assert_equal(sensitivity(model, loader), expected)
    with torch.inference_mode():
        assert_equal(sensitivity(model, loader), expected)
    found = sensitivity(Named(), as_mappings)
    assert_equal(found, {f"inner.{name}": layer for name, layer in expected.items()})


class Rows(nn.Module):
    """Runs its layers on the tokens of all samples as rows of one matrix, and on frames as images of one batch."""

    def __init__(self, *, is_flat: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 4), nn.Linear(4, 3)
        self.is_flat = is_flat

    def forward(self, inputs: Tensor) -> Tensor:
        if self.is_flat:
            frames = torch.tanh(self.conv(inputs.flatten(0, 1)[:, None]))
            tokens = frames.unflatten(0, (len(inputs), -1)).movedim(2, -1)
            hidden = self.linear(tokens.flatten(0, 3)).unflatten(0, tokens.shape[:4])
        else:
            frames = torch.stack([torch.tanh(self.conv(frame[:, None])) for frame in inputs.unbind(1)], 1)
            hidden = self.linear(frames.movedim(2, -1))
        logits: Tensor = self.head(torch.tanh(hidden).mean((1, 2, 3)))
        return logits


def test_rows_of_many_tokens_belong_to_their_samples() -> None:
    flat, apart = (seeded(partial(Rows, is_flat=is_flat)) for is_flat in (True, False))
    expected = sensitivity(apart, images().split(3))
    assert_equal(sensitivity(flat, images().split(3)), expected, tolerance=1e-12)


def test_layers_that_run_without_a_batch_axis() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 2, 9), nn.Linear(8, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(self.conv(inputs[0]).flatten())
            return logits[None]

    model = seeded(Single)
    expected = sensitivity(
        nn.Sequential(model.get_submodule("conv"), nn.Flatten(), model.get_submodule("head")), [images()]
    )
    assert_equal(sensitivity(model, images().split(1)), {"conv": expected["0"], "head": expected["2"]}, tolerance=1e-12)


def test_a_branch_that_some_batches_do_not_take_counts_as_zero_there() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.seldom = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.often(inputs)
            return logits + self.seldom(inputs) if len(inputs) == 2 else logits

    model = seeded(Branch).float()
    rare = sensitivity(model, [batch(2)], layers=["seldom"])["seldom"]
    both = sensitivity(model, [batch(6), batch(2)], layers=["often", "seldom"])
    assert both["often"].count == both["seldom"].count == 8
    torch.testing.assert_close(both["seldom"].weight, rare.weight / 4)


def test_a_layer_whose_second_run_is_cast_away() -> None:
    class Away(Twice):
        def forward(self, inputs: Tensor) -> Tensor:
            self.again(inputs).sum()
            logits: Tensor = self.head(self.again(inputs))
            return logits

    model = seeded(Away)
    inputs = [batch().double()]
    expected = sensitivity(nn.Sequential(model.get_submodule("again"), model.get_submodule("head")), inputs)
    found = sensitivity(model, inputs, layers=["again", "head"])
    assert_equal(found, {"again": expected["0"], "head": expected["1"]})


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


def test_a_weight_that_is_computed_is_taken_as_it_is() -> None:
    model = mlp()
    expected = sensitivity(model, batches())
    weight_norm(model[0])
    with unchanged(model, "sensitivity"):
        assert_equal(sensitivity(model, batches()), expected, tolerance=1e-5)


def test_a_subclass_that_does_what_its_parent_does() -> None:
    class Same(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the parent's name
            return nn.functional.linear(input, self.weight, self.bias)

    model, twin = mlp(), mlp()
    twin[2] = Same(5, 3)
    twin[2].load_state_dict(model[2].state_dict())
    assert_equal(sensitivity(twin, batches(), layers=["0", "2"]), sensitivity(model, batches()))


def test_modules_that_hide_a_layer_from_its_own_call_are_left_out_with_a_warning() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
            self.unused, self.head = nn.Linear(2, 2), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(inputs).mean(1))
            return logits

    model = seeded(Attending)
    tokens = images()[:, 0, :, :6]
    message = r"2 layers were left out\. 'layer\.self_attn\.out_proj', 'unused': never ran; another module may read"
    with pytest.warns(LayerWarning, match=message) as caught:
        found = sensitivity(model, [tokens])
    assert caught[0].filename == __file__
    assert list(found) == ["layer.linear1", "layer.linear2", "head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_in_lower_precision_come_close_to_that_in_float64(dtype: torch.dtype) -> None:
    exact = sensitivity(seeded(TinyViT), [images()])
    found = sensitivity(seeded(TinyViT).to(dtype), [images().to(dtype)])
    assert_equal(found, exact, tolerance=1e-5 if dtype == torch.float32 else 0.1)


def test_autocast_around_the_call() -> None:
    exact = sensitivity(seeded(TinyViT), [images()])
    model = seeded(TinyViT).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), unchanged(model, "sensitivity"):
        found = sensitivity(model, [images().float()])
    assert_equal(found, exact, tolerance=0.1)


def test_other_threads_use_the_model_meanwhile() -> None:
    model = seeded(TinyViT)
    expected = sensitivity(model, [images()])
    outputs: list[Tensor] = []

    def loader() -> Iterator[Tensor]:
        yield images()[:3]
        thread = Thread(target=lambda: outputs.append(model(images())))
        thread.start()
        thread.join(20)
        yield images()[3:]

    found = sensitivity(model, loader())
    assert_equal(found, expected, tolerance=1e-12)
    assert torch.equal(outputs[0], model(images()))


def test_another_thread_uses_a_model_whose_head_is_named() -> None:
    expected = sensitivity(mlp(), batches())
    model = mlp()
    outputs: list[Tensor] = []

    def answer(*_args: object) -> None:
        thread = Thread(target=lambda: outputs.append(model[2](torch.ones(1, 5))))
        thread.start()
        thread.join(20)

    model[1].register_forward_hook(answer)
    assert_equal(sensitivity(model, batches(), head="2"), expected)
    assert len(outputs) == 4


def test_a_model_that_is_one_layer() -> None:
    model = nn.Linear(6, 3)
    assert list(sensitivity(model, batches())) == list(sensitivity(model, batches(), layers=[model])) == [""]


def test_a_device_that_is_named() -> None:
    expected = sensitivity(mlp(), batches())
    assert_equal(sensitivity(mlp(), batches(), device="cpu"), expected)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    model = seeded(TinyViT)
    first, second, whole = (sensitivity_sums(model, [part]) for part in (images()[:3], images()[3:], images()))
    for name, total in whole.items():
        merged = first[name] + second[name]
        assert (merged.count, total.count) == (7, 7)
        torch.testing.assert_close(merged.weight, total.weight, rtol=1e-9, atol=1e-13)


def test_memory_of_a_batch_is_let_go() -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    model = seeded(TinyViT)
    model.get_submodule("norm").register_forward_hook(lambda _module, _args, output: alive.append(weakref.ref(output)))
    sensitivity(model, images().split(4))
    gc.collect()
    assert len(alive) == 2
    assert not any(reference() is not None for reference in alive)
