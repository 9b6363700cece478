"""Encoders with a head beside them: prototypes, classifiers of scikit-learn, sentence encoders."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sklearn.linear_model import LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import Tensor, nn

from opnp import OPNP, PANEL, Ratios
from opnp.adapters import PrototypeHead, encoders, linear_head, sentence_model
from opnp.data import write_head
from opnp.errors import (
    DataFileError,
    InputTypeError,
    MissingExtraError,
    MissingFileError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from opnp.model import find_head
from tests.unit.adapters.hub_caches import is_installed, write_sentence_encoder
from tests.unit.adapters.hub_folders import change_json, write_clip

CLASSES, WIDTH = 4, 12


def drawn(rows: int, *, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalize", [True, False])
def test_logits_are_scale_times_cosine(normalize: bool) -> None:
    weight, features = drawn(CLASSES), drawn(9, seed=1)
    head = PrototypeHead(weight, scale=7.0, normalize=normalize)
    expected = torch.empty(9, CLASSES, dtype=torch.float64)
    for row, h in enumerate(features.double()):
        for kind, w in enumerate(weight.double()):
            product = (h * w).sum()
            expected[row, kind] = 7 * (product / (h.pow(2).sum() * w.pow(2).sum()).sqrt() if normalize else product)
    torch.testing.assert_close(head(features).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(head(torch.zeros(1, WIDTH)), torch.zeros(1, CLASSES))


def test_the_head_is_found_and_its_features_have_length_one() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), PrototypeHead(drawn(CLASSES), scale=20.0))
    before = deepcopy(model.state_dict())
    head = find_head(model, drawn(3))
    assert head.name == "1.linear"
    assert head.is_output
    torch.testing.assert_close(head.weight.norm(dim=1), torch.full((CLASSES,), 20.0))
    batches = [drawn(200, seed=seed) for seed in range(4)]
    detector = OPNP().fit(model, batches, validation=[drawn(100, seed=9)])
    with torch.no_grad():
        units = [nn.functional.normalize(model[0](batch), dim=1) for batch in batches]
    by_features = OPNP().fit_features(torch.cat(units), weight=head.weight, bias=None)
    inputs = drawn(50, seed=8)
    with torch.no_grad():
        found = by_features.score_features(nn.functional.normalize(model[0](inputs), dim=1))
    torch.testing.assert_close(detector.score(inputs), found, rtol=1e-4, atol=1e-4)
    assert detector.members == PANEL
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_logits_are_those_of_clip(tmp_path: Path) -> None:
    kind: Any = transformers.CLIPModel
    clip = kind.from_pretrained(write_clip(tmp_path / "clip")).eval()
    tokens, pixels = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        texts = clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
        images = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)
        expected = clip(input_ids=tokens, pixel_values=pixels).logits_per_image
        found = PrototypeHead(texts, scale=clip.logit_scale.exp().item())(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "scale", "error", "message"),
    [
        (torch.ones(4), 1.0, ShapeError, "`weight` must have shape"),
        (torch.ones(2, 4).long(), 1.0, InputTypeError, "must be floating point"),
        (torch.tensor([[1.0, float("nan")]]), 1.0, NonFiniteError, "weight"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0, OptionError, "a row of zeros, which has no direction"),
        (torch.ones(2, 4), 0.0, OptionError, "`scale` must be above 0, got 0.0"),
        (torch.ones(2, 4), float("inf"), OptionError, "`scale` must be above 0, got inf"),
        (torch.ones(2, 4), 1e39, OptionError, r"`scale` must leave the weight finite in torch\.float32, got 1e\+39"),
        (torch.ones(2, 4).half(), 1e6, OptionError, r"finite in torch\.float16"),
    ],
)
def test_prototypes_that_are_none_are_refused(
    weight: Tensor, scale: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PrototypeHead(weight, scale=scale)


@pytest.mark.parametrize("classes", [2, CLASSES])
@pytest.mark.parametrize(
    "build",
    [
        LogisticRegression,
        LinearSVC,
        RidgeClassifier,
        lambda: LinearSVC(fit_intercept=False),
        lambda: SGDClassifier(penalty="l1", random_state=0),
    ],
)
def test_a_linear_classifier_is_a_layer(build: Callable[[], Any], classes: int) -> None:
    features = drawn(120).double()
    labels = torch.arange(120) % classes
    classifier = build().fit(features.numpy(), labels.numpy())
    if isinstance(classifier, SGDClassifier):
        classifier.sparsify()
    layer = linear_head(classifier, dtype=torch.float64)
    expected = torch.as_tensor(classifier.decision_function(features.numpy())).reshape(120, -1)
    torch.testing.assert_close(layer(features), expected)
    detector = OPNP(ratios=Ratios()).fit(nn.Sequential(nn.Identity(), layer), [features], validation=[features])
    verdict = detector.verdict(features)
    assert verdict.predicted_class.tolist() == classifier.predict(features.numpy()).tolist()
    logits = torch.cat([-expected, expected], 1) / 2 if classes == 2 else expected
    torch.testing.assert_close(verdict.score.double(), -logits.logsumexp(1))


def test_what_is_no_linear_classifier_is_refused() -> None:
    features, labels = drawn(60).numpy(), torch.arange(60).numpy() % 3
    with pytest.raises(ShapeError, match="that of SVC has 3 for 3 classes, one a pair of them"):
        linear_head(SVC(kernel="linear").fit(features, labels))
    with pytest.raises(InputTypeError, match=r"got Pipeline\. Give its last step"):
        linear_head(make_pipeline(StandardScaler(), LogisticRegression()).fit(features, labels))
    with pytest.raises(InputTypeError, match=r"must be a fitted linear classifier .*got LogisticRegression\.$"):
        linear_head(LogisticRegression())


# ---------------------------------------------------------------------------------------------------- sentence encoders
sentences = pytest.mark.skipif(
    not is_installed("sentence_transformers"), reason="sentence-transformers is not installed"
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_encoder(tmp_path_factory.mktemp("sentences") / "encoder")


@sentences
def test_embeddings_are_those_of_encode(encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["good film", "this film is very " * 10, "not bad"]
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    model, transform = sentence_model(encoder, PrototypeHead(weight, scale=1.0))
    inputs = transform.batch([transform(text) for text in texts])
    own = SentenceTransformer(str(encoder), device="cpu").encode(texts, convert_to_tensor=True)
    with torch.no_grad():
        logits = model.eval()(**inputs)
    torch.testing.assert_close(logits, own @ nn.functional.normalize(weight, dim=1).T, rtol=1e-4, atol=1e-5)
    assert find_head(model, inputs).name == "head.linear"
    assert transform.limit == 12
    assert set(transform.facts()["files"]) == {"tokenizer.json", "tokenizer_config.json"}  # type: ignore[call-overload]


def _typed(folder: Path) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([{**modules[0], "type": "custom_st.Mine"}, *modules[1:]]), encoding="utf-8")


def _broken(folder: Path) -> None:
    (folder / "modules.json").write_text("{", encoding="utf-8")


def _prompted(folder: Path) -> None:
    change_json(folder / "config_sentence_transformers.json", prompts={"q": "query: "}, default_prompt_name="q")


def _coded(folder: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModel": "evil.Evil"})


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _plain(folder: Path) -> None:
    (folder / "modules.json").unlink()


@sentences
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_typed, OptionError, r"modules\.json asks for code that is never run here: custom_st\.Mine"),
        (_broken, DataFileError, r"modules\.json is no readable list of modules \(JSONDecodeError"),
        (_prompted, OptionError, r"puts 'query: ' before every text: encode the texts yourself"),
        (_coded, OptionError, r"config\.json asks for code"),
        (_without_weights, DataFileError, r"sentence-transformers could not read"),
        (_plain, OptionError, r"holds no modules\.json"),
    ],
)
def test_encoders_that_are_not_taken_say_why(
    encoder: Path, tmp_path: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(encoder, tmp_path / "copy"))
    spoil(folder)
    with pytest.raises(error, match=message):
        sentence_model(folder, nn.Linear(16, 3))


@sentences
def test_the_head_must_be_given_and_fit(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no classes of its own: give its head as `--weights head"):
        sentence_model(encoder, None)
    with pytest.raises(ShapeError, match=r"The head takes 12 features, and `sentence-transformers:.*` gives 16"):
        sentence_model(encoder, PrototypeHead(drawn(3)))
    write_head(tmp_path / "head.safetensors", torch.ones(3, 16), bias=torch.arange(3.0))
    model, _ = sentence_model(encoder, tmp_path / "head.safetensors")
    assert model.state_dict()["head.bias"].tolist() == [0.0, 1.0, 2.0]


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"sentence-transformers, not installed here: .*opnp\[sentences\]"):
        sentence_model("all-MiniLM-L6-v2", nn.Linear(16, 3))
    with pytest.raises(MissingFileError, match=r"must be a folder or a name on the hub, and /no/such is neither"):
        encoders._folder("/no/such", "sentence-transformers:/no/such")
