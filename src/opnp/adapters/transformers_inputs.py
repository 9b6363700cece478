"""From an image or a text to what a classifier of transformers takes, by its own image processor or tokenizer."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from opnp.data.preprocessing import require_area
from opnp.errors import DataFileError, OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TokenizerTransform", "TransformersImageTransform"]


class TransformersImageTransform:
    """Image in, tensor out, by an image processor of transformers. Satisfies `opnp.data.Transform`.

    Args:
        processor: The image processor.
        channels: Channels of the model's inputs: 1 for grey, else 3.

    """

    kind: Literal["image"] = "image"

    def __init__(self, processor: Any, *, channels: int = 3) -> None:  # noqa: ANN401  # the package has no common type
        """Keep the arguments."""
        self.processor = processor
        self.channels = channels

    @property
    def std(self) -> tuple[float, ...] | None:
        """What the channels are divided by, or None where they are not normalised."""
        found = getattr(self.processor, "image_std", None)
        return tuple(found) if found and getattr(self.processor, "do_normalize", False) else None

    def __call__(self, sample: "Image") -> Tensor:
        """Return the model's input of one image, shape ``(channels, height, width)``, float32.

        Raises:
            DataFileError: If the image is so long and thin that it has too many pixels once resized.
            OptionError: If the processor makes several inputs of an image, such as a tensor and a mask.

        """
        self._require_area(sample)
        made = self.processor(images=sample.convert("L" if self.channels == 1 else "RGB"), return_tensors="pt")
        if set(made) != {"pixel_values"}:
            raise OptionError(
                f"{type(self.processor).__name__} makes {', '.join(sorted(made))} of an image, and only `pixel_values` "
                f"can be read: run the model yourself, and use its features.",
            )
        pixels: Tensor = made["pixel_values"][0]
        return pixels.float()

    def _require_area(self, sample: "Image") -> None:
        """Raise if the shorter side is to be resized to a fixed length, and the other side becomes huge by that."""
        size = getattr(self.processor, "size", None)
        known = {name: value for name, value in dict(size or {}).items() if value is not None}
        if getattr(self.processor, "do_resize", False) and set(known) == {"shortest_edge"}:
            factor = known["shortest_edge"] / min(sample.size)
            require_area(round(sample.width * factor), round(sample.height * factor))

    def batch(self, items: Sequence[Tensor]) -> Tensor:
        """Return inputs of several images as one tensor, shape ``(batch, channels, height, width)``.

        Raises:
            OptionError: If they differ in size, as the processor does not bring all images to one.

        """
        shapes = sorted({tuple(item.shape) for item in items})
        if len(shapes) > 1:
            raise OptionError(
                f"{type(self.processor).__name__} makes inputs of different sizes, such as {shapes[0]} and "
                f"{shapes[1]}: set a fixed size in preprocessor_config.json, or `--batch-size 1`.",
            )
        return torch.stack(list(items))

    def facts(self) -> Mapping[str, object]:
        """Return what makes these inputs the same as others: the processor, its settings and the package's version."""
        return {
            "processor": type(self.processor).__name__,
            "settings": json.loads(json.dumps(self.processor.to_dict(), default=str)),
            "transformers": version("transformers"),
        }


class TokenizerTransform:
    """Text in, token indices and attention mask out, by a tokenizer of transformers. Satisfies `opnp.data.Transform`.

    Args:
        tokenizer: The tokenizer; it must have a padding token.
        limit: Tokens that a text is cut to; None for no limit.
        keywords: Inputs that the model takes, by name; None for all that the tokenizer makes.
        digests: SHA-256 of the tokenizer's files by name, for `facts`.

    Raises:
        OptionError: If the tokenizer has no padding token.

    """

    kind: Literal["text"] = "text"

    def __init__(
        self,
        tokenizer: Any,  # noqa: ANN401  # the package has no common type
        *,
        limit: int | None = None,
        keywords: frozenset[str] | None = None,
        digests: Mapping[str, str] | None = None,
    ) -> None:
        """Check the padding token, and keep the arguments."""
        if tokenizer.pad_token is None:
            raise OptionError(
                f"{type(tokenizer).__name__} has no padding token, so that texts of different lengths make no batch. "
                f"Give it the one that the model was trained with, or `tokenizer.pad_token = tokenizer.eos_token` with "
                f"`model.config.pad_token_id = tokenizer.pad_token_id`, and save both to the folder again.",
            )
        self.tokenizer = tokenizer
        self.limit = limit
        self.keywords = keywords
        self._digests = dict(digests or {})

    def __call__(self, sample: str) -> Mapping[str, Tensor]:
        """Return token indices and attention mask of one text, each of shape ``(tokens,)``, int64.

        Raises:
            DataFileError: If the text holds no token; the message is the reason alone, as of a transform.

        """
        made = self.tokenizer(sample, truncation=self.limit is not None, max_length=self.limit)
        if not made["input_ids"]:
            raise DataFileError("no token is in the text")
        return {
            name: torch.tensor(values)
            for name, values in made.items()
            if self.keywords is None or name in self.keywords
        }

    def batch(self, items: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return the inputs of several texts, padded to the longest, each of shape ``(batch, tokens)``.

        The attention mask is 0 at what was added.
        """
        padded: Mapping[str, Tensor] = self.tokenizer.pad([dict(item) for item in items], return_tensors="pt")
        return dict(padded)

    def facts(self) -> Mapping[str, object]:
        """Return what makes these inputs the same as others: tokenizer, its files, limit, and the package's version."""
        return {
            "tokenizer": type(self.tokenizer).__name__,
            "files": self._digests,
            "limit": self.limit,
            "transformers": version("transformers"),
        }
