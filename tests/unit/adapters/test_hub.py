"""Detectors on the Hugging Face Hub, against a stand-in of it on this machine."""

from collections.abc import Iterator
from copy import copy
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from opnp import OPNP
from opnp.adapters.hub import from_pretrained, push_to_hub
from opnp.errors import (
    ArtifactError,
    HeadMismatchError,
    MissingExtraError,
    MissingFileError,
    NotFittedError,
    OptionError,
)
from opnp.values.origin import ModelOrigin
from tests.unit.adapters.hub_server import Hub, hub_server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    other_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.chdir(tmp_path)
    with hub_server(monkeypatch) as server:
        yield server


def other_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))


@pytest.fixture(scope="module")
def head() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(8, 3)


@pytest.fixture(scope="module")
def detector(head: nn.Linear) -> OPNP:
    rows = torch.rand(300, 8, generator=torch.Generator().manual_seed(0))
    return OPNP().fit_features(rows[:200], weight=head.weight, bias=head.bias, validation=rows[200:])


def test_what_is_pushed_is_had_elsewhere_and_then_without_network(
    hub: Hub, detector: OPNP, head: nn.Linear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = push_to_hub(detector, "org/judge", token="hf_me")  # noqa: S106  # of the stand-in
    assert hub.tokens == {"Bearer hf_me"}
    assert address.startswith(f"{hub.endpoint}/org/judge/commit/")
    assert sorted(hub.repos["org/judge"]) == ["README.md", "detector.safetensors"]
    card = hub.repos["org/judge"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: opnp\n")
    assert card.endswith(detector.model_card())
    other_cache(tmp_path / "elsewhere", monkeypatch)
    hub.repos["org/judge"]["pytorch_model.bin"] = b"never read"
    hub.asked.clear()
    loaded = from_pretrained("org/judge", model=head)
    assert {each.rpartition("/")[2] for each in hub.asked} == {"detector.safetensors"}
    rows = torch.rand(5, 8)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub.asked.clear()
    for each in (loaded, from_pretrained("org/judge"), from_pretrained("org/judge@main")):
        assert each.head_digest == detector.head_digest
        assert torch.equal(each.p_value_features(rows), detector.p_value_features(rows))
    assert torch.equal(loaded.score(rows), detector.score_features(rows))
    assert hub.asked == []


def test_the_same_bytes_come_back(hub: Hub, detector: OPNP, tmp_path: Path) -> None:
    detector.save(tmp_path / "detector.safetensors")
    push_to_hub(detector, "judge")
    assert hub.repos["me/judge"]["detector.safetensors"] == (tmp_path / "detector.safetensors").read_bytes()


def test_a_readme_that_no_detector_brought_stays(hub: Hub, detector: OPNP, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreached(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("a pause of the network")

    hub.repos["org/model"] = {"README.md": b"# Mine", "model.safetensors": b""}
    with pytest.raises(OptionError, match=r"org/model has a `README.md` of its own.*`keep_readme=True`"):
        push_to_hub(detector, "org/model")
    assert sorted(hub.repos["org/model"]) == ["README.md", "model.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.HfApi, "hf_hub_download", unreached)
        with pytest.raises(OptionError, match=r"could not be written to 'org/model': .* network cannot be reached"):
            push_to_hub(detector, "org/model")
    assert sorted(hub.repos["org/model"]) == ["README.md", "model.safetensors"]
    push_to_hub(detector, "org/model", keep_readme=True)
    assert hub.repos["org/model"]["README.md"] == b"# Mine"
    for _ in range(2):  # the card of the first is replaced
        push_to_hub(detector, "org/judge")
    card = hub.repos["org/judge"].pop("README.md")
    assert card.decode().endswith(detector.model_card())
    for edited in (card + b"\nedited\n", card.replace(b"tags:", b"license: mit\ntags:")):
        hub.repos["org/judge"]["README.md"] = edited
        with pytest.raises(OptionError, match="or a card that was edited"):
            push_to_hub(detector, "org/judge")
        assert hub.repos["org/judge"]["README.md"] == edited


@pytest.mark.parametrize(
    ("model", "bare"),
    [
        ("hf:./../alice/vit", "hf:vit"),
        ("sentence-transformers:../alice/mini", "sentence-transformers:./mini"),
        ("hf:org/name", "hf:org/name"),
        ("hf:.", "hf:."),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_no_folders_of_this_machine_are_published(hub: Hub, detector: OPNP, model: str, bare: str) -> None:
    origin = ModelOrigin(model, "../../alice/net.safetensors", "0" * 64, "image", {})
    push_to_hub(copy(detector).remember(origin), "org/judge")
    assert b"alice" not in b"".join(hub.repos["org/judge"].values())
    assert from_pretrained("org/judge").origin == replace(origin, model=bare, weights="net.safetensors")


def test_what_cannot_be_had_is_told_in_a_sentence(
    hub: Hub, head: nn.Linear, detector: OPNP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["org/model"] = {f"{name}.json": b"{}" for name in "abcdefghij"}
    hub.repos["org/broken"] = {"detector.safetensors": b"no tensors"}
    push_to_hub(detector, "org/judge")
    cases = {
        "org/model": r"org/model on the hub holds no `detector\.safetensors`, but a\.json, .*h\.json and 2 more\.",
        "org/absent": r"org/absent is no folder .*: there is none of this name that everybody may read",
        "org/judge@v9": r"org/judge@v9 is no folder .*: it has no branch, tag or commit of this name\.",
        "judge": r"judge is no folder on this machine, nor the name of a repository such as org/name",
    }
    for name, text in cases.items():
        with pytest.raises(MissingFileError, match=text) as caught:
            from_pretrained(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(MissingFileError, match="is no folder on this machine"):
        from_pretrained("")
    with pytest.raises(OptionError, match="`revision` is one of a repository"):
        from_pretrained(tmp_path, revision="v1")
    with pytest.raises(OptionError, match="`revision` is 'v2', and org/judge@v1 names one, too"):
        from_pretrained("org/judge@v1", revision="v2")
    with pytest.raises(ArtifactError):
        from_pretrained("org/broken")
    with pytest.raises(HeadMismatchError):
        from_pretrained("org/judge", model=nn.Linear(8, 3, bias=False))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingFileError, match="not in the cache on this machine, and the network cannot be reached"):
        from_pretrained("org/absent")
    monkeypatch.setattr("opnp.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"huggingface-hub, not installed here: `pip install 'opnp\[hf\]'`"):
        from_pretrained("org/judge")


def test_a_folder_goes_before_the_hub(hub: Hub, detector: OPNP) -> None:
    Path("org/judge").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"org/judge holds no `detector\.safetensors`, but nothing\."):
        from_pretrained("org/judge")
    detector.save("org/judge/detector.safetensors")
    assert from_pretrained("org/judge").head_digest == detector.head_digest
    assert hub.asked == []


def test_what_cannot_be_written_is_told_in_a_sentence(
    hub: Hub, detector: OPNP, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFittedError):
        push_to_hub(OPNP(), "org/judge")
    assert hub.asked == []
    with pytest.raises(OptionError, match=r"written to 'closed/judge': the hub answers 403, .*`hf auth login`"):
        push_to_hub(detector, "closed/judge")
    with pytest.raises(OptionError, match="written to 'a/b/c': HFValidationError"):
        push_to_hub(detector, "a/b/c")
    for name, value in (("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
        with pytest.raises(OptionError, match="written to 'org/judge': the hub cannot be reached from here"):
            push_to_hub(detector, "org/judge")
