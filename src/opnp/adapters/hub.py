"""A detector in a repository of the Hugging Face Hub: its safetensors file and its card, and nothing else of it read.

Nothing of huggingface_hub is imported until a function here is called: ``from opnp.adapters.hub import push_to_hub``.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from torch import nn

from opnp.adapters.hub_cache import failure_text, is_hub_name
from opnp.adapters.origin import origin_without_folders
from opnp.detector import OPNP
from opnp.errors import MissingFileError, OptionError, require_installed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["from_pretrained", "push_to_hub"]

_FILE, _CARD = "detector.safetensors", "README.md"
_FRONT = "---\nlibrary_name: opnp\ntags:\n- out-of-distribution-detection\n"
"""What the hub reads of a card."""
_DIGEST = re.compile(rb"^opnp_card_sha256: ([0-9a-f]{64})\n", flags=re.MULTILINE)
"""The last line of it: the digest of all other lines of the card, by which a change of anyone's is seen."""

_REFUSED = (401, 403)
_UNREACHED = {"ConnectionError", "TransportError", "Timeout"}
"""Errors of Python and of the packages that huggingface_hub connects by, by name."""

_MOST = 8


def push_to_hub(
    detector: OPNP,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Detector",
    keep_readme: bool = False,
) -> str:
    """Write a detector and its card into a repository of the hub, and return the address of the commit.

    The repository is made where there is none. It may be that of the model: `detector.safetensors` lies beside what is
    there. With the detector go the head of the model and sums of the training features; no data, and of a file of
    weights or a folder of the model its name alone: both are looked for beside the detector.

    Args:
        detector: A fitted detector.
        repo: ``org/name``, or ``name`` below your own account.
        private: Whether a repository that is made is private; None for what the account has set.
        token: A token that may write; None for that of `hf auth login`.
        revision: Branch to write to, which must exist; None for ``main``.
        message: First line of the commit.
        keep_readme: Whether the `README.md` of the repository stays; else the card of the detector becomes it. One that
            is not a card as opnp wrote it is never replaced.

    Raises:
        NotFittedError: If nothing was fitted.
        OptionError: If the repository has a `README.md` of its own or an edited card, may not be written to, or the hub
            is not reached.
        MissingExtraError: If huggingface_hub is not installed.

    """
    api = _api(token)
    from huggingface_hub import CommitOperationAdd

    with TemporaryDirectory() as folder:
        file = Path(folder) / _FILE
        detector.save(file)
        if detector.origin is not None:
            OPNP.load(file).remember(origin_without_folders(detector.origin)).save(file)
        operations = [CommitOperationAdd(_FILE, str(file))]
        if not keep_readme:
            inputs = None if detector.origin is None else detector.origin.inputs
            operations.append(CommitOperationAdd(_CARD, _signed(detector.model_card(inputs=inputs))))
        try:
            name = api.create_repo(repo, private=private, exist_ok=True).repo_id
            if not keep_readme:
                _require_own_readme(api, name, revision)
            commit = api.create_commit(name, operations, commit_message=message, revision=revision)
        except OptionError:
            raise
        except Exception as error:
            raise OptionError(f"The detector could not be written to {repo!r}: {_refusal(error)}.") from error
    return str(commit.commit_url)


def from_pretrained(
    repo_or_folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> OPNP:
    """Return the detector of a repository of the hub, or of a folder with the same file.

    Only `detector.safetensors` is read and, unless the cache of the hub has it, downloaded.

    Args:
        repo_or_folder: A folder on this machine, which goes before; or ``org/name`` or ``org/name@revision``.
        model: The model that the detector was fitted on, to score inputs; without it, features can be scored.
        revision: Branch, tag or commit; None for ``main``.
        token: A token that may read; None for that of `hf auth login`.

    Raises:
        OptionError: If a folder is given a revision, or a repository two.
        MissingFileError: If there is no such folder or repository, it holds no detector, or the hub is not reached and
            the cache does not have it.
        ArtifactError: If the file is no detector, or is damaged.
        HeadMismatchError: If no layer of `model` is the head that the detector was fitted on.
        MissingExtraError: If huggingface_hub is not installed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> detector = OPNP().fit_features(torch.rand(200, 8), weight=torch.randn(3, 8), bias=None)
        >>> with TemporaryDirectory() as folder:
        ...     detector.save(f"{folder}/detector.safetensors")
        ...     from_pretrained(folder).head_digest == detector.head_digest
        True

    """
    folder, text = Path(repo_or_folder), os.fspath(repo_or_folder)
    if text and folder.is_dir():
        if revision is not None:
            raise OptionError(f"`revision` is one of a repository of the hub, and {text} is a folder: leave it out.")
        if not (folder / _FILE).is_file():
            raise MissingFileError(f"{text} holds no `{_FILE}`, but {_listed(each.name for each in folder.iterdir())}.")
        return OPNP.load(folder / _FILE, model)
    if not is_hub_name(text):
        raise MissingFileError(f"{text} is no folder on this machine, nor the name of a repository such as org/name.")
    name, _, named = text.partition("@")
    if named and revision is not None:
        raise OptionError(f"`revision` is {revision!r}, and {text} names one, too: give one of them.")
    return OPNP.load(_downloaded(_api(token), name, revision or named or None), model)


def _downloaded(api: "HfApi", name: str, revision: str | None) -> str:
    """Return the place of the detector in the cache of the hub."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        try:
            return str(api.hf_hub_download(name, _FILE, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            files = api.list_repo_files(name, revision=revision)
            raise MissingFileError(f"{name} on the hub holds no `{_FILE}`, but {_listed(files)}.") from error
    except MissingFileError:
        raise
    except Exception as error:
        asked = name if revision is None else f"{name}@{revision}"
        raise MissingFileError(
            f"{asked} is no folder on this machine, and no repository of the hub that can be had: "
            f"{failure_text(error)}."
        ) from error


def _signed(card: str) -> bytes:
    """Return a card as the hub takes it, with the digest that `_require_own_readme` looks for."""
    front, rest = _FRONT.encode(), f"---\n\n{card}".encode()
    return front + f"opnp_card_sha256: {hashlib.sha256(front + rest).hexdigest()}\n".encode() + rest


def _require_own_readme(api: "HfApi", name: str, revision: str | None) -> None:
    """Raise if a repository has a README.md that no detector brought, or that was edited since."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        present = Path(api.hf_hub_download(name, _CARD, revision=revision)).read_bytes()
    except LocalEntryNotFoundError:  # whether there is one is not known
        raise
    except EntryNotFoundError:
        return
    found = _DIGEST.search(present)
    if found is None or found[1].decode() != hashlib.sha256(_DIGEST.sub(b"", present, count=1)).hexdigest():
        raise OptionError(
            f"{name} has a `{_CARD}` of its own, or a card that was edited, which the card of the detector would "
            f"replace: give `keep_readme=True` or another repository, or delete it there first."
        )


def _refusal(error: Exception) -> str:
    """Return in one clause why nothing was written."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REFUSED:
        return (
            f"the hub answers {status}, that this token may not write there. Log in by `hf auth login` with a token "
            f"that may, or give `token`"
        )
    if _UNREACHED & {base.__name__ for base in type(error).__mro__}:
        return "the hub cannot be reached from here"
    return failure_text(error)


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{', '.join(found[:_MOST])}{more}" if found else "nothing"


def _api(token: str | None) -> "HfApi":
    require_installed("`opnp.adapters.hub` needs", "huggingface_hub", extra="hf")
    from huggingface_hub import HfApi

    return HfApi(token=token)
