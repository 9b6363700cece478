"""Models whose forwards answer, compute or behave in unusual ways, each in a function that returns it."""

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

from tests.reliability.models_world import CLASSES, FEATURES, Net, body

__all__ = ["Forward", "answering"]

Pair = namedtuple("Pair", ["scores", "loss"])  # noqa: PYI024  # what a model may return


@dataclass
class Answer:
    """The output of a model that names its parts."""

    hidden: Tensor
    scores: Tensor


def answering(name: str, after: Callable[[Tensor], object]) -> Callable[[], nn.Module]:
    """Return a function that returns a model with this after its head."""

    def build() -> nn.Module:
        return Net(after=after)

    build.__name__ = name
    return build


class Forward(Net):
    """A body and a head, with a forward of any kind, which may keep things in the model."""

    def __init__(self, made: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.made, self.runs = made, 0
        self.other = nn.Linear(FEATURES, CLASSES)
        self.norm = nn.BatchNorm1d(FEATURES)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("place", torch.zeros(64, FEATURES), persistent=False)

    def forward(self, inputs: Tensor) -> Any:
        return self.made(self, inputs)


def _dropped(model: Any, inputs: Tensor) -> Any:
    return model.fc(model.body(inputs[1:]))


def drops_a_sample() -> nn.Module:
    return Forward(_dropped)


def doubles_samples() -> nn.Module:
    return Forward(lambda model, inputs: model.fc(model.body(torch.cat([inputs, inputs]))))


def one_row_for_each_channel() -> nn.Module:
    return Tokens(lambda model, rows: model.fc(rows.flatten(0, 1)))


class Tokens(nn.Module):
    """Three rows of features for an image."""

    def __init__(self, made: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.fc, self.made = nn.Linear(64, FEATURES), nn.Linear(FEATURES, CLASSES), made

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.made(self, self.body(inputs.flatten(2)).relu())
        return outputs


def logits_of_tokens() -> nn.Module:
    return Tokens(lambda model, rows: model.fc(rows))


def logits_of_one_token() -> nn.Module:
    return Tokens(lambda model, rows: model.fc(rows)[:, 0])


def logits_of_pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, FEATURES, 3), nn.ReLU(), nn.Conv2d(FEATURES, CLASSES, 1))


def recurrent_layer_with_the_batch_second() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.GRU(64, FEATURES), nn.Linear(FEATURES, CLASSES)

        def forward(self, inputs: Tensor) -> Any:
            return self.fc(self.body(inputs)[0][-1])

    return Recurrent()


def _alternating(first: Callable[[Any, Tensor], Any], later: Callable[[Any, Tensor], Any]) -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.runs += 1
        return (first if model.runs == 1 else later)(model, model.body(inputs))

    return Forward(made)


def fewer_columns_later() -> nn.Module:
    return _alternating(lambda model, rows: model.fc(rows), lambda model, rows: model.fc(rows)[:, :2])


def scaled_later() -> nn.Module:
    return _alternating(lambda model, rows: model.fc(rows), lambda model, rows: 3 * model.fc(rows))


def other_head_later() -> nn.Module:
    return _alternating(lambda model, rows: model.fc(rows), lambda model, rows: model.other(rows))


def other_head_answers_later() -> nn.Module:
    def both(model: Any, rows: Tensor) -> Any:
        return [model.fc(rows), model.other(rows)]

    return _alternating(lambda model, rows: both(model, rows)[0], lambda model, rows: both(model, rows)[1])


def pair_later() -> nn.Module:
    return _alternating(lambda model, rows: model.fc(rows), lambda model, rows: (model.fc(rows), rows))


def head_for_some_samples() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Tensor:
        rows = model.body(inputs)
        is_one = torch.arange(len(rows)) % 2 == 0
        logits: Tensor = rows.new_empty(len(rows), CLASSES)
        logits[is_one], logits[~is_one] = model.fc(rows[is_one]), model.other(rows[~is_one])
        return logits

    return Forward(made)


def functional_dropout() -> nn.Module:
    return Forward(lambda model, inputs: model.fc(dropout(model.body(inputs), 0.5, training=True)))


def dropout_set_to_training() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.drop.train()
        return model.fc(model.drop(model.body(inputs)))

    model = Forward(made)
    model.drop = nn.Dropout()
    return model


def random_numbers_without_effect() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        torch.rand([])  # as layers that may be skipped in training draw it
        return model.fc(model.body(inputs))

    return Forward(made)


def batch_norm_without_statistics() -> nn.Module:
    model = Net()
    model.body.append(nn.BatchNorm1d(FEATURES, track_running_stats=False))
    return model


def batch_norm_set_to_training() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.norm.train()
        return model.fc(model.norm(model.body(inputs)))

    return Forward(made)


class StubbornNorm(nn.BatchNorm1d):
    """A batch norm that `eval()` leaves in training mode."""

    def train(self, mode: bool = True) -> Any:  # torch's signature
        return super().train(mode=True)


def batch_norm_whose_train_is_its_own() -> nn.Module:
    model = Net()
    model.body.append(StubbornNorm(FEATURES))
    return model


def training_mode_after_each_run() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        logits = model.fc(model.drop(model.body(inputs)))
        model.train()
        return logits

    model = Forward(made)
    model.drop = nn.Dropout()
    return model


def counts_its_runs() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.runs += 1
        model.last = inputs
        return model.fc(model.body(inputs))

    return Forward(made)


def moving_average_in_a_buffer() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        rows = model.body(inputs)
        model.mean.mul_(0.9).add_(rows.mean(0), alpha=0.1)
        model.steps = model.steps + 1
        return model.fc(rows)

    return Forward(made)


def writes_to_its_body() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.body[1].weight.mul_(0.99)
        return model.fc(model.body(inputs))

    return Forward(made)


def writes_to_its_head() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        model.fc.weight.data.mul_(0.99)
        return model.fc(model.body(inputs))

    return Forward(made)


def detached_features() -> nn.Module:
    return Forward(lambda model, inputs: model.fc(model.body(inputs).detach().clone()).clone())


def features_written_to_after_the_head() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        rows = model.body(inputs)
        logits = model.fc(rows)
        rows.zero_()
        return logits

    return Forward(made)


def features_in_memory_that_is_used_again() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        rows = model.place[: len(inputs)]
        rows.copy_(model.body(inputs))
        return model.fc(rows)

    return Forward(made)


def writes_to_its_inputs() -> nn.Module:
    return Forward(lambda model, inputs: model.fc(model.body(inputs.mul_(0.5))))


def checkpointed() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        return checkpoint(lambda each: model.fc(model.body(each)), inputs, use_reentrant=False)

    return Forward(made)


def head_by_keyword() -> nn.Module:
    return Forward(lambda model, inputs: model.fc(input=model.body(inputs)))


def autograd_turned_on() -> nn.Module:
    return Forward(torch.enable_grad()(lambda model, inputs: model.fc(model.body(inputs))))


def inference_mode_inside() -> nn.Module:
    return Forward(torch.inference_mode()(lambda model, inputs: model.fc(model.body(inputs))))


def autocast_inside() -> nn.Module:
    return Forward(torch.autocast("cpu", torch.bfloat16)(lambda model, inputs: model.fc(model.body(inputs))))


class Needs(Net):
    """Needs a second argument, as its signature says."""

    def forward(self, inputs: Tensor, scale: Tensor) -> Any:  # type: ignore[override]  # the test
        return super().forward(inputs * scale[:, None, None, None])


class ByKeyword(Net):
    """Takes its inputs by keyword alone."""

    def forward(self, *, inputs: Tensor) -> Any:  # type: ignore[override]  # the test
        return super().forward(inputs)


def needs_a_second_argument() -> nn.Module:
    return Needs()


def takes_keywords_alone() -> nn.Module:
    return ByKeyword()


class Cast(nn.Module):
    """Body and head in unlike precisions."""

    def __init__(self, inside: torch.dtype, head: torch.dtype, *, is_cast: bool = True) -> None:
        super().__init__()
        self.body, self.fc = body().to(inside), nn.Linear(FEATURES, CLASSES, dtype=head)
        self.inside, self.head, self.is_cast = inside, head, is_cast

    def forward(self, inputs: Tensor) -> Any:
        return self.fc(self.body(inputs.to(self.inside) if self.is_cast else inputs).to(self.head))


def head_of_float32_on_bfloat16() -> nn.Module:
    return Cast(torch.bfloat16, torch.float32)


def head_of_bfloat16_on_float32() -> nn.Module:
    return Cast(torch.float32, torch.bfloat16)


def head_of_float64() -> nn.Module:
    return Cast(torch.float32, torch.float64)


def all_float16() -> nn.Module:
    return Cast(torch.float16, torch.float16, is_cast=False)


def all_bfloat16() -> nn.Module:
    return Cast(torch.bfloat16, torch.bfloat16, is_cast=False)


def on_the_meta_device() -> nn.Module:
    with torch.device("meta"):
        return Net()


def head_on_the_meta_device() -> nn.Module:
    model = Net()
    model.fc.to("meta")
    return model


def body_on_the_meta_device() -> nn.Module:
    model = Net()
    model.body.to("meta")
    return model


def features_not_a_number() -> nn.Module:
    def made(model: Any, inputs: Tensor) -> Any:
        rows = model.body(inputs).index_fill(0, torch.tensor([1]), float("nan"))
        return model.fc(rows)

    return Forward(made)


def batch_second(inputs: Tensor) -> Tensor:
    """Return the rows of images as steps of a sequence, with the batch on the second axis."""
    return inputs.flatten(2).transpose(0, 1)


def by_name(inputs: Tensor) -> Mapping[str, Tensor]:
    """Return the arguments of `needs_a_second_argument`."""
    return {"inputs": inputs, "scale": torch.ones(len(inputs))}
