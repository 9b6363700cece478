"""A model on loan comes back as it was, whatever happens meanwhile."""

from threading import Event, Thread

import pytest
import torch
from torch import Tensor, nn

from opnp.errors import OpnpWarning
from opnp.model import borrowed, device_of, unwrapped
from opnp.model.borrow import in_this_thread
from tests.contract.snapshot import unchanged
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


def test_a_hook_of_this_thread_is_none_of_another() -> None:
    calls: list[int] = []
    model = nn.Linear(2, 2)
    with model.register_forward_pre_hook(in_this_thread(lambda *_: calls.append(1))):
        other = Thread(target=model, args=(torch.ones(1, 2),))
        other.start()
        other.join(10)
        assert not calls
        model(torch.ones(1, 2))
    assert calls == [1]
    assert not model._forward_pre_hooks


def test_device_of() -> None:
    assert device_of(mlp()) == torch.device("cpu")
    assert device_of(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")
    assert device_of(nn.ReLU()) is None


def test_unwrapped_goes_through_every_wrapper() -> None:
    inner = mlp()
    assert unwrapped(inner) is inner
    assert unwrapped(nn.DataParallel(nn.DataParallel(inner))) is inner
    assert unwrapped(compiled(inner)) is inner


def test_the_named_device_is_the_one_yielded() -> None:
    with borrowed(mlp(), device="cpu") as device:
        assert device == torch.device("cpu")
    with borrowed(nn.ReLU()) as nowhere:
        assert nowhere is None


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
