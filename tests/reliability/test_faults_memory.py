"""A batch that needs more memory than there is: told in one message, or run in halves to the same result."""

import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from opnp.adapters import odin_scores
from opnp.errors import BatchSizeWarning, InsufficientMemoryError, LabelWarning, ModelRunError
from opnp.model import BatchHalving, Inputs, head_stream, is_out_of_memory
from tests.contract.snapshot import unchanged
from tests.reliability.faults_world import SHORTAGES, Faulty, batches, detector
from tests.tried import Tried


class Limit:
    """Raises where there are more rows than a number.

    Attributes:
        rows: The number.
        seen: Rows of the runs that went well.

    """

    def __init__(self, rows: int, make: Callable[[], BaseException] = MemoryError) -> None:
        self.rows, self.make = rows, make
        self.seen: list[int] = []

    def __call__(self, hidden: Tensor) -> None:
        """Look at the rows."""
        if len(hidden) > self.rows:
            raise self.make()
        self.seen.append(len(hidden))


@contextmanager
def told_sizes() -> Iterator[list[str]]:
    """Yield the sizes of batches that warnings speak of, once it is left; there must be no other warnings."""
    sizes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield sizes
    caught = [each for each in caught if each.category is not LabelWarning]  # random weights contradict any labels
    assert {each.category for each in caught} <= {BatchSizeWarning}
    message = r"The model ran out of memory on a batch of (\d+ inputs: it is run on \d+) at once from here on\."
    found = [re.fullmatch(message, str(each.message)) for each in caught]
    sizes += ["" if each is None else each[1] for each in found]


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_without_the_option_one_message_says_what_to_do(shortage: str, tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    limit = Limit(7, SHORTAGES[shortage])
    faulty, found = Faulty(limit), detector()
    message = r"ran out of memory on a batch of 8 inputs \(.+\)\. .*`--batch-size`.*`--auto-batch`.*`auto_batch=True`"
    with unchanged(faulty.model, "a fit"), pytest.raises(InsufficientMemoryError, match=message) as caught:
        found.fit(faulty.model, batches())
    assert isinstance(caught.value, ModelRunError)
    assert isinstance(caught.value, RuntimeError | MemoryError)
    assert isinstance(caught.value.__cause__, type(SHORTAGES[shortage]()))
    assert not found.is_fitted


CASES = [(8, 4, "of torch"), (9, 2, "of Python"), (1, 1, "of Python"), (24, 7, "of Python")]
MORE = [(rows, limit, each) for rows, limit in ((8, 7), (8, 1), (7, 3), (5, 4), (33, 1)) for each in SHORTAGES]


@pytest.mark.parametrize(
    ("rows", "limit", "shortage"), [*CASES, *(pytest.param(*case, marks=pytest.mark.long) for case in MORE)]
)
def test_halves_come_to_what_whole_batches_come_to(rows: int, limit: int, shortage: str, tried: Tried) -> None:
    """Of the paper's method, and where there are rows enough of the fusion."""
    tried("faults", "batches that need more memory than there is", 15)
    given, held_out = batches(4, rows=rows), batches(10, rows=rows, seed=1)
    memory, is_fusion = Limit(limit, SHORTAGES[shortage]), rows == 24
    faulty, found, whole = Faulty(memory), detector(is_fusion=is_fusion), detector(is_fusion=is_fusion)
    with told_sizes() as told:
        found.fit(faulty.model, given, validation=held_out, keep=0.9, auto_batch=True)
    whole.fit(Faulty().model, given, validation=held_out, keep=0.9)
    assert (found.samples, found.members) == (4 * rows, whole.members)
    torch.testing.assert_close(found.sensitivity.weight, whole.sensitivity.weight, rtol=1e-5, atol=0)
    rtol, atol = (1e-4, 1e-4) if is_fusion else (1e-5, 1e-6)
    torch.testing.assert_close(found.calibration_scores, whole.calibration_scores, rtol=rtol, atol=atol)
    assert torch.equal(found.masks.weight, whole.masks.weight)
    sizes, size = [], rows
    while size > limit:
        sizes.append((size, size := size // 2))
    assert told == [f"{old} inputs: it is run on {new}" for old, new in sizes]
    assert max(memory.seen) == size  # remembered: never again more than that
    with unchanged(faulty.model, "a score"):
        torch.testing.assert_close(found.score(given[0]), whole.score(given[0]), rtol=rtol, atol=atol)


def test_every_input_counts_once_where_memory_runs_out_now_and_then(tried: Tried) -> None:
    """Memory is short in the middle of the second batch, of its second half, and of the last."""
    tried("faults", "batches that need more memory than there is", 3)
    calls: list[int] = []

    def now_and_then(hidden: Tensor) -> None:
        calls.append(len(hidden))
        if len(calls) in {2, 4, 9}:
            raise MemoryError

    faulty = Faulty(now_and_then)
    with told_sizes() as sizes:
        found = detector().fit(faulty.model, batches(rows=8), auto_batch=True)
    assert sizes == ["8 inputs: it is run on 4", "4 inputs: it is run on 2", "2 inputs: it is run on 1"]
    assert found.sensitivity.count == 32
    whole = detector().fit(Faulty().model, batches(rows=8))
    torch.testing.assert_close(found.sensitivity.weight, whole.sensitivity.weight, rtol=1e-5, atol=0)


def test_a_single_input_that_does_not_fit_is_told(tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    faulty, found = Faulty(Limit(0)), detector()
    with (
        unchanged(faulty.model, "a fit"),
        told_sizes() as sizes,
        pytest.raises(InsufficientMemoryError, match=r"a batch of one input .*There is no smaller batch"),
    ):
        found.fit(faulty.model, batches(), auto_batch=True)
    assert len(sizes) == 3
    assert not found.is_fitted


def test_other_errors_are_not_taken_for_a_lack_of_memory(tried: Tried) -> None:
    tried("faults", "errors that are no lack of memory", 4)
    calls = []

    def failing(hidden: Tensor) -> None:
        calls.append(hidden)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (8x6 and 5x3)")

    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        detector().fit(Faulty(failing).model, batches(), auto_batch=True)
    assert not isinstance(caught.value, InsufficientMemoryError)
    assert len(calls) == 1
    assert not any(map(is_out_of_memory, (OSError(12, "Cannot allocate memory"), ValueError("out of memory"))))


@pytest.mark.parametrize(
    ("inputs", "is_cut"),
    [
        ({"ids": torch.ones(4, 3), "mask": torch.ones(4), "use_cache": False, "scale": torch.tensor(2.0)}, True),
        ({"ids": torch.ones(4, 2), "patches": torch.ones(7, 2)}, False),
        ({"ids": torch.ones(4, 2), "names": ["a", "b", "c", "d"]}, False),
        (torch.tensor(1.0), False),
    ],
)
def test_batches_are_cut_only_where_inputs_can_be_told_apart(inputs: Inputs, is_cut: bool, tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    calls: list[Inputs] = []

    def run(part: Inputs) -> tuple[Tensor, ...]:
        calls.append(part)
        ids = part if isinstance(part, Tensor) else part["ids"]
        assert isinstance(ids, Tensor)
        if ids.ndim == 0 or len(ids) > 3:
            raise MemoryError
        return (ids,)

    halving = BatchHalving(is_on=True)
    if not is_cut:
        with pytest.raises(InsufficientMemoryError, match=r"cannot be told apart, so that it cannot be halved"):
            halving.outcome(run, inputs)
        return
    with pytest.warns(BatchSizeWarning, match="of 4 inputs"):
        assert torch.equal(halving.outcome(run, inputs)[0], torch.ones(4, 3))
    parts = [part for part in calls[1:] if not isinstance(part, Tensor)]
    assert [(len(part["mask"]), part["use_cache"], float(part["scale"])) for part in parts] == [(2, False, 2.0)] * 2  # type: ignore[arg-type]  # tensors


def test_a_model_that_uses_its_memory_again_does_not_overwrite_the_first_half(tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    memory = torch.empty(2, 1)

    def run(part: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(part, Tensor)
        if len(part) > 2:
            raise MemoryError
        return (memory[: len(part)].copy_(part),)

    with pytest.warns(BatchSizeWarning, match="of 5 inputs"):
        found = BatchHalving(is_on=True).outcome(run, torch.arange(5.0)[:, None])
    assert found[0].flatten().tolist() == [0, 1, 2, 3, 4]


def test_what_a_failed_try_had_made_is_given_back_before_the_next(tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    made: list[weakref.ref[Tensor]] = []

    def run(part: Inputs) -> tuple[Tensor, ...]:
        assert isinstance(part, Tensor)
        assert all(each() is None for each in made)
        hidden = part * 2
        made.append(weakref.ref(hidden))
        if len(part) > 1:
            raise MemoryError
        return (part,)

    with told_sizes() as sizes:
        BatchHalving(is_on=True).outcome(run, torch.ones(4, 1))
    assert len(sizes) == 2
    assert len(made) == 6


def test_odin_takes_halves_too(tried: Tried) -> None:
    tried("faults", "batches that need more memory than there is")
    whole = odin_scores(Faulty().model, batches(), std=None)
    faulty = Faulty(Limit(3))
    with unchanged(faulty.model, "ODIN"), told_sizes() as sizes:
        halves = odin_scores(faulty.model, batches(), std=None, halving=BatchHalving(is_on=True))
    assert len(sizes) == 2
    torch.testing.assert_close(halves, whole)


class TooLarge(nn.Linear):
    """A layer that one device has no memory for."""

    def to(self, place: object, *_: object, **__: object) -> "TooLarge":  # type: ignore[override]  # it never moves
        """Find no memory there."""
        if str(place) == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self


def test_a_model_that_does_not_fit_itself_is_not_tried_on_smaller_batches(tried: Tried) -> None:
    tried("faults", "models that need more memory than there is")
    opened = head_stream(TooLarge(6, 3), batches(), device="meta", halving=BatchHalving(is_on=True))
    with pytest.raises(InsufficientMemoryError, match="not enough memory on meta for the model itself"):
        opened.__enter__()


class Sequences(nn.Module):
    """A recurrent classifier with time on axis 0 and samples on axis 1, which runs out of memory on long ones."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recurrent, self.fc, self.limit = nn.LSTM(4, 5), nn.Linear(5, 3), limit

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.limit:
            raise MemoryError
        logits: Tensor = self.fc(self.recurrent(inputs)[0][-1])
        return logits


@pytest.mark.parametrize("steps", [10, 12, 13])
def test_samples_on_the_second_axis_are_not_cut_by_time(steps: int, tried: Tried) -> None:
    """Six samples: half of 12 or 13 steps are as many as these, by chance."""
    tried("faults", "batches that need more memory than there is", 2)
    given = torch.randn(steps, 6, 4, generator=torch.Generator().manual_seed(0))
    model = Sequences(steps)
    found = detector().fit(model, [given], auto_batch=True)
    assert found.sensitivity.count == len(found.score(given)) == 6
    model.limit = steps - 1
    message = r"ran out of memory on a batch, which cannot be cut: a part of . inputs gave 6 rows\. .*`--batch-size`"
    with pytest.warns(BatchSizeWarning), pytest.raises(InsufficientMemoryError, match=message):
        found.score(given)
    with pytest.warns(BatchSizeWarning), pytest.raises(InsufficientMemoryError, match=message):
        detector().fit(model, [given], auto_batch=True)
