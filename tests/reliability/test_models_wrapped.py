"""Models that torch has wrapped, compiled, scripted, exported or spread over ranks; and what is no model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from opnp import OPNP, Ratios
from opnp.bench import cache_features
from opnp.errors import HeadNotFoundError, InputTypeError
from tests.reliability import models_wrapped as wrapped
from tests.reliability.models_adapted import quantised_body
from tests.reliability.models_world import Case, Net, built, check_refused, check_right, image_sets, images
from tests.tried import Tried

pytestmark = pytest.mark.reliability

_KINDS = r"no nn\.Linear layer.*other kinds, as scripted, .*'fc' \(Linear\)\. Give the model that it was made from"

CASES = (
    Case(wrapped.compiled, plain=Net),
    Case(wrapped.compiled_head, plain=Net),
    Case(wrapped.data_parallel, plain=Net),
    Case(wrapped.scripted_body, plain=Net),
    Case(wrapped.graph_module),
    Case(wrapped.made_in_inference_mode),
    Case(wrapped.weight_of_another_type, plain=Net, is_copied=False),
    Case(wrapped.scripted, error=HeadNotFoundError, message=_KINDS),
    Case(wrapped.traced, error=HeadNotFoundError, message=_KINDS),
    Case(wrapped.scripted_and_frozen, error=HeadNotFoundError, message=r"no nn\.Linear layer.*`fit_features`"),
    Case(wrapped.exported, error=HeadNotFoundError, message=r"no nn\.Linear layer.*`fit_features`"),
)

SPREAD = (
    Case(wrapped.distributed_data_parallel, plain=Net),
    Case(wrapped.fully_sharded_by_the_older_way, plain=Net, is_copied=False, own=("attributes of ",)),
    Case(wrapped.fully_sharded, plain=Net, is_copied=False, own=("state_dict_pre_hooks", "parameter body.1")),
    Case(wrapped.head_in_parts_by_columns, plain=Net, is_copied=False),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_wrapped_model_is_looked_through_or_refused(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "models wrapped or compiled by torch, by every way to a score")
    if case.error is None:
        check_right(case, tmp_path)
    else:
        check_refused(case, tmp_path)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a process group of this process alone."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("case", SPREAD, ids=lambda case: case.name)
def test_a_model_spread_over_ranks_is_that_of_one(case: Case, tmp_path: Path, tried: Tried) -> None:
    tried("models", "models wrapped or compiled by torch, by every way to a score")
    check_right(case, tmp_path)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("build", [wrapped.fully_sharded, wrapped.weight_of_another_type])
def test_a_model_that_cannot_be_copied_says_so(build: Callable[[], Net], tried: Tried) -> None:
    tried("models", "models that cannot be copied")
    detector = OPNP(ratios=Ratios(), shaping=None).fit(built(build), images("train")).calibrate(images("test"))
    with pytest.raises(InputTypeError, match=r"The model cannot be copied: copy\.deepcopy raised"):
        detector.to_module()


class Calling:
    """What can be called and is no module."""

    def __init__(self) -> None:
        self.model = Net()

    def __call__(self, inputs: Tensor) -> object:
        return self.model(inputs)


@pytest.mark.parametrize(
    ("model", "got"),
    [(lambda inputs: inputs, "function"), (Calling(), "Calling"), (Net, "type"), ({}, "dict"), (None, "NoneType")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_module_is_refused(model: object, got: str, tmp_path: Path, tried: Tried) -> None:
    tried("models", "things that are no modules")
    expected = rf"`model` must be a torch\.nn\.Module, got {got}"
    with pytest.raises(InputTypeError, match=expected):
        OPNP(ratios=Ratios()).fit(model, images("train"))  # type: ignore[arg-type]  # the test
    with pytest.raises(InputTypeError, match=expected):
        cache_features(model, image_sets(tmp_path), tmp_path / "cache", name="a:model", is_odin_wanted=False)  # type: ignore[arg-type]  # as above
    detector = OPNP(ratios=Ratios()).fit(built(Net), images("train"))
    detector.save(tmp_path / "detector.safetensors")
    if model is not None:
        with pytest.raises(InputTypeError, match=expected):
            OPNP.load(tmp_path / "detector.safetensors", model)  # type: ignore[arg-type]  # as above


def test_other_weights_of_a_quantised_body_are_other_features(tmp_path: Path, tried: Tried) -> None:
    tried("models", "quantised models with other weights")
    sets, options = image_sets(tmp_path), {"name": "a:model", "is_odin_wanted": False, "is_replacing": True}
    first = cache_features(built(quantised_body), sets, tmp_path / "cache", **options)  # type: ignore[arg-type]  # options of many kinds
    again = cache_features(built(quantised_body), sets, tmp_path / "cache", **options)  # type: ignore[arg-type]  # as above
    assert (first.computed, again.kept) == (("train", "test"), ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = quantised_body()
    other.fc = built(quantised_body).fc
    assert cache_features(other, sets, tmp_path / "cache", **options).computed == ("train", "test")  # type: ignore[arg-type]  # as above
