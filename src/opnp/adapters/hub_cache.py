"""Names of models on the hub of Hugging Face, their files in its cache on this machine, and why they cannot be had."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from urllib.error import HTTPError, URLError

from opnp.errors import MissingFileError, require_installed

__all__ = ["cached_folder", "did_you_mean", "failure_text", "is_hub_name"]

_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled")
_UNKNOWN = ("RepositoryNotFoundError", "GatedRepoError")
"""Errors of huggingface_hub, by name: it is imported only where a name asks for it."""
_MOST = 200


def is_hub_name(text: str) -> bool:
    """Return whether a text can be the name of a model on the hub: ``org/name``, or ``org/name@revision``.

    A folder can have such a name too, and goes before.

    Example:
        >>> [is_hub_name(text) for text in ("org/name", "org/name@v1.0", "name", "./org/name", "/org/name", "a/b/c")]
        [True, True, False, False, False, False]

    """
    return _HUB_NAME.fullmatch(text) is not None


def cached_folder(text: str, *, option: str, patterns: Sequence[str], ignored: Sequence[str] = ()) -> Path:
    """Return the folder of a model of the hub in its cache, after what is missing there was downloaded.

    Args:
        text: ``org/name`` or ``org/name@revision``.
        option: What was asked for, as it was written, for messages.
        patterns: Files to download, and no other. None of them may be code, or be read by unpickling.
        ignored: Files of these to leave out.

    Raises:
        MissingFileError: If there is no such model, or it is not in the cache and the hub cannot be reached.
        MissingExtraError: If huggingface_hub is not installed.

    """
    require_installed(f"`{option}` needs", "huggingface_hub", extra="hf")
    from huggingface_hub import snapshot_download

    found = _HUB_NAME.fullmatch(text)
    if found is None:
        raise MissingFileError(f"`{option}`: {text} is no folder on this machine, nor a name such as org/name.")
    try:
        folder = snapshot_download(
            found["name"],
            revision=found["revision"],
            allow_patterns=list(patterns),
            ignore_patterns=list(ignored) or None,
        )
    except Exception as error:
        raise MissingFileError(
            f"`{option}` is no folder on this machine, and no model of the hub that can be had: {failure_text(error)}.",
        ) from error
    return Path(folder)


def failure_text(error: BaseException) -> str:
    """Return in one clause why a hub did not give what it was asked for.

    Example:
        >>> print(failure_text(URLError("timed out")))
        it is not in the cache on this machine, and the network cannot be reached
        >>> print(failure_text(ValueError("no such tag.")))
        ValueError: no such tag

    """
    kind = type(error).__name__
    if kind in _UNREACHED or (isinstance(error, URLError) and not isinstance(error, HTTPError)):
        return "it is not in the cache on this machine, and the network cannot be reached"
    if kind == "RevisionNotFoundError":
        return "it has no branch, tag or commit of this name"
    if kind in _UNKNOWN:
        return f"there is none of this name that everybody may read ({kind}); `hf auth login` opens those that you may"
    text = " ".join(str(error).split())
    return f"{kind}: {text[:_MOST]}{'...' if len(text) > _MOST else ''}".rstrip(" .:")


def did_you_mean(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    """Return a question, with a space before, that lists names which a misspelt one is close to; "" if there are none.

    Example:
        >>> did_you_mean("resnet5O", ["resnet18", "resnet50", "vit"], prefix="timm:")
        ' Did you mean `timm:resnet50` or `timm:resnet18`?'
        >>> did_you_mean("x", ["resnet18"])
        ''

    """
    close = get_close_matches(name, known, n=4)
    return f" Did you mean {' or '.join(f'`{prefix}{each}`' for each in close)}?" if close else ""
