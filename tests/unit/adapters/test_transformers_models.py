"""Folders of transformers: read as they are, without a download, without their code."""

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from opnp.adapters import (
    TokenizerTransform,
    TransformersImageTransform,
    named_weights,
    transformers_model,
    transformers_models,
)
from opnp.data import Transform, channel_std
from opnp.errors import DataFileError, MissingExtraError, MissingFileError, OptionError
from opnp.model import find_head
from tests.unit.adapters.hub_folders import IMAGE_CLASSES, TEXT_CLASSES, TEXT_LIMIT, change_json, write_bert, write_vit
from tests.unit.data.image_files import pixels

_TRANSFORMERS: Any = transformers  # typed in parts only
_PROCESSOR, _CODE = "preprocessor_config.json", {"AutoModel": "evil.Evil"}
_NARROW = {"classifier.weight": torch.ones(2, 2)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub")
    write_vit(place / "vit")
    write_bert(place / "bert")
    return place


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to reach the network fail the test."""

    def connect(*_: object) -> None:
        pytest.fail("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folders / name, tmp_path / name))


def test_images_become_what_the_processor_makes_and_logits_what_the_model_gives(folders: Path) -> None:
    before = torch.random.get_rng_state()
    model, transform = transformers_model(folders / "vit")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(transform, TransformersImageTransform)
    assert isinstance(transform, Transform)
    assert transform.kind == "image"
    pictures = [Image.fromarray(pixels(1, seed=width, height=20, width=width)[0].numpy()) for width in (20, 31)]
    pictures.append(pictures[0].convert("L"))
    inputs = transform.batch([transform(picture) for picture in pictures])
    processor = _TRANSFORMERS.ViTImageProcessor.from_pretrained(folders / "vit")
    expected = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs, expected)
    own = _TRANSFORMERS.ViTForImageClassification.from_pretrained(folders / "vit")
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(inputs).logits, own.eval()(expected).logits)
    assert find_head(model, inputs).weight.shape == (IMAGE_CLASSES, 16)
    assert channel_std(transform) == (0.5, 0.5, 0.5)


def test_texts_are_cut_padded_and_masked(folders: Path) -> None:
    model, transform = transformers_model(folders / "bert")
    assert isinstance(transform, TokenizerTransform)
    assert isinstance(transform, Transform)
    assert transform.kind == "text"
    assert transform.limit == TEXT_LIMIT
    texts = ["good film", "this film is very " * 10, "not bad"]
    items = [transform(text) for text in texts]
    assert [len(item["input_ids"]) for item in items] == [4, TEXT_LIMIT, 4]
    inputs = transform.batch(items)
    assert inputs["attention_mask"].sum(1).tolist() == [4, TEXT_LIMIT, 4]
    assert find_head(model, inputs).weight.shape == (TEXT_CLASSES, 16)
    with torch.no_grad():
        together = model.eval()(**inputs).logits
        alone = torch.cat([model(**transform.batch([item])).logits for item in items])
    torch.testing.assert_close(together, alone)


def test_positions_behind_the_padding_index_are_not_counted() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = _TRANSFORMERS.RobertaConfig(**sizes, intermediate_size=8, max_position_embeddings=14)
    model = _TRANSFORMERS.RobertaForSequenceClassification(config)
    for said, limit in ((10**30, 12), (7, 7)):
        tokenizer = type("Tokenizer", (), {"model_max_length": said})()
        assert transformers_models._limit(tokenizer, model) == limit
    model(torch.full((1, 12), 5))
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        model(torch.full((1, 13), 5))
    bare = type("Bare", (nn.Module,), {"config": object()})()
    assert transformers_models._limit(type("Tokenizer", (), {"model_max_length": 10**30})(), bare) is None


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_facts_are_json_and_follow_the_files(folders: Path, copied: Callable[[str], Path], name: str) -> None:
    facts = transformers_model(folders / name)[1].facts()
    assert json.loads(json.dumps(facts)) == facts
    folder = copied(name)
    assert transformers_model(folder)[1].facts() == facts
    if name == "vit":
        change_json(folder / "preprocessor_config.json", image_std=[0.25, 0.5, 0.5])
    else:
        change_json(folder / "tokenizer_config.json", do_lower_case=False)
    assert transformers_model(folder)[1].facts() != facts


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_transforms_go_to_worker_processes(folders: Path, name: str) -> None:
    _, transform = transformers_model(folders / name)
    sample: Any = Image.new("RGB", (9, 9)) if name == "vit" else "good"
    again = pickle.loads(pickle.dumps(transform))  # noqa: S301  # what a worker process is given
    torch.testing.assert_close(again(sample), transform(sample))


def test_half_precision_becomes_single(folders: Path, copied: Callable[[str], Path]) -> None:
    folder = copied("vit")
    weights = {name: value.to(torch.bfloat16) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", dtype="bfloat16")
    model, whole = transformers_model(folder)[0].state_dict(), transformers_model(folders / "vit")[0].state_dict()
    assert {value.dtype for value in model.values()} == {torch.float32}
    assert all(torch.equal(value, whole[name].bfloat16().float()) for name, value in model.items())


def test_weights_of_either_naming_get_the_models_names(folders: Path, tmp_path: Path) -> None:
    model, _ = transformers_model(folders / "vit", is_pretrained=False)
    other, _ = transformers_model(write_vit(tmp_path / "other", seed=1))
    stored, state = load_file(tmp_path / "other" / "model.safetensors"), other.state_dict()
    if stored.keys() == state.keys():
        pytest.skip("transformers 4 stores weights under the model's own names")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for weights in (stored, state):
        named = named_weights(model, weights)
        assert named.keys() == state.keys()
        assert all(torch.equal(named[name], state[name]) for name in state)
    for spoilt in ({"classifier.weight": torch.ones(1)}, {"foo": torch.ones(2), **stored}, stored | _NARROW):
        assert named_weights(model, spoilt).keys() == spoilt.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_classes_need_no_weights_in_the_folder(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    (folder / "model.safetensors").unlink()
    model, _ = transformers_model(folder, classes=7, is_pretrained=False)
    assert model.get_submodule("classifier").out_features == 7


def test_settings_of_the_terminal_come_back(folders: Path) -> None:
    logging = _TRANSFORMERS.utils.logging
    for is_shown in (True, False):
        (logging.enable_progress_bar if is_shown else logging.disable_progress_bar)()
        level = logging.get_verbosity()
        transformers_model(folders / "vit")
        assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == (is_shown, level)
    logging.enable_progress_bar()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _headless(folder: Path) -> None:
    weights = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "classifier" not in name}
    save_file(kept, weights, metadata={"format": "pt"})


def _changed(file: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / file, **changes)


def _architecture(name: str) -> Callable[[Path], None]:
    return _changed("config.json", architectures=[name])


def _removed(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _written(file: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_text(text, encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (shutil.rmtree, MissingFileError, r"vit is none\. Nothing is downloaded: `hf download"),
        (_removed("config.json"), MissingFileError, r"vit holds no config\.json"),
        (_written("config.json", "{"), DataFileError, r"config\.json is no readable JSON"),
        (_written("config.json", "[]"), DataFileError, r"config\.json must hold a JSON object, got list"),
        (_architecture("ViTModel"), OptionError, r"must name a classifier .*ForSequenceClassification, got ViTModel"),
        (_changed("config.json", architectures=None), OptionError, r"must name a classifier .*, got none"),
        (_architecture("NovelForImageClassification"), OptionError, r"has no NovelForIm.* Install the version .*\("),
        (_changed("config.json", auto_map=_CODE), OptionError, r"config\.json asks for code .*`auto_map`.*never run"),
        (_changed(_PROCESSOR, auto_map=_CODE), OptionError, r"preprocessor_config\.json asks for code"),
        (_pickled, OptionError, r"weights as pytorch_model\.bin alone.*model\.safetensors"),
        (_removed("model.safetensors"), MissingFileError, r"holds no model\.safetensors"),
        (_written("adapter_config.json", "{}"), OptionError, r"adapter_config\.json.*merge_and_unload"),
        (_written("model.safetensors", "x" * 100), DataFileError, r"could not read .*vit: SafetensorError"),
        (_headless, DataFileError, r"lack 2 tensors .*classifier\.bias, classifier\.weight\. .*fine-tuned"),
        (_removed(_PROCESSOR), OptionError, r"vit holds no preprocessor_config\.json"),
        (_changed(_PROCESSOR, image_processor_type="NoSuch"), DataFileError, r"transformers could not read .*vit: "),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(
    copied: Callable[[str], Path], spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    folder = copied("vit")
    spoil(folder)
    with pytest.raises(error, match=message):
        transformers_model(folder)


def test_sizes_that_differ_are_named_with_their_tensors(copied: Callable[[str], Path]) -> None:
    folder = copied("vit")
    change_json(folder / "config.json", hidden_size=24)
    message = (
        r"vit says other sizes than its weights have, in \d\d tensors: "
        r"classifier\.weight is \(4, 16\) for \(4, 24\), .*, \.\.\.\. Give config\.json"
    )
    with pytest.raises(DataFileError, match=message) as caught:
        transformers_model(folder)
    assert "ignore_mismatched_sizes" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "name", "message"),
    [
        ("PIL", "vit", r"images need Pillow.*pip install 'opnp\[hf\]'"),
        ("PIL", "bert", ""),
        ("transformers", "vit", r"need transformers.*pip install 'opnp\[hf\]'"),
    ],
)
def test_the_extra_is_named_where_it_is_needed(
    folders: Path, monkeypatch: pytest.MonkeyPatch, missing: str, name: str, message: str
) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None if name == missing else find_spec(name))
    if not message:
        assert transformers_model(folders / name)[1].kind == "text"
        return
    with pytest.raises(MissingExtraError, match=message):
        transformers_model(folders / name)


def test_a_text_model_needs_a_tokenizer_with_padding(copied: Callable[[str], Path]) -> None:
    folder = copied("bert")
    _TRANSFORMERS.AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer = _TRANSFORMERS.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    with pytest.raises(OptionError, match=r"has no padding token.*tokenizer\.pad_token = tokenizer\.eos_token"):
        transformers_model(folder)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(OptionError, match=r"bert holds no tokenizer\.json, nor vocab\.txt"):
        transformers_model(folder)


def test_processors_that_do_something_else_are_told_and_grey_models_get_grey_images() -> None:
    seen = []

    class Two:
        def __call__(self, images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
            seen.append(images.mode)
            return {"pixel_values": torch.zeros(1, 3, 2, 2), "pixel_mask": torch.zeros(1, 2, 2)}

    transform = TransformersImageTransform(Two(), channels=1)
    with pytest.raises(OptionError, match=r"Two makes pixel_mask, pixel_values of an image"):
        transform(Image.new("RGB", (4, 4)))
    assert seen == ["L"]
    with pytest.raises(OptionError, match=r"different sizes, such as \(3, 2, 2\) and \(3, 4, 2\)"):
        transform.batch([torch.zeros(3, 2, 2), torch.zeros(3, 4, 2)])
    assert channel_std(transform) is None


def test_what_the_model_does_not_take_is_left_out_and_a_text_without_tokens_is_unreadable() -> None:
    class Empty:
        pad_token = "[PAD]"  # noqa: S105  # no password

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [1] * len(text), "other": [2]}

    transform = TokenizerTransform(Empty(), keywords=frozenset({"input_ids"}))
    assert set(transform("a")) == {"input_ids"}
    with pytest.raises(DataFileError, match=r"^no token is in the text$"):
        transform("")


def test_an_orientation_tag_is_followed(folders: Path) -> None:
    """As `transformers.image_utils.load_image` does."""
    _, transform = transformers_model(folders / "vit")
    picture = Image.fromarray(pixels(1, seed=3, height=20, width=31)[0].numpy())
    tagged = picture.copy()
    tagged.getexif()[0x0112] = 6
    tagged.info["exif"] = tagged.getexif().tobytes()
    torch.testing.assert_close(transform(tagged), transform(picture.rotate(-90, expand=True)))


def test_two_orders_of_the_classes_are_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("vit")
    names = {"a": 0, "b": 1, "c": 2, "d": 3}
    change_json(folder / "config.json", id2label={str(place): name for name, place in names.items()}, label2id=names)
    transformers_model(folder)
    change_json(folder / "config.json", label2id=names | {"a": 1, "b": 0})
    with pytest.raises(DataFileError, match=r"'a' is 0 by `id2label` and 1 by `label2id`"):
        transformers_model(folder)
