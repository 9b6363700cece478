"""Classifiers of transformers from a folder or the hub of Hugging Face, with their own image processor or tokenizer.

No code that comes with a model is downloaded or run: weights are safetensors, and the architecture is one that
transformers has itself.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from opnp.adapters.hub_cache import cached_folder, is_hub_name
from opnp.data import file_digest
from opnp.data.samples import require_area
from opnp.errors import DataFileError, MissingFileError, OpnpError, OptionError, require_installed

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "TOKENIZER_FILES",
    "TokenizerTransform",
    "TransformersImageTransform",
    "named_weights",
    "quiet",
    "require_no_code",
    "transformers_model",
]

_KINDS: dict[str, Literal["image", "text"]] = {
    "ForImageClassification": "image",
    "ForImageClassificationWithTeacher": "image",
    "ForSequenceClassification": "text",
}
"""Endings of architectures that are classifiers, and what they take."""

_LOCAL: dict[str, bool] = {"local_files_only": True, "trust_remote_code": False}
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
)
TOKENIZER_FILES = (
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What the tokens of a text depend on."""
_DOWNLOADED = ("config.json", *_WEIGHTS, "model-*.safetensors", *_PROCESSORS, *TOKENIZER_FILES)
"""Files of a model on the hub that are fetched: none of code, none that is pickled."""
_SHOWN = 4
_UNLIMITED = 1_000_000
"""Tokenizers that know no limit name a larger one than this."""


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

        An orientation tag is followed, as transformers does where it opens an image.

        Raises:
            DataFileError: If the image is so long and thin that it has too many pixels once resized.
            OptionError: If the processor makes several inputs of an image, such as a tensor and a mask.

        """
        from PIL import ImageOps

        sample = ImageOps.exif_transpose(sample)
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
            name: torch.tensor(values, device="cpu")
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


def transformers_model(
    folder: str | Path, *, classes: int | None = None, is_pretrained: bool = True
) -> tuple[nn.Module, TransformersImageTransform | TokenizerTransform]:
    """Return the image or text classifier in a folder, in float32, and what makes its inputs.

    The folder is as `save_pretrained` of model and processor or tokenizer writes it. Texts are cut to what tokenizer
    and model take, and padded with attention masks.

    Args:
        folder: Folder with ``config.json``, ``model.safetensors``, and ``preprocessor_config.json`` or the files of a
            tokenizer; or the name of such a model on the hub of Hugging Face, ``org/name`` or ``org/name@revision``,
            whose files are downloaded unless they are in its cache.
        classes: Rows of the head, for weights that are loaded afterwards; None for those of the folder.
        is_pretrained: Whether the model gets the weights of the folder; random ones else.

    Returns:
        The model, and the transform of its inputs.

    Raises:
        MissingFileError: If there is no such folder, nor such a model in the cache or on the hub; or it holds no
            ``config.json`` or no weights.
        OptionError: If the architecture is no classifier of images or texts, needs code of the folder, its weights are
            pickled, or image processor, tokenizer or padding token is missing.
        DataFileError: If files are damaged, or the weights lack a part of the model.
        MissingExtraError: If transformers is not installed.

    """
    if is_hub_name(str(folder)) and not Path(folder).is_dir():
        folder = cached_folder(str(folder), option=f"hf:{folder}", patterns=_DOWNLOADED)
    folder = Path(folder)
    settings = _settings(folder)
    architecture, kind = _architecture(settings, folder)
    files = _PROCESSORS if kind == "image" else TOKENIZER_FILES
    present = [name for name in files if (folder / name).is_file()]
    _require_inputs(folder, present, kind)
    _require_one_order(folder, settings)
    if kind == "image":
        require_installed("`hf:` models of images need", "PIL", extra="hf")
    for name in ("config.json", *_PROCESSORS, "tokenizer_config.json"):
        require_no_code(folder / name)
    if is_pretrained:
        _require_weights(folder)
    transformers = _transformers()
    built = getattr(transformers, architecture, None)
    if built is None:
        raise OptionError(
            f"{folder / 'config.json'}: transformers {transformers.__version__} has no {architecture}. Install the "
            f"version that the model was saved with ({settings.get('transformers_version', 'unknown')}), or a later "
            f"one.",
        )
    with quiet(), _told(folder), torch.random.fork_rng(devices=[]):
        config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
        if classes is not None:
            config.num_labels = classes
        if is_pretrained:
            model, found = built.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below, where transformers gives but a number of them
                **_LOCAL,
            )
            _require_shapes(folder, sorted(found["mismatched_keys"]))
            _require_whole(folder, sorted(found["missing_keys"]))
        else:
            model = built(config)
        model = model.float()
        if kind == "image":
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **_LOCAL)
            return model, TransformersImageTransform(processor, channels=getattr(config, "num_channels", 3))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
        return model, TokenizerTransform(
            tokenizer,
            limit=_limit(tokenizer, model),
            keywords=frozenset(inspect.signature(model.forward).parameters),
            digests={name: file_digest(folder / name) for name in present},
        )


def named_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names that a model of transformers has for them, as far as they are all of it.

    Files of `save_pretrained` have the names of older versions, which transformers translates when it loads them.

    Args:
        model: The model; it is not changed.
        weights: A state dict, by the names of either.

    Returns:
        The weights by the model's names; those given, where they are not exactly what the model needs.

    """
    own = model.state_dict()
    if weights.keys() == own.keys() or any(value.is_meta for value in own.values()):
        return dict(weights)
    kind: Any = type(model)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            made, found = kind.from_pretrained(
                None, config=model.config, state_dict=dict(weights), output_loading_info=True
            )
    except RuntimeError:  # of other shapes
        return dict(weights)
    if found["missing_keys"] or found["unexpected_keys"] or found["mismatched_keys"]:
        return dict(weights)
    loaded: dict[str, Tensor] = made.state_dict()
    return loaded


def _settings(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` says."""
    if not folder.is_dir():
        raise MissingFileError(
            f"`hf:NAME` must be a folder on this machine, and {folder} is none, or a model of the hub as in "
            f"`hf:org/name`. `model.save_pretrained(FOLDER)` writes a folder.",
        )
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"{folder} holds no config.json, so that it is no model of transformers: `model.save_pretrained(FOLDER)` "
            f"writes one.",
        )
    return _json(folder / "config.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataFileError(f"{path} is no readable JSON ({error}).") from error
    if not isinstance(found, dict):
        raise DataFileError(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found


def _architecture(settings: Mapping[str, Any], folder: Path) -> tuple[str, Literal["image", "text"]]:
    names = settings.get("architectures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    for name in names:
        for ending, kind in _KINDS.items():
            if name.endswith(ending) and name.isidentifier():
                return name, kind
    raise OptionError(
        f"{folder / 'config.json'} must name a classifier in `architectures`, one that ends in {', '.join(_KINDS)}, "
        f"got {', '.join(names) or 'none'}.",
    )


def require_no_code(path: Path) -> None:
    """Raise if a settings file asks for classes that are written in the folder or on the hub."""
    if path.is_file() and _json(path).get("auto_map"):
        raise OptionError(
            f"{path} asks for code that comes with the model (`auto_map`), which is never run here. If transformers "
            f"has the architecture itself, remove `auto_map` from the file; else make the model in a module of your "
            f"own, and give `module:callable`.",
        )


def _require_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise OptionError(
            f"{folder} holds an adapter to weights that are elsewhere (adapter_config.json): merge it into the model "
            f"with `merge_and_unload()`, and save that.",
        )
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.h5"), *folder.glob("*.msgpack")))
    if pickled:
        raise OptionError(
            f"{folder} holds its weights as {', '.join(pickled)} alone, which is not read: unpickling can run code. "
            f"Where you trust the file, `model.save_pretrained(FOLDER)` writes model.safetensors.",
        )
    raise MissingFileError(
        f"{folder} holds no model.safetensors: `model.save_pretrained(FOLDER)` writes it. Of a model of the hub whose "
        f"weights are pickled alone nothing else is downloaded."
    )


def _require_inputs(folder: Path, present: Sequence[str], kind: Literal["image", "text"]) -> None:
    """Raise if what makes the model's inputs is not there; transformers would make an empty tokenizer."""
    if kind == "image" and not present:
        raise OptionError(
            f"{folder} holds no {_PROCESSORS[0]}, which says how images become inputs of the model: "
            f"`processor.save_pretrained(FOLDER)` writes it.",
        )
    if kind == "text" and not set(present) & set(_TOKENIZERS):
        raise OptionError(
            f"{folder} holds no {_TOKENIZERS[0]}, nor {', '.join(_TOKENIZERS[1:])}: "
            f"`tokenizer.save_pretrained(FOLDER)` writes the tokenizer that the model was trained with.",
        )


def _require_one_order(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise if the two tables of class names in ``config.json`` contradict each other."""
    by_number, by_name = settings.get("id2label"), settings.get("label2id")
    if not isinstance(by_number, dict) or not isinstance(by_name, dict):
        return
    for number, name in by_number.items():
        other = by_name.get(name, number)
        if str(other) != str(number):
            raise DataFileError(
                f"{folder / 'config.json'} numbers its classes in two ways: {name!r} is {number} by `id2label` and "
                f"{other} by `label2id`. Mend the wrong one."
            )


def _require_whole(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise DataFileError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, which would be random: "
            f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}. Is it a model that was not "
            f"yet fine-tuned to classify?",
        )


def _require_shapes(folder: Path, other: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    if other:
        named = [f"{name} is {tuple(stored)} for {tuple(wanted)}" for name, stored, wanted in other[:_SHOWN]]
        raise DataFileError(
            f"config.json in {folder} says other sizes than its weights have, in {len(other)} tensors: "
            f"{', '.join(named)}{', ...' if len(other) > _SHOWN else ''}. Give config.json the sizes of the training.",
        )


def _limit(tokenizer: Any, model: nn.Module) -> int | None:  # noqa: ANN401  # as above
    """Return how many tokens of a text the model takes, or None where nothing says so."""
    config: Any = model.config
    said = [tokenizer.model_max_length, *(getattr(config, name, None) for name in ("max_position_embeddings", "n_ctx"))]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            # RoBERTa and its kin count positions from behind the padding index.
            said.append(layer.num_embeddings - (0 if layer.padding_idx is None else layer.padding_idx + 1))
    limits = [int(value) for value in said if isinstance(value, int) and 0 < value < _UNLIMITED]
    return min(limits, default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing bars and reports to the terminal, and set it back afterwards."""
    from transformers import utils

    logging: Any = utils.logging  # typed in parts only
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn what transformers says of a folder that it cannot read into one message."""
    try:
        yield
    except OpnpError:
        raise
    except Exception as error:
        raise DataFileError(
            f"transformers could not read {folder}: {type(error).__name__}: {str(error).strip()}",
        ) from error


def _transformers() -> Any:  # noqa: ANN401  # a module
    require_installed("`hf:` models need", "transformers", extra="hf")
    import transformers

    return transformers
