"""Models as they are: find the head, stream (features, logits), leave no trace."""

from opnp.model.batches import BatchHalving, BatchReader, InputAxes, axes_of
from opnp.model.borrow import borrowed, device_of, pruned, pruned_copy, unwrapped
from opnp.model.forward import Inputs, LogitsSelector, is_out_of_memory, logits_of, plain_tensor, run_model
from opnp.model.head import Head, HeadLayer, head_layers, linear_layers, require_values
from opnp.model.layers import sensitivity, sensitivity_sums
from opnp.model.search import find_head
from opnp.model.stream import HeadStream, Tap, head_stream, head_tap

__all__ = [
    "BatchHalving",
    "BatchReader",
    "Head",
    "HeadLayer",
    "HeadStream",
    "InputAxes",
    "Inputs",
    "LogitsSelector",
    "Tap",
    "axes_of",
    "borrowed",
    "device_of",
    "find_head",
    "head_layers",
    "head_stream",
    "head_tap",
    "is_out_of_memory",
    "linear_layers",
    "logits_of",
    "plain_tensor",
    "pruned",
    "pruned_copy",
    "require_values",
    "run_model",
    "sensitivity",
    "sensitivity_sums",
    "unwrapped",
]
