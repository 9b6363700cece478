"""Encoders with a head of their own beside them: class prototypes, classifiers of scikit-learn, sentence encoders.

An encoder and a head make one model by `torch.nn.Sequential(encoder, head)`; `sentence_model` makes it of a sentence
encoder, whose inputs are tokens.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_rows

from opnp.adapters.hub_cache import cached_folder, is_hub_name
from opnp.adapters.transformers_models import TOKENIZER_FILES, TokenizerTransform, quiet, require_no_code
from opnp.core.checks import checked_matrix, require_finite
from opnp.data import file_digest, read_head
from opnp.errors import DataFileError, InputTypeError, MissingFileError, OptionError, ShapeError, require_installed

__all__ = ["PrototypeHead", "SentenceClassifier", "linear_head", "sentence_model"]

_KIND = "sentence-transformers"
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model")
_IGNORED = ("onnx/*", "openvino/*")
_MODULES = "sentence_transformers."
"""What modules of a folder that are not code of its own are named."""


class PrototypeHead(nn.Module):
    """A head of one vector a class, such as the embeddings of class names in CLIP: scale times cosine.

    ``logits = scale * h / |h| @ (w / |w|).T``. Its layer `linear` is a plain head on the features h / |h|, which is
    where the library finds it.

    Args:
        weight: The vectors, shape ``(classes, features)``, floating.
        scale: Factor of the logits, above 0; that of CLIP is 100.
        normalize: Whether features and vectors are brought to length 1; False where the logits are
            ``scale * h @ w.T``.

    Attributes:
        linear: The layer without bias; its weight is `scale` times the vectors.

    Raises:
        ShapeError: If `weight` is no matrix.
        NonFiniteError: If it is not finite.
        OptionError: If `scale` is not above 0 or too large for the type of `weight`, or a vector that shall have length
            1 is zero.

    Example:
        >>> head = PrototypeHead(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), scale=10.0)
        >>> head(torch.tensor([[0.3, 0.4]])).tolist()
        [[6.0, 8.0]]

    """

    def __init__(self, weight: Tensor, *, scale: float = 100.0, normalize: bool = True) -> None:
        """Make the layer."""
        super().__init__()
        checked_matrix(weight, name="weight", axes="(classes, features)")
        require_finite(weight, name="weight")
        if not (math.isfinite(scale) and scale > 0):
            raise OptionError(f"`scale` must be above 0, got {scale}. That of CLIP is 100.")
        if normalize and not bool(weight.any(1).all()):
            raise OptionError("`weight` has a row of zeros, which has no direction: leave that class out.")
        self.normalize = normalize
        vectors = unit_rows(weight.detach(), dim=1) if normalize else weight.detach()
        scaled = scale * vectors
        if not bool(torch.isfinite(scaled).all()):
            raise OptionError(
                f"`scale` must leave the weight finite in {weight.dtype}, got {scale}. That of CLIP is 100."
            )
        self.linear = _linear(scaled, None)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``."""
        logits: Tensor = self.linear(unit_rows(features, dim=1) if self.normalize else features)
        return logits


def linear_head(classifier: object, *, dtype: torch.dtype = torch.float32) -> nn.Linear:
    """Return the layer that a linear classifier of scikit-learn is, for `torch.nn.Sequential(encoder, head)`.

    Args:
        classifier: One that was fitted, with `coef_`, `intercept_` and `classes_`: LogisticRegression, LinearSVC,
            SGDClassifier, RidgeClassifier and others. With two classes it has one row, whose value z stands for the
            logits -z/2 and z/2.
        dtype: Type of the layer; that of the encoder's features.

    Raises:
        InputTypeError: If it is no fitted linear classifier; the steps of a pipeline before it are part of the encoder.
        ShapeError: If its rows are not those of its classes, as in an SVC, which compares classes by pairs.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> classifier = LogisticRegression().fit([[0.0], [1.0], [2.0]], [0, 1, 2])
        >>> linear_head(classifier).weight.shape
        torch.Size([3, 1])

    """
    found: Any = classifier
    if not all(hasattr(found, name) for name in ("coef_", "intercept_", "classes_")):
        hint = (
            " Give its last step, and let the encoder do what the steps before it do."
            if hasattr(found, "steps")
            else ""
        )
        raise InputTypeError(
            f"`classifier` must be a fitted linear classifier with `coef_`, `intercept_` and `classes_`, got "
            f"{type(found).__name__}.{hint}"
        )
    coefficients = found.coef_.toarray() if hasattr(found.coef_, "toarray") else found.coef_  # after `sparsify()`
    weight, classes = torch.atleast_2d(torch.tensor(coefficients, dtype=dtype)), len(found.classes_)
    is_by_pairs = hasattr(found, "dual_coef_") and classes > 2
    if weight.ndim != 2 or len(weight) != (1 if classes == 2 else classes) or is_by_pairs:
        raise ShapeError(
            f"`classifier.coef_` must have one row a class, or one for two classes: that of {type(found).__name__} has "
            f"{len(weight)} for {classes} classes{', one a pair of them' if is_by_pairs else ''}."
        )
    bias = torch.tensor(found.intercept_, dtype=dtype).reshape(-1).expand(len(weight))
    return _linear(weight, bias.clone())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a layer that has this weight and bias, without gradients."""
    classes, width = weight.shape
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, width, classes, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


class SentenceClassifier(nn.Module):
    """A sentence encoder of sentence-transformers and a head on its embeddings.

    Args:
        encoder: A `SentenceTransformer`.
        head: The head, such as an `nn.Linear` or a `PrototypeHead`.

    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        """Keep both."""
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, **tokens: Tensor) -> Tensor:
        """Return the logits of tokens by the names of the tokenizer, shape ``(batch, classes)``."""
        made: Mapping[str, Tensor] = self.encoder(dict(tokens))
        width: int | None = getattr(self.encoder, "truncate_dim", None)  # `encode` cuts there as well
        logits: Tensor = self.head(made["sentence_embedding"][:, :width])
        return logits


def sentence_model(
    name: str | os.PathLike[str], head: nn.Module | str | os.PathLike[str] | None
) -> tuple[SentenceClassifier, TokenizerTransform]:
    """Return a sentence encoder with a head, in float32, and what makes its inputs.

    No code that comes with an encoder is downloaded or run, and its weights are safetensors.

    Args:
        name: A folder that `SentenceTransformer.save` wrote; or a name on the hub of Hugging Face, ``org/name`` or that
            of one of sentence-transformers' own, such as ``all-MiniLM-L6-v2``, whose files are downloaded unless they
            are in its cache.
        head: The head, a module or a file that `opnp.data.write_head` wrote.

    Raises:
        OptionError: If there is no head, or the encoder takes no plain texts.
        ShapeError: If the head takes other embeddings.
        MissingFileError: If there is no such folder or file, nor such an encoder in the cache or on the hub.
        DataFileError: If files are damaged.
        MissingExtraError: If sentence-transformers is not installed.

    """
    option = f"{_KIND}:{name}"
    if head is None:
        raise OptionError(
            f"`{option}` has no classes of its own: give its head as `--weights head.safetensors`, written by "
            f"`opnp.data.write_head(path, weight, bias=bias)`; in Python as `sentence_model(name, head)`."
        )
    require_installed(f"`{option}` needs", "sentence_transformers", extra="sentences")
    if not isinstance(head, nn.Module):
        stored = read_head(head)
        head = _linear(stored.weight, stored.bias)
    folder = _folder(str(name), option)
    encoder = _encoder(folder)
    model = SentenceClassifier(encoder, head).float()
    given, wanted = _width(encoder), getattr(head, "linear", head)
    if isinstance(wanted, nn.Linear) and given not in (None, wanted.in_features):
        raise ShapeError(f"The head takes {wanted.in_features} features, and `{option}` gives {given}.")
    present = sorted(path for path in folder.rglob("*") if path.name in TOKENIZER_FILES)
    return model, TokenizerTransform(
        encoder.tokenizer,
        limit=encoder.max_seq_length,
        digests={path.relative_to(folder).as_posix(): file_digest(path) for path in present},
    )


def _folder(name: str, option: str) -> Path:
    """Return the folder of an encoder, after what is missing in the cache of the hub was downloaded."""
    if Path(name).is_dir():
        return Path(name)
    text = name if "/" in name else f"{_KIND}/{name}"
    if not is_hub_name(text):
        raise MissingFileError(f"`{option}` must be a folder or a name on the hub, and {name} is neither.")
    return cached_folder(text, option=option, patterns=_DOWNLOADED, ignored=_IGNORED)


def _encoder(folder: Path) -> Any:  # noqa: ANN401  # a class of a package that may be missing
    """Return the encoder in a folder; refuse code of it, and one that changes texts before its tokenizer."""
    if not (folder / "modules.json").is_file():
        raise OptionError(
            f"{folder} holds no modules.json, so that it is no sentence encoder: `SentenceTransformer.save(FOLDER)` "
            f"writes one."
        )
    foreign = [kind for kind in _types(folder / "modules.json") if not kind.startswith(_MODULES)]
    if foreign:
        raise OptionError(f"{folder / 'modules.json'} asks for code that is never run here: {', '.join(foreign)}.")
    require_no_code(folder / "config.json")
    from sentence_transformers import SentenceTransformer

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            encoder = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:
        raise DataFileError(
            f"sentence-transformers could not read {folder}: {type(error).__name__}: {' '.join(str(error).split())}",
        ) from error
    prompt = (encoder.prompts or {}).get(encoder.default_prompt_name or "", "")
    reasons = {
        f"puts {prompt!r} before every text": bool(prompt),
        "changes texts to lower case by itself": bool(getattr(encoder[0], "do_lower_case", False)),
        "has no tokenizer of transformers": not hasattr(encoder.tokenizer, "pad"),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise OptionError(
                f"The encoder in {folder} {reason}: encode the texts yourself, and give the embeddings to "
                f"`fit_features` and the other `*_features` methods."
            )
    return encoder


def _width(encoder: Any) -> int | None:  # noqa: ANN401  # as above
    """Return the number of features, by either name of the method, or None where the encoder does not know it."""
    ask = getattr(encoder, "get_embedding_dimension", None) or encoder.get_sentence_embedding_dimension
    width: int | None = ask()
    return width


def _types(path: Path) -> list[str]:
    """Return the classes that the modules of an encoder are of."""
    try:
        return [str(module["type"]) for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, OSError, TypeError, KeyError) as error:
        raise DataFileError(f"{path} is no readable list of modules ({type(error).__name__}: {error}).") from error
