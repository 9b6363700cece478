"""Models of hubs out of their caches, without network: what is found, and what is said where nothing is."""

import socket
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from opnp.adapters import hub_cache, model_from_name, model_origin, stored_model
from opnp.errors import MissingExtraError, MissingFileError, OptionError
from tests.unit.adapters.hub_caches import TORCHVISION, cached, offline_cache, write_timm, write_torchvision
from tests.unit.adapters.hub_folders import write_vit

UNREACHED = r"not in the cache on this machine, and the network cannot be reached"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def connect(*_: object) -> None:
        pytest.fail("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", connect)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return offline_cache(tmp_path / "cache", monkeypatch)


def same(model: nn.Module, stored: dict[str, torch.Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == stored.keys() and all(torch.equal(value, stored[name]) for name, value in state.items())


def test_default_stands_for_the_weights_of_the_hub(cache: Path) -> None:
    stored = load_file(cached(cache, "org/tiny", write_timm(cache.parent / "timm")) / "model.safetensors")
    for weights in (None, "DEFAULT", Path("DEFAULT")):
        assert same(model_from_name("timm:hf-hub:org/tiny", weights=weights)[0], stored)
    write_torchvision(cache)
    named, known = model_from_name(f"torchvision:{TORCHVISION}@IMAGENET1K_V1")
    default, same_inputs = model_from_name(f"torchvision:{TORCHVISION}", weights="DEFAULT")
    assert same(default, named.state_dict())
    assert known == same_inputs
    with pytest.raises(
        OptionError, match=r"DEFAULT stands for the pretrained weights of a hub, and 'torch\.nn:Linear'"
    ):
        model_from_name("torch.nn:Linear", weights="DEFAULT")


def test_the_inputs_are_those_of_the_named_weights() -> None:
    from opnp.adapters import torchvision_model

    resizes = [torchvision_model(f"resnet50{each}", is_pretrained=False)[1].resize for each in ("", "@IMAGENET1K_V1")]
    assert resizes == [232, 256]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("timm:resnet10t", OptionError),
        ("timm:hf-hub:org/absent", OptionError),
        ("hf:org/absent", MissingFileError),
        ("hf:org/absent@v2", MissingFileError),
    ],
)
def test_without_network_one_sentence_says_so(name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=UNREACHED) as caught:
        model_from_name(name)
    assert name.rpartition(":")[2] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_weights_of_torchvision_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    with pytest.raises(OptionError, match=rf"{UNREACHED}\).*--weights FILE"):
        model_from_name(f"torchvision:{TORCHVISION}@IMAGENET1K_V1")


def test_only_files_that_are_no_code_are_asked_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []
    folder = write_vit(cache.parent / "vit")

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model_from_name("hf:org/vit@v1.2")
    (call,) = asked
    assert (call["name"], call["revision"]) == ("org/vit", "v1.2")
    files = ["modeling.py", "pytorch_model.bin", "model.h5", "onnx/model.onnx", "config.json", "model.safetensors"]
    files += ["model-00001-of-00002.safetensors", "tokenizer.json", "preprocessor_config.json"]
    wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in call["allow_patterns"])]
    assert wanted == files[4:]


def test_a_model_of_pickled_weights_alone_is_refused(cache: Path) -> None:
    folder = cached(cache, "org/vit", write_vit(cache.parent / "vit"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"no model\.safetensors.*weights are pickled alone nothing else"):
        model_from_name("hf:org/vit")


def test_what_the_hub_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refused(*_: object, **__: object) -> None:
        raise type("RepositoryNotFoundError", (OSError,), {})("404\n\nmany\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(MissingFileError, match=r"`hf:org/x` is no folder .* none of this name that everybody may read"):
        model_from_name("hf:org/x")
    monkeypatch.setattr("opnp.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"huggingface-hub, not installed here: `pip install 'opnp\[hf\]'`"):
        hub_cache.cached_folder("org/x", option="hf:org/x", patterns=["*.json"])
    with pytest.raises(MissingExtraError):
        model_from_name("hf:org/x")


def test_a_folder_goes_before_the_hub(cache: Path) -> None:
    cached(cache, "org/vit", write_vit(cache.parent / "vit"))
    stored = load_file(write_vit(Path("org/vit"), seed=1) / "model.safetensors")
    model, _ = model_from_name("hf:org/vit")
    assert torch.equal(model.state_dict()["classifier.weight"], stored["classifier.weight"])


@pytest.mark.parametrize(
    ("name", "folders", "remembered"),
    [
        ("hf:org/vit", [], "hf:org/vit"),
        ("hf:org/vit@v1", [], "hf:org/vit@v1"),
        ("timm:hf-hub:org/tiny", [], "timm:hf-hub:org/tiny"),
        ("hf:org/vit", ["org/vit"], "hf:./org/vit"),
        ("hf:vit", ["vit"], "hf:vit"),
        ("hf:../vit", ["../vit"], "hf:../vit"),
        ("sentence-transformers:tiny", [], "sentence-transformers:tiny"),
        ("sentence-transformers:tiny", ["tiny"], "sentence-transformers:./tiny"),
    ],
)
def test_names_of_hubs_are_remembered_as_they_are_and_folders_from_the_detector(
    cache: Path, name: str, folders: list[str], remembered: str
) -> None:
    for each in folders:
        Path(each).mkdir(parents=True)
    _, transform = model_from_name(f"hf:{write_vit(cache.parent / 'any')}")
    assert transform is not None
    origin = model_origin(
        nn.Linear(2, 2), transform, name=name, weights=None, detector=Path("d.safetensors"), classes=2
    )
    assert origin.model == remembered
    kind, _, place = remembered.partition(":")
    found = stored_model(origin, Path("d.safetensors"))
    assert found == (f"{kind}:{Path.cwd() / place}" if folders else name)
    for each in folders:
        Path(each).rmdir()
        with pytest.raises(MissingFileError, match=rf"with {place}, which is neither there.*--model {kind}:FOL"):
            stored_model(origin, Path("d.safetensors"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("tim:resnet18", "`timm`"),
        ("mynet.py:net", "`mynet:net`"),
        ("nets/mynet.py:net", "`nets.mynet:net`"),
        ("torch.nn:Identiti", "`torch.nn:Identity`"),
        ("timm:resnet5O", "`timm:resnet50`"),
        ("torchvision:resnet5O", "`torchvision:resnet50`"),
    ],
)
def test_misspelt_names_are_asked_about(name: str, meant: str) -> None:
    with pytest.raises(OptionError, match=rf"Did you mean .*{meant}"):
        model_from_name(name)
