"""A model on loan, or with masks on its layers, comes back as it was, whatever happens meanwhile."""

import copy
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from opnp import layer_masks, pruned, pruned_copy, sensitivity
from opnp.errors import InputTypeError, LayerError, LayerNotFoundError, OpnpWarning, ShapeError
from opnp.model import borrowed, device_of
from tests.contract.snapshot import unchanged
from tests.unit.model.layer_models import TinyViT, Twice, images, seeded
from tests.unit.model.tiny_models import CLASSES, INPUTS, batch, compiled, mlp


def test_modes_are_restored_module_by_module() -> None:
    norm, head = nn.BatchNorm1d(2), nn.Linear(2, 2)
    model = nn.Sequential(nn.Dropout(), nn.Sequential(norm, nn.Dropout()), head)
    model.train()
    norm.eval()
    head.eval()
    with unchanged(model, "borrowed"), borrowed(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()


def test_a_train_method_with_effects_is_not_called() -> None:
    class Counting(nn.Linear):
        def train(self, mode: bool = True) -> "Counting":
            message = "the owner's code ran"
            raise AssertionError(message)

    model = Counting(2, 2)
    with borrowed(model):
        assert not model.training
    assert model.training


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit()])
def test_modes_are_restored_after_errors(error: BaseException) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    with unchanged(model, "borrowed"), pytest.raises(type(error)), borrowed(model):
        raise error


def test_a_model_is_lent_to_one_thread_at_a_time() -> None:
    model = nn.Sequential(nn.BatchNorm1d(INPUTS), nn.Linear(INPUTS, CLASSES)).train()
    order: list[str] = []
    inside = Event()

    def hold() -> None:
        inside.set()
        with borrowed(model):
            order.append("second")

    other = Thread(target=hold)
    with unchanged(model, "two loans"):
        with borrowed(model):
            other.start()
            assert inside.wait(10)
            with borrowed(model):
                model(batch())
            order.append("first")
        other.join(10)
    assert order == ["first", "second"]


def test_the_device_of_a_model_is_the_one_yielded() -> None:
    for model, expected in ((mlp(), "cpu"), (nn.BatchNorm1d(2, affine=False), "cpu"), (nn.ReLU(), None)):
        with borrowed(model) as device:
            assert device == device_of(model) == (expected and torch.device(expected))
    with borrowed(mlp(), device="cpu") as device:
        assert device == torch.device("cpu")


class Counting(nn.Module):
    """A model that writes to its buffers whenever it runs: in place, behind autograd's back, and by replacing one."""

    count: Tensor
    seen: Tensor
    last: Tensor
    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(INPUTS)
        self.fc = nn.Linear(INPUTS, CLASSES)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.full((2, 3), float("nan"), dtype=torch.bfloat16).T)
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.count += 1
        self.seen.data.add_(1).nan_to_num_(3.0)
        self.last = inputs[0, :2].clone()
        self.cache += 1
        outputs: Tensor = self.fc(self.norm(inputs))
        return outputs


@pytest.mark.parametrize("is_inference", [False, True])
def test_buffers_of_the_state_dict_come_back_bit_for_bit(is_inference: bool) -> None:
    with torch.inference_mode(is_inference):
        model = Counting().train()
    held = dict(model.named_buffers())
    untouched = model.norm.running_mean
    before = {name: value.clone() for name, value in model.state_dict().items()}
    version = None if untouched is None or is_inference else untouched._version
    with torch.inference_mode(is_inference), borrowed(model):
        model(batch())
        assert model.count == 1
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))
    assert all(held[name] is buffer for name, buffer in model.named_buffers())
    assert model.cache.tolist() == [1, 1], "what is not in the state dict is the model's own"
    if version is not None and untouched is not None:
        assert untouched._version == version, "a buffer that was not written to must not be"


def test_a_write_to_parameters_is_told_and_what_says_so_stays() -> None:
    class SetUpByItsFirstBatch(nn.Module):
        is_set_up: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(INPUTS))
            self.register_buffer("is_set_up", torch.tensor(data=False))

        def forward(self, inputs: Tensor) -> Tensor:
            if not self.is_set_up:
                self.mean.data = inputs.mean(0)
                self.mean.add_(0)
                self.is_set_up.fill_(value=True)
            return inputs - self.mean

    model = SetUpByItsFirstBatch()
    with (
        pytest.warns(OpnpWarning, match=r"wrote to 1 of its parameters .*\(mean\).*run it once before"),
        borrowed(model),
    ):
        model(batch())
    assert model.is_set_up
    with unchanged(model, "the second loan"), borrowed(model):
        model(batch(seed=3))


# ----------------------------------------------------------------------------------------------- masks on its layers
def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return layer_masks(sensitivity(model, [images()]), w_min=0.4, w_max=0.02, o_min=0.25)


def by_hand(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """Return a copy with zeros written into its weights."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            weight = result.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight[~mask] = 0
    return result


def test_a_pruned_model_answers_as_one_with_zeros_and_is_as_it_was_afterwards() -> None:
    model, pixels = seeded(TinyViT).train(), images()
    masks = masks_of(model)
    before, expected = model(pixels), by_hand(model, masks)(pixels)
    with unchanged(model, "pruned"), pruned(model, masks) as held:
        assert held is model
        assert torch.equal(model(pixels), expected)
        assert not torch.allclose(expected, before)
        assert prune.is_pruned(model)
    assert torch.equal(model(pixels), before)
    assert not prune.is_pruned(model)


def test_parameters_keep_their_order_and_optimizers_their_parameters() -> None:
    model = mlp()
    order = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    keys = list(model.state_dict())
    with pruned(model, {"0": torch.ones(5, 6, dtype=torch.bool), "2": torch.ones(3, 5, dtype=torch.bool)}):
        assert {id(parameter) for parameter in model.parameters()} == {number for _, number in order}
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == order
    assert list(model.state_dict()) == keys


def test_training_with_masks_on_changes_what_is_kept_and_nothing_else() -> None:
    model = mlp()
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    weight = model.get_parameter("0.weight")
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pruned(model, {"0": mask}):
        model(batch()).logsumexp(1).sum().backward()
        optimizer.step()
    assert torch.equal(weight[~mask], before[~mask])
    assert not torch.isclose(weight[mask], before[mask]).all()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_masks_are_taken_off_after_an_exception(error: BaseException) -> None:
    model = seeded(TinyViT)
    masks = masks_of(model)

    def fail(_module: nn.Module, _args: object) -> None:
        raise error

    with pruned(model, masks):
        handle = model.get_submodule("norm").register_forward_pre_hook(fail)
    with unchanged(model, "pruned"), pytest.raises(type(error)), pruned(model, masks):
        model(images())
    handle.remove()


def test_hooks_and_other_masks_of_the_user_stay() -> None:
    model = mlp()
    calls: list[int] = []
    model[0].register_forward_pre_hook(lambda _module, _args: calls.append(1))
    prune.random_unstructured(model[0], "bias", 0.5)
    with unchanged(model, "pruned"), pruned(model, {"0": torch.zeros(5, 6, dtype=torch.bool)}):
        model(batch())
        handle = model[0].register_forward_pre_hook(lambda _module, _args: None)
        handle.remove()
    assert calls == [1]


def test_masks_may_be_made_permanent_meanwhile() -> None:
    model = mlp()
    mask = torch.zeros(5, 6, dtype=torch.bool)
    with pruned(model, {"0": mask}):
        prune.remove(model[0], "weight")
    assert not model.get_parameter("0.weight").any()
    assert sorted(dict(model.named_parameters())) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled])
def test_masks_on_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = mlp()
    mask = {"0": torch.zeros(5, 6, dtype=torch.bool)}
    expected = by_hand(model, mask)(batch())
    wrapped = wrap(model)
    with unchanged(wrapped, "pruned"), pruned(wrapped, mask):
        assert torch.equal(model(batch()), expected)
    assert torch.equal(pruned_copy(wrapped, mask)(batch()), expected)


def test_a_copy_is_pruned_for_good_and_the_model_is_not_touched() -> None:
    model = seeded(TinyViT).train().requires_grad_(requires_grad=False)
    masks = masks_of(model)
    with unchanged(model, "pruned_copy"):
        copied = pruned_copy(model, masks)
    assert torch.equal(copied(images()), by_hand(model, masks)(images()))
    assert list(copied.state_dict()) == list(model.state_dict())
    assert copied.training
    assert not any(parameter.requires_grad for parameter in copied.parameters())
    assert not prune.is_pruned(copied)
    model.load_state_dict(copied.state_dict())
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert not weight[~mask].any()
        assert torch.signbit(weight[~mask]).logical_not().all(), "zeros have no sign"


def test_of_a_weight_that_layers_share_the_named_one_alone_is_pruned() -> None:
    model = seeded(Twice)
    mask = {"first": torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5}
    inputs = batch().double()
    copied = pruned_copy(model, mask)
    with unchanged(model, "pruned"), pruned(model, mask):
        assert torch.equal(model(inputs), copied(inputs))
    assert torch.equal(copied.get_parameter("second.weight"), model.get_parameter("first.weight"))
    assert model.get_submodule("first").weight is model.get_submodule("second").weight


GOOD = torch.ones(5, 6, dtype=torch.bool)


@pytest.mark.parametrize("call", [pruned_copy, lambda model, masks: pruned(model, masks).__enter__()])
@pytest.mark.parametrize(
    ("change", "masks", "error", "message"),
    [
        (None, [GOOD], InputTypeError, "`masks` must be a mapping from names of layers to masks, got list"),
        (None, {"0": GOOD, "7": GOOD}, LayerNotFoundError, "`masks` holds '7', which is no layer of the model"),
        (None, {"0": GOOD, "1": GOOD}, LayerError, r"`masks` holds '1' of type ReLU: it must be an nn\.Linear"),
        (None, {"0": GOOD, "2": GOOD}, ShapeError, r"mask of '2' must have the shape of its weight, \(3, 5\), got"),
        (
            None,
            {"0": GOOD.float()},
            InputTypeError,
            r"mask of '0' must be a boolean tensor, True = keep, got torch\.fl",
        ),
        (weight_norm, {"0": GOOD}, LayerError, "'0' is no plain parameter: it is pruned or"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(
    call: Callable[[nn.Module, Any], object], change: Any, masks: Any, error: type[Exception], message: str
) -> None:
    model = mlp()
    if change is not None:
        change(model[0])
    with unchanged(model, "a refusal"), pytest.raises(error, match=message):
        call(model, masks)


def test_masks_on_masks_and_two_of_one_layer_are_refused() -> None:
    model = mlp()
    twins = nn.ModuleDict({"left": model[0], "right": model[0]})
    with pytest.raises(LayerError, match="holds the layer 'right' twice, under two names"):
        pruned_copy(twins, {"left": GOOD, "right": GOOD})
    mask = {"0": torch.ones(5, 6, dtype=torch.bool)}
    message = "pruned or parametrized already"
    with unchanged(model, "pruned"), pruned(model, mask), pytest.raises(LayerError, match=message), pruned(model, mask):
        pass


def test_a_mask_that_cannot_be_put_on_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    names, hooks = list(model.state_dict()), len(model[0]._forward_pre_hooks)

    def broken(*_: object, **__: object) -> Tensor:
        message = "no memory left"
        raise RuntimeError(message)

    monkeypatch.setattr(prune.CustomFromMask, "compute_mask", broken)
    with pytest.raises(RuntimeError, match="no memory left"), pruned(model, {"0": torch.ones(4, 3, dtype=torch.bool)}):
        pass
    assert list(model.state_dict()) == names
    assert len(model[0]._forward_pre_hooks) == hooks
