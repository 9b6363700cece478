"""A model on loan comes back as it was, whatever happens meanwhile."""

from collections.abc import Callable
from threading import Event, Thread, current_thread

import pytest
import torch
from torch import Tensor, nn

from opnp.errors import OpnpWarning
from opnp.model import borrowed, device_of, find_head, head_tap, unwrapped
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import CLASSES, INPUTS, batch, compiled, mlp


class Gated(nn.Module):
    """Batch norm and a head, behind a gate that each thread passes in its own time."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(INPUTS)
        self.fc = nn.Linear(INPUTS, CLASSES)
        self.first_is_in, self.second_is_in, self.first_is_out = Event(), Event(), Event()

    def forward(self, inputs: Tensor) -> Tensor:
        if current_thread().name == "first":
            self.first_is_in.set()
            assert self.second_is_in.wait(10)
        if current_thread().name == "second":
            self.second_is_in.set()
            assert self.first_is_out.wait(10)
        outputs: Tensor = self.fc(self.norm(inputs))
        return outputs


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


def test_loans_nest() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    with unchanged(model, "borrowed twice"), borrowed(model):
        with borrowed(model):
            pass
        assert not model.training


def test_two_threads_share_a_model_in_train_mode() -> None:
    model = Gated().train()
    head = find_head(Gated(), batch())
    statistics = model.norm.running_mean
    assert statistics is not None
    before = statistics.clone()
    answers: dict[str, tuple[Tensor, Tensor]] = {}
    seeds = {"first": 1, "second": 2}

    def run() -> None:
        name = current_thread().name
        with head_tap(model, type(head)(name="fc", module=model.fc, is_output=True)) as tap:
            answers[name] = tap(batch(seed=seeds[name]))
        if name == "first":
            model.first_is_out.set()

    first, second = Thread(target=run, name="first"), Thread(target=run, name="second")
    first.start()
    assert model.first_is_in.wait(10)
    second.start()
    first.join(20)
    second.join(20)
    assert model.training
    assert model.norm.training
    assert torch.equal(before, statistics), "the statistics of the batch norm changed"
    for name, seed in seeds.items():
        expected = batch(seed=seed) / (1 + model.norm.eps) ** 0.5
        assert torch.allclose(answers[name][0], expected), f"features of the {name} thread"


def lent_to_another(model: nn.Module, *, use: Callable[[], object] = lambda: None) -> Callable[[], None]:
    """Borrow and use a model in another thread, and return what ends that loan."""
    inside, leave = Event(), Event()

    def hold() -> None:
        with borrowed(model):
            use()
            inside.set()
            leave.wait(10)

    def end() -> None:
        leave.set()
        holder.join(10)

    holder = Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    return end


def test_a_loan_lasts_until_the_last_thread_is_done() -> None:
    model = nn.Linear(2, 2).train()
    end_other_loan = lent_to_another(model)
    with borrowed(model):
        end_other_loan()
        assert not model.training, "another thread's loan ended, and with it ours"
    assert model.training


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
        with borrowed(model):
            model(batch())
        assert model.count == 1, "the outer loan has not ended"
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].contiguous().view(-1).view(torch.uint8).equal(value.contiguous().view(-1).view(torch.uint8))
    assert all(held[name] is buffer for name, buffer in model.named_buffers())
    assert model.cache.tolist() == [1, 1], "what is not in the state dict is the model's own"
    if version is not None and untouched is not None:
        assert untouched._version == version, "a buffer that was not written to must not be"


def test_buffers_come_back_when_the_last_of_overlapping_loans_ends() -> None:
    model = Counting()
    end_other_loan = lent_to_another(model, use=lambda: model(batch()))
    with borrowed(model):
        end_other_loan()
        assert model.count == 1
    assert model.count == 0


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
