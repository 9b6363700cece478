"""Sensitivity of any layers of a model: each sample's own gradients, by `torch.func` or one sample after the other.

Numbers that are zero are added to the weight of a layer, and to its input at all positions: the gradients for those
are the gradients for the weight, whatever it is computed from, and for the input through this layer alone.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from opnp.core.checks import checked_matrix, checked_temperature, require_finite, two_class_logits
from opnp.core.sensitivity import LayerSensitivitySum, Precision, Sensitivity, product_dtype
from opnp.errors import (
    HeadNotFoundError,
    InputTypeError,
    LayerError,
    LayerNotFoundError,
    LayerWarning,
    OpnpError,
    OptionError,
)
from opnp.model.batches import BatchReader, is_empty, opened
from opnp.model.borrow import (
    LAYER_KINDS,
    borrowed,
    in_this_thread,
    listed_layers,
    named_layer,
    set_eval_mode,
    unwrapped,
)
from opnp.model.forward import (
    Inputs,
    LogitsSelector,
    called,
    logits_of,
    no_logits_message,
    plain_tensor,
    run_model,
    sole_input,
)
from opnp.model.head import Head, HeadLayer, is_as_its_kind, require_exclusive, require_values, weight_of
from opnp.model.search import find_head

__all__ = ["sensitivity", "sensitivity_sums"]

_SHOWN = 20
_CHUNK_BYTES = 2**28
"""What the gradients of single samples take at once: 256 MiB."""


def sensitivity(
    model: nn.Module,
    loader: Iterable[object],
    *,
    layers: Iterable[str | nn.Module] | None = None,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    temperature: float = 1.0,
    precision: Precision = "float32",
    chunk_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Sensitivity]:
    """Return the sensitivities of the energy to the weights and inputs of any layers, by name of the layer.

    For a weight it is the mean over samples of the absolute gradient of the sample's energy, exactly: where a layer
    sees many positions of a sample (tokens, pixels), or runs more than once, or shares its weight with another layer,
    the gradient is the sum over all of those, and the absolute value comes after. For an input feature or channel it is
    the same of the gradient at that input through this layer, summed over positions (reading `gradient`), or the mean
    over all weights that read it (reading `aggregate`).

    The model runs in eval mode and is the same after the call, bit for bit; frozen layers have sensitivities as others
    have. Each sample is answered alone, many at once by `torch.func.vmap` where that can follow the model, else one
    after the other: it costs two forward passes and a backward pass for each. That the samples of a batch do not see
    one another is checked.

    Args:
        model: Any classifier whose layers are plain `nn.Linear` and `nn.Conv2d`, with the batch as the first axis.
        loader: Batches of inputs: tensors, (inputs, labels), or mappings; no labels are needed. Samples weigh alike.
        layers: Layers or their dotted names; None for every `nn.Linear` and `nn.Conv2d` that takes part.
        head: The layer whose output are the logits, or its name; None where the model's output are the logits.
        logits: Where the logits are in the model's output: index of a tuple, key or attribute, or a function of it.
        temperature: Temperature T of the energy, above 0.
        precision: Precision of the products; the model's own are those of its weights. Sums over samples are float64.
        chunk_bytes: Bytes that the gradients of single samples may take at once; None for 256 MiB. The
            result is the same for all.
        device: Where to run; None for where the model is.

    Returns:
        By name, in the order given: the sensitivities, float64, that of the weight in the weight's shape.

    Raises:
        LayerNotFoundError: If there is no such layer, or one that was named never runs.
        LayerError: If a layer is of another kind, or its gradient cannot be told sample by sample.
        HeadNotFoundError: If the model's output holds no logits, or there is no such `head`.
        OptionError: If `logits` leads nowhere.
        EmptyDataError: If `loader` yields no sample.
        NonFiniteError: If logits or gradients are not finite.
        InputTypeError: If `model` is no module, or `loader` or `layers` cannot be read.

    Warns:
        LayerWarning: If `layers` is None and some layers were left out, with the reason.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        >>> found = sensitivity(model, torch.rand(20, 1, 4, 4).split(5), layers=["0", "3"])
        >>> {name: tuple(layer.weight.shape) for name, layer in found.items()}
        {'0': (4, 1, 3, 3), '3': (3, 16)}

    References:
        Chen et al., NeurIPS 2023, the sensitivity of a parameter; of any layer, not of the last alone.

    """
    sums = sensitivity_sums(
        model,
        loader,
        layers=layers,
        head=head,
        logits=logits,
        temperature=temperature,
        precision=precision,
        chunk_bytes=chunk_bytes,
        device=device,
    )
    return {name: total.mean() for name, total in sums.items()}


def sensitivity_sums(
    model: nn.Module,
    loader: Iterable[object],
    *,
    layers: Iterable[str | nn.Module] | None = None,
    head: str | nn.Module | None = None,
    logits: LogitsSelector | None = None,
    temperature: float = 1.0,
    precision: Precision = "float32",
    chunk_bytes: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, LayerSensitivitySum]:
    """Return the sums that `sensitivity` takes the means of: parts of the data add up by ``+``, layer by layer.

    Arguments, errors and warnings are those of `sensitivity`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> first, second = (sensitivity_sums(model, [torch.rand(5, 4)], layers=["0"]) for _ in range(2))
        >>> (first["0"] + second["0"]).mean().count
        10

    """
    require_values(model)
    inner = unwrapped(model)
    require_exclusive(inner)
    if any(tensor.is_inference() for tensor in chain(inner.parameters(), inner.buffers())):
        raise LayerError(
            "The model's tensors were made under `torch.inference_mode()`, so that autograd cannot use them. Build or "
            "load the model outside of it.",
        )
    product_dtype(precision=precision)
    checked_temperature(temperature)
    limit = _CHUNK_BYTES if chunk_bytes is None else chunk_bytes
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise OptionError(f"`chunk_bytes` must be a whole number of bytes above 0, got {chunk_bytes!r}.")
    chosen, left_out = _chosen(inner, layers)
    first, batches = opened(loader)
    reader = BatchReader.of(inner, is_inside=False)
    found = (
        None if head is None else find_head(inner, reader.read(first).inputs, head=head, logits=logits, device=device)
    )
    by_weight: dict[HeadLayer, _Watch] = {}
    with torch.inference_mode(mode=False), borrowed(inner, device=device) as target:
        for name, sharing in chosen.items():
            by_weight.setdefault(sharing[0], _Watch.of(name, sharing, precision))
        watches = {name: by_weight[sharing[0]] for name, sharing in chosen.items()}
        energies = _Energies(inner, list(by_weight.values()), found, logits, temperature, target, layers is not None)
        with energies.hooks():
            count = _added_up(energies, reader, batches, limit)
    absent = {name: reason for name, watch in watches.items() if (reason := watch.absence())}
    if absent and layers is not None:
        kind = LayerError if all(watches[name].has_run for name in absent) else LayerNotFoundError
        raise kind(f"`layers` holds layers that have no sensitivity. {_by_reason(absent)}. Leave them out.")
    if len(absent) == len(watches):
        raise LayerError(f"No layer of the model has a sensitivity. {_by_reason(left_out | absent)}.")
    if left_out | absent:
        message = f"{len(left_out | absent)} layers were left out. {_by_reason(left_out | absent)}."
        warnings.warn(message, LayerWarning, stacklevel=3)
    sums = {name: LayerSensitivitySum(*watch.sums, count) for name, watch in watches.items() if name not in absent}
    for name, total in sums.items():
        require_finite(total.weight, name=f"gradient for {name}.weight")
        require_finite(total.neuron, name=f"gradient for the inputs of {name}")
    return sums


@dataclass(eq=False, slots=True)
class _Watch:
    """A weight whose sensitivity is taken.

    Attributes:
        name: Name of a layer that has it.
        sharing: Every layer that has it: the weight's gradient is the sum over all.
        added: Zeros to add to the weight, and to each input: the gradients are for these.
        sums: Sums of the absolute gradients for them, float64.
        has_run: Whether one of the layers ran.
        is_reached: Whether a gradient arrived.
        problem: Why the gradient cannot be had; empty if it can.

    """

    name: str
    sharing: tuple[HeadLayer, ...]
    added: tuple[Tensor, Tensor]
    sums: tuple[Tensor, Tensor]
    has_run: bool = False
    is_reached: bool = False
    problem: str = ""

    @classmethod
    def of(cls, name: str, sharing: tuple[HeadLayer, ...], precision: Precision) -> "_Watch":
        """Return the watch on the weight of these layers, before anything has run."""
        weight, layer = weight_of(sharing[0]), sharing[0]
        width = layer.in_channels if isinstance(layer, nn.Conv2d) else weight.shape[1]
        shapes = weight.shape, (width,)
        dtype = product_dtype(weight, precision=precision)
        zeros, sums = (
            tuple(torch.zeros(shape, dtype=each, device=weight.device) for shape in shapes)
            for each in (dtype, torch.float64)
        )
        return cls(name, sharing, (zeros[0], zeros[1]), (sums[0], sums[1]))

    def absence(self) -> str:
        """Return why there is no sensitivity after the pass over the data; empty if there is one."""
        if self.problem or self.is_reached:
            return self.problem
        if self.has_run:
            return "the logits do not depend on its output in a way that autograd can follow"
        return "never ran; another module may read the weight, as nn.MultiheadAttention does with `out_proj`"


_Added = Sequence[tuple[Tensor, Tensor]]
"""For each weight under watch, what is added to it and to its inputs."""


@dataclass(eq=False, slots=True)
class _Energies:
    """The energies of single samples as a function of what is added to weights and inputs, and their gradients.

    Attributes:
        model: An unwrapped model, on loan.
        watches: The weights.
        head: The layer whose output are the logits; None where they are the model's output.
        selector: Where in the model's output they are.
        temperature: Temperature T of the energy.
        device: Where the model is.
        is_strict: Whether a layer whose gradient cannot be had is an error. If not, its watch notes the problem.
        is_mapped: Whether many samples run at once, by `torch.func.vmap`; a model that this cannot follow runs them
            one after the other.

    """

    model: nn.Module
    watches: list[_Watch]
    head: Head | None
    selector: LogitsSelector | None
    temperature: float
    device: torch.device | None
    is_strict: bool
    is_mapped: bool = True
    _added: _Added | None = None
    _is_probing: bool = False
    _of_head: list[Tensor] = field(default_factory=list)

    def hooks(self) -> ExitStack:
        """Return what holds the hooks of the layers; they come before others, which may replace a layer's output."""
        with ExitStack() as stack:
            if self.head is not None:
                keep = in_this_thread(self._keep_logits)
                stack.enter_context(self.head.module.register_forward_hook(keep, prepend=True))
            for index, watch in enumerate(self.watches):
                for module in watch.sharing:
                    hook = in_this_thread(partial(self._add, index))
                    stack.enter_context(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            return stack.pop_all()

    def add(self, inputs: Inputs, where: str, chunk_bytes: int) -> tuple[int, int]:
        """Add the absolute gradients of a batch's samples to the sums; return the numbers of samples and classes."""
        whole = self._checked(run_model(self.model, inputs, device=self.device), where)
        samples = _samples(inputs, len(whole))
        if not all(watch.is_reached or watch.problem for watch in self.watches):
            self._probe(inputs, {name: rows[0] for name, rows in samples.items()})
        size = sum(each.nbytes for watch in self.watches for each in watch.added)
        rows = max(1, chunk_bytes // max(1, size))
        for start in range(0, len(whole), rows):
            part = {name: tensor[start : start + rows] for name, tensor in samples.items()}
            gradients, logits = self._gradients(inputs, part, len(whole[start : start + rows]))
            _require_alone(whole[start : start + rows], logits)
            for total, by_sample in zip(chain(*(watch.sums for watch in self.watches)), gradients, strict=True):
                for gradient in by_sample:
                    total.add_(gradient.abs())
            for watch in self.watches:
                watch.is_reached = watch.is_reached or bool(watch.sums[0].any())
        return len(whole), whole.shape[1]

    def _energy(self, inputs: Inputs, added: _Added, sample: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the energy of one sample, and its logits as a vector."""
        self._added = added
        set_eval_mode(self.model.modules())
        try:
            given = sample[""] if isinstance(inputs, Tensor) else {**inputs, **sample}
            logits = self._logits(called(self.model, given, device=self.device)).reshape(-1)
            logits = two_class_logits(logits).reshape(-1) if len(logits) == 1 else logits
        finally:
            self._added = None
        outputs = logits.to(product_dtype(logits, precision="float32"))
        shifted = (outputs - outputs.detach().amax()) / self.temperature
        return -self.temperature * shifted.logsumexp(0), logits.detach()

    def _gradients(self, inputs: Inputs, samples: Mapping[str, Tensor], count: int) -> tuple[list[Tensor], Tensor]:
        """Return the gradients of these samples for each weight and its inputs in turn, and the samples' logits."""
        energy, added = partial(self._energy, inputs), [watch.added for watch in self.watches]
        if self.is_mapped:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # of operations vmap takes apart
                    found, logits = vmap(grad(energy, has_aux=True), in_dims=(None, 0))(added, samples)
                    return list(chain(*found)), logits
            except Exception:  # noqa: BLE001  # what it cannot follow shows in many ways; the model's own errors come again
                self.is_mapped = False
        alone = [
            self._of_one(inputs, {name: rows[row] for name, rows in samples.items()}, is_zero_kept=True)
            for row in range(count)
        ]
        by_weight = zip(*(gradients for gradients, _ in alone), strict=True)
        return [torch.stack(each) for each in by_weight], torch.stack([logits for _, logits in alone])

    def _of_one(
        self, inputs: Inputs, sample: Mapping[str, Tensor], *, is_zero_kept: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the gradients of one sample, and its logits; where none arrives, it is zeros or None."""
        leaves = [tuple(zeros.clone().requires_grad_() for zeros in watch.added) for watch in self.watches]
        with torch.enable_grad():
            energy, logits = self._energy(inputs, [(weight, shift) for weight, shift in leaves], sample)
        if not energy.requires_grad:
            raise LayerError(
                "The logits do not depend on any of the layers in a way that autograd can follow. Does the model's "
                "forward detach its features, or run under `torch.no_grad()`?",
            )
        try:
            found = torch.autograd.grad(energy, list(chain(*leaves)), allow_unused=True, materialize_grads=is_zero_kept)
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise LayerError(
                    f"The model writes in place to something that the gradient is made of: {error}",
                ) from error
            raise
        return found, logits

    def _probe(self, inputs: Inputs, sample: Mapping[str, Tensor]) -> None:
        """See at one sample whether layers do what their kind does, and whether a gradient arrives at them."""
        self._is_probing = True
        try:
            gradients, _ = self._of_one(inputs, sample, is_zero_kept=False)
        except OpnpError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise LayerError(
                f"The model answers a batch, and not one sample of it alone, of which the gradient is taken: {error}"
            ) from error
        finally:
            self._is_probing = False
        for watch, of_weight in zip(self.watches, gradients[::2], strict=True):
            watch.is_reached = watch.is_reached or of_weight is not None

    def _add(
        self,
        index: int,
        module: HeadLayer,
        args: tuple[Tensor, ...],
        kwargs: dict[str, Tensor],
        output: Tensor,
    ) -> Tensor | None:
        """Return a layer's output as a function of what is added to weight and input: the forward hook."""
        watch = self.watches[index]
        if self._added is None or watch.problem:
            return None
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            raise LayerError(
                f"The model's forward turns autograd off (`torch.no_grad()` or `torch.inference_mode()`) round "
                f"{watch.name!r}: there is no gradient of it. Name other layers, with `layers=[...]`.",
            )
        watch.has_run = True
        given = plain_tensor(sole_input(args, kwargs))
        if self._is_probing and not is_as_its_kind(module, given, output):
            watch.problem = f"{type(module).__name__} has a forward of its own, which changes weight or input first"
            if self.is_strict:
                raise LayerError(f"The sensitivity of {watch.name!r} cannot be taken: {watch.problem}.")
            return None
        to_weight, to_input = self._added[index]
        with torch.autocast(output.device.type, enabled=False):  # it would take half precision
            weight = plain_tensor(module.weight).detach().to(to_weight.dtype) + to_weight
            given = given.to(to_weight.dtype)
            if isinstance(module, nn.Conv2d):
                again = nn.Conv2d._conv_forward(module, given + to_input.view(-1, 1, 1), weight, None)  # noqa: SLF001  # what forward calls
            else:
                again = nn.functional.linear(given + to_input, weight)
        changed: Tensor = output.detach() + (again - again.detach()).to(output.dtype)
        return changed

    def _keep_logits(self, _module: nn.Module, _args: object, output: Tensor) -> Tensor:
        """Keep the head's output: a forward hook. The model goes on with a copy, which it may write to."""
        self._of_head.append(output if self.head is None else self.head.logits_from(output))
        return output.clone()

    def _logits(self, output: object) -> Tensor:
        """Return the logits of what has just run."""
        if self.head is None:
            logits = logits_of(output, self.selector)
        else:
            logits = self._of_head[-1] if self._of_head else None
            self._of_head.clear()
        if logits is None:
            raise HeadNotFoundError(
                f"{no_logits_message(output)} Or name the layer whose output are the logits: `head=...`.",
            )
        return logits

    def _checked(self, output: object, where: str) -> Tensor:
        """Return the logits of a whole batch, once the energy is seen to be defined."""
        logits = self._logits(output)
        checked_matrix(logits, name="logits", axes="(batch, classes)")
        logits = two_class_logits(logits) if logits.shape[1] == 1 else logits
        require_finite(logits, name="logits", where=where)
        return logits


def _added_up(energies: _Energies, reader: BatchReader, batches: Iterable[object], chunk_bytes: int) -> int:
    """Add the samples of all batches to the sums of the watches; return how many there are."""
    count = 0
    for index, given in enumerate(batches):
        if is_empty(given):
            continue
        batch = reader.read(given)
        rows, classes = energies.add(batch.inputs, f" in batch {index}", chunk_bytes)
        count += rows
        reader = replace(reader, classes=classes)
        if reader.read(given).places != batch.places:  # by the number of classes, which is known now
            raise InputTypeError(
                f"Batch {index} can be read in several ways. Give the model's inputs by name, as a mapping.",
            )
    return count


def _samples(inputs: Inputs, count: int) -> dict[str, Tensor]:
    """Return, by name, the tensors that hold a batch of one for each sample."""
    named: Mapping[str, object] = {"": inputs} if isinstance(inputs, Tensor) else inputs
    tensors = {name: value.clone() for name, value in named.items() if isinstance(value, Tensor)}  # of any mode
    if count == 1:
        return {name: value[None] for name, value in tensors.items()}
    found = {name: value[:, None] for name, value in tensors.items() if value.ndim and len(value) == count}
    if not found:
        shapes = ", ".join(str(tuple(value.shape)) for value in tensors.values())
        raise LayerError(
            f"The model made logits of {count} samples of inputs of shape {shapes}, so that a sample's own cannot be "
            f"told. The batch must be the first axis (`batch_first=True`); or use batches of one.",
        )
    return found


def _require_alone(whole: Tensor, logits: Tensor) -> None:
    """Raise if samples have other logits in their batch than alone, more than rounding allows."""
    if whole.dtype == torch.float64:
        share = 1e-6
    else:
        is_half = whole.dtype != torch.float32 or torch.is_autocast_enabled(whole.device.type)
        share = 2.0**-4 if is_half else 2.0**-8  # bfloat16 has 7 bits behind the point, TensorFloat-32 has 10
    same = logits.shape == whole.shape and torch.allclose(logits, whole, rtol=0, atol=share * float(whole.abs().amax()))
    if not same:
        raise LayerError(
            "A sample has other logits in its batch than alone: samples of a batch influence one another, or the model "
            "draws random numbers, or the batch is not the first axis (`batch_first=True`). Mend that, or use batches "
            "of one.",
        )


def _chosen(
    model: nn.Module, layers: Iterable[str | nn.Module] | None
) -> tuple[dict[str, tuple[HeadLayer, ...]], dict[str, str]]:
    """Return by name of a layer all that have its weight, and why others are left out, by name.

    Only where `layers` is None is anything left out: of layers that were named, each must be one that a gradient can be
    taken of.
    """
    if layers is None:
        found = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_KINDS)}
    elif isinstance(layers, str | nn.Module | Mapping) or not isinstance(layers, Iterable):
        hint = f' For one layer write `layers=["{layers}"]`.' if isinstance(layers, str) else ""
        raise InputTypeError(f"`layers` must be a list of layers or of their names, got {type(layers).__name__}.{hint}")
    else:
        found = dict(named_layer(model, layer) for layer in layers)
    if not found:
        raise LayerNotFoundError(f"There is no layer to take the sensitivity of. {listed_layers(model)}")
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in model.modules():
        for attribute, parameter in owner._parameters.items():  # noqa: SLF001  # `named_parameters` names each tensor but once
            owners.setdefault(id(parameter), []).append((owner, attribute))
    chosen, left_out = {}, {}
    for name, module in found.items():
        weight, kind = weight_of(module), nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
        sharing = owners.get(id(weight), [(module, "weight")])
        others = [owner for owner, attribute in sharing if not isinstance(owner, kind) or attribute != "weight"]
        reason = "" if weight.is_floating_point() else f"its weight is {weight.dtype}, not floating point"
        if others:
            other = type(others[0]).__name__
            reason = f"its weight belongs to a {other} as well, whose part of the gradient is not known"
        if not reason:
            chosen[name] = tuple(owner for owner, _ in sharing if isinstance(owner, kind))
        elif layers is None:
            left_out[name] = reason
        else:
            raise LayerError(f"The sensitivity of {name!r} cannot be taken: {reason}.")
    return chosen, left_out


def _by_reason(reasons: Mapping[str, str]) -> str:
    """Return layers and reasons in words, reason by reason, the first layers where there are many."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(repr(name))
    return "; ".join(
        f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}: {reason}"
        for reason, names in by_reason.items()
    )
