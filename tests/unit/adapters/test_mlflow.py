"""Detectors in MLflow, by the package as it is, with a store of files in a folder and no network."""

import json
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image
from safetensors.torch import save_file

from opnp import OPNP, Ratios, __version__
from opnp.adapters import mlflow as own
from opnp.adapters import model_from_name, model_origin
from opnp.artifact import read_artifact
from opnp.data import Preprocessing
from opnp.detector.fit_pass import FitSum
from opnp.errors import (
    ArtifactError,
    DataFileError,
    HeadMismatchError,
    InputTypeError,
    MissingExtraError,
    NonFiniteError,
    NotCalibratedError,
    NotFittedError,
    OptionError,
)
from opnp.values.origin import ModelOrigin
from tests.unit.adapters.hub_caches import cached, offline_cache
from tests.unit.adapters.hub_folders import write_bert
from tests.unit.adapters.mlflow_store import file_store

if find_spec("mlflow") is None:
    pytest.skip("mlflow-skinny is not installed", allow_module_level=True)

pytestmark = [
    # Of type hints in MLflow itself, when it is first imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    # MLflow 3.17 compares the names of an example's columns with a range, which pandas 3.1 says it will read otherwise.
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated"),
]
NAMES = ("ape", "bee", "cow")
NET = """\
from torch import nn


def net():
    body = (nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8, 3))
"""
PLACES: tuple[dict[str, Any], ...] = ({"weights": "../w.pt"}, {"model": "hf:./my-bert"})
COLUMNS = ["predicted_class", "score", "p_value", "is_ood"]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let MLflow have its store in a folder, and no network."""

    def connect(*_: object) -> None:
        pytest.fail("the network was asked for")

    folder = tmp_path_factory.mktemp("mlflow") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        file_store(folder, patch)
        yield folder


def fitted(dtype: torch.dtype = torch.float32, **facts: Any) -> OPNP:
    draw = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 6, generator=draw, dtype=dtype) for size in (3, 300))
    return OPNP().fit_features(rows[:200], weight=weight, bias=None, validation=rows[200:], **facts)


@pytest.fixture(scope="module")
def detector() -> OPNP:
    origin = ModelOrigin("mine:net", None, "0" * 64, "image", {"size": 8}, NAMES)
    return fitted().remember(origin)


@pytest.fixture(scope="module")
def logged(detector: OPNP) -> Any:
    return own.log_detector(detector, "judge", registered_name="judge", example=np.ones((2, 6)))


ROWS = np.concatenate([np.eye(6, dtype=np.float32), 50 * np.ones((1, 6), np.float32)])


def table(detector: OPNP, rows: np.ndarray = ROWS) -> dict[str, list[Any]]:
    verdict = detector.verdict_features(rows)
    return {name: getattr(verdict, name).tolist() for name in COLUMNS}


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers(detector: OPNP, logged: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    code = (
        "import sys, opnp.adapters.mlflow\n"
        "assert 'mlflow' not in sys.modules and 'pandas' not in sys.modules\n"
        "import mlflow, numpy\n"
        f"model = mlflow.pyfunc.load_model({logged.model_uri!r})\n"
        f"print(model.predict(numpy.load({str(tmp_path / 'rows.npy')!r})).to_json(double_precision=15))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found = {name: [*column.values()] for name, column in json.loads(ran.stdout).items()}
    expected = table(detector)
    assert found.pop("class_name") == [NAMES[each] for each in expected["predicted_class"]]
    assert found.pop("score") == pytest.approx(expected.pop("score"), rel=1e-14)
    assert found.pop("p_value") == pytest.approx(expected.pop("p_value"), rel=1e-14)
    assert found == expected
    assert expected["is_ood"][-1]


def test_arrays_and_data_frames_get_the_answers_of_the_detector(detector: OPNP, logged: Any) -> None:
    import mlflow
    import pandas as pd

    model = mlflow.pyfunc.load_model("models:/judge/1")
    frames = [ROWS, pd.DataFrame(ROWS, columns=[*"abcdef"])]
    frames += [pd.DataFrame({"features": each}) for each in (ROWS.tolist(), [*ROWS])]  # the latter as Spark gives it
    for rows in frames:
        answers = model.predict(rows)
        assert list(answers) == ["predicted_class", "class_name", *COLUMNS[1:]]
        assert {name: answers[name].tolist() for name in COLUMNS} == table(detector)
    with pytest.raises(mlflow.MlflowException, match=r"\(7, 5\) does not match expected shape \(-1, 6\)"):
        model.predict(ROWS[:, :5])
    with pytest.raises(mlflow.MlflowException, match="float64 does not match expected dtype float32"):
        model.predict(ROWS.astype(np.float64))
    with pytest.raises(NonFiniteError):
        model.predict(np.full((1, 6), np.nan, np.float32))


def test_columns_of_a_fit_by_a_table_are_taken_by_name(tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    draw = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(size, 6, generator=draw) for size in (3, 300))
    total = FitSum.of([(rows[:200], None)], weight, None, OPNP().settings)
    named = OPNP().fit_sum(total, feature_names=tuple("fedcba")).calibrate_features(rows[200:])
    frame = pd.DataFrame(ROWS.astype(np.float64), columns=[*"fedcba"])
    own.save_detector(named, tmp_path / "saved", example=frame[[*"abcdef"]])
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    assert model.metadata.get_input_schema().input_names() == [*"fedcba"]
    expected = table(named, frame.to_numpy())
    for given in (frame, frame[[*"abcdef"]], frame.assign(id=1.0)):
        answers = model.predict(given)
        assert {name: answers[name].tolist() for name in COLUMNS} == expected
    for given in (frame.drop(columns="c"), frame.to_numpy()):
        with pytest.raises(mlflow.MlflowException, match="missing inputs"):
            model.predict(given)
    with pytest.raises(InputTypeError, match="6 columns of the detector's fit by their names, got DataFrame without"):
        own.save_detector(named, tmp_path / "other", example=frame.drop(columns="c"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batchsize": 2}, "must hold `takes`, `device` or `batch_size`, got 'batchsize'"),
        ({"batch_size": 0}, "`batch_size` in `model_config` must be a positive number of inputs, got 0"),
        ({"takes": "images"}, "`takes` in `model_config` must be"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        own._load_pyfunc(str(tmp_path), config)


def test_signature_example_card_and_requirements_are_there(detector: OPNP, logged: Any) -> None:
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=logged.model_uri))
    assert [each.name for each in logged.signature.outputs] == ["predicted_class", "class_name", *COLUMNS[1:]]
    example: Any = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
    assert np.array_equal(example, np.ones((2, 6)))
    card = (folder / "data" / "detector" / "README.md").read_text(encoding="utf-8")
    assert card == detector.model_card(inputs={"size": 8})
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").split()
    assert requirements[1:] == [f"opnp[mlflow]=={__version__}", f"torch=={torch.__version__.partition('+')[0]}"]
    assert requirements[0].startswith("mlflow")


@pytest.mark.parametrize(
    ("prefix", "extra"),
    [
        ("timm", "vision"),
        ("torchvision", "vision"),
        ("mine", "vision"),
        ("hf", "hf"),
        ("sentence-transformers", "sentences"),
    ],
)
def test_inputs_require_the_extra_of_the_model(prefix: str, extra: str, tmp_path: Path) -> None:
    of_model = fitted().remember(ModelOrigin(f"{prefix}:net", None, "0" * 64, "image", {}))
    made = own._options(of_model, tmp_path, takes="inputs", example=None, requirements=None)
    assert made["pip_requirements"][0] == f"opnp[mlflow,{extra}]=={__version__}"


def is_pickle(content: bytes) -> bool:
    """Return whether a file begins as a pickle, or an archive that may hold one, does."""
    return content.startswith((b"PK", b"\x1f\x8b", b"BZh")) or (content[:1] == b"\x80" and content[1] < 10)


def test_nothing_that_is_written_is_a_pickle(logged: Any, store: Path) -> None:
    assert all(is_pickle(pickle.dumps([1], protocol=protocol)) for protocol in range(2, 6))
    files = [path for path in store.rglob("*") if path.is_file()]
    assert {"MLmodel", "README.md", "detector.safetensors"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}, path
        assert not is_pickle(content), path
        if path.suffix == ".safetensors":
            read_artifact(path, kind="detector", format_version=2)
        else:
            content.decode("utf-8")


def test_the_detector_comes_back_from_the_registry_or_a_folder(detector: OPNP, logged: Any, tmp_path: Path) -> None:
    import mlflow

    own.save_detector(fitted(torch.float64), tmp_path / "saved", requirements=["opnp"])
    assert (detector.class_names, fitted().class_names) == (NAMES, None)
    back = [own.load(logged.model_uri), own.load("models:/judge/1"), own.load(tmp_path / "saved")]
    assert [each.origin is None for each in back] == [False, False, True]
    for each in back[:2]:
        assert each.head_digest == detector.head_digest
        assert table(each) == table(detector)
    saved = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    wide = ROWS.astype(np.float64)
    answers = saved.predict(wide)
    assert list(answers) == COLUMNS
    assert {name: answers[name].tolist() for name in COLUMNS} == table(back[2], wide)
    assert (tmp_path / "saved" / "requirements.txt").read_text(encoding="utf-8").split()[1:] == ["opnp"]


def test_another_kind_of_model_is_refused_before_anything_of_it_runs(tmp_path: Path) -> None:
    text = "flavors:\n  python_function:\n    loader_module: os\n    data: d\n"
    (tmp_path / "MLmodel").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match="is no detector of opnp: its loader is os"):
        own.load(tmp_path)


def test_what_cannot_answer_is_not_logged(detector: OPNP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, place = fitted(), tmp_path / "new"
    rows = torch.rand(100, 6)
    raw = OPNP().fit_features(rows, weight=torch.randn(3, 6), bias=None)
    for given, error in ((raw, NotCalibratedError), (OPNP(), NotFittedError)):
        with pytest.raises(error):
            own.save_detector(given, place)
    with pytest.raises(OptionError, match='`takes` must be "features" or "inputs", got \'images\''):
        own.save_detector(plain, place, takes="images")  # type: ignore[arg-type]  # that is the test
    with pytest.raises(OptionError, match="needs a detector that remembers its model"):
        own.save_detector(plain, place, takes="inputs")
    origin = detector.origin
    assert origin is not None
    of_file, of_folder = (fitted().remember(replace(origin, **facts)) for facts in PLACES)
    for given, takes, weights, text in (
        (detector, "features", "w.safetensors", "left out for this detector and `takes='features'`, got 'w.safe"),
        (detector, "inputs", "w.safetensors", "left out for this detector and `takes='inputs'`"),
        (of_file, "inputs", None, r"w\.pt of the fit, as a \.safetensors file .* got None"),
        (of_file, "inputs", "w.pt", r"w\.pt of the fit, as a \.safetensors file .* got 'w\.pt'"),
    ):
        with pytest.raises(OptionError, match=f"`weights` must be {text}"):
            own.save_detector(given, place, takes=takes, weights=weights)  # type: ignore[arg-type]  # as above
    with pytest.raises(OptionError, match=r"hf:\./my-bert lies on the machine of the fit: leave it at \"features\""):
        own.save_detector(of_folder, place, takes="inputs")
    monkeypatch.setattr("opnp.errors.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"mlflow and pandas, not installed .*'opnp\[mlflow\]'`"):
        own.save_detector(plain, place)
    assert not place.exists()


def png(value: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (12, 10), (value, 255 - value, 40)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OPNP:
    """Return a detector of ``mlflow_net.py``, with ``weights.safetensors`` in the place of ``weights.pt``."""
    (tmp_path / "mlflow_net.py").write_text(NET, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mlflow_net", raising=False)
    model, _ = model_from_name("mlflow_net:net")
    save_file(model.state_dict(), "weights.safetensors")
    transform = Preprocessing(size=8, resize=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    batches = [torch.rand(40, 3, 8, 8) for _ in range(3)]
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(model, batches, validation=[torch.rand(40, 3, 8, 8)])
    place = tmp_path / "d.safetensors"
    weights = tmp_path / "weights.pt"
    origin = model_origin(model, transform, name="mlflow_net:net", weights=weights, detector=place, classes=3)
    return detector.remember(origin)


def test_images_are_prepared_as_at_the_fit(of_images: OPNP, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    weights = tmp_path / "weights.safetensors"
    own.save_detector(of_images, "saved", takes="inputs", weights=weights, example=[png(3)])
    weights.rename(tmp_path / "elsewhere.safetensors")
    assert of_images.origin is not None
    assert (of_images.origin.weights, own.load("saved").origin) == (
        "weights.pt",
        replace(of_images.origin, weights="weights.safetensors"),
    )
    model = mlflow.pyfunc.load_model("saved", model_config={"batch_size": 2})
    images = [png(value) for value in (0, 90, 180)]
    answers = model.predict(pd.DataFrame({"path": [*"abc"], "content": images}))
    transform = Preprocessing(size=8, resize=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    inputs = transform.batch([transform(Image.open(BytesIO(each))) for each in images])
    expected = of_images.verdict(iter([inputs[:2], inputs[2:]]))
    assert {name: answers[name].tolist() for name in COLUMNS} == {
        name: getattr(expected, name).tolist() for name in COLUMNS
    }
    with pytest.raises(DataFileError, match=r"Input 2 cannot be read: no image\."):
        model.predict(pd.DataFrame({"content": [*images[:2], b"no image"]}))
    with pytest.raises(DataFileError, match="Input 0 must be the bytes of an image file, got str"):
        model.predict(pd.DataFrame({"content": ["a.png"]}))


def test_other_weights_are_refused_before_anything_is_written(of_images: OPNP, tmp_path: Path) -> None:
    other = {
        name: tensor + ("0.weight" in name)
        for name, tensor in model_from_name("mlflow_net:net")[0].state_dict().items()
    }
    place = tmp_path / "other" / "weights.safetensors"
    place.parent.mkdir()
    save_file(other, place)
    with pytest.raises(HeadMismatchError):
        own.save_detector(of_images, tmp_path / "saved", takes="inputs", weights=place)
    assert not (tmp_path / "saved").exists()


def test_texts_go_through_the_tokenizer_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas as pd

    cache = offline_cache(tmp_path / "cache", monkeypatch)
    cached(cache, "org/bert", write_bert(tmp_path / "bert"))
    model, transform = model_from_name("hf:org/bert")
    assert transform is not None
    texts = [" ".join(words) for words in zip(*[["a", "good", "bad", "film", "not"] * 20] * 3, strict=True)]
    detector = OPNP(ratios=Ratios(w_min=0.3)).fit(model, [transform.batch([transform(each) for each in texts])])
    detector.calibrate([transform.batch([transform(each) for each in texts[:40]])])
    origin = model_origin(model, transform, name="hf:org/bert", weights=None, detector=Path("d.st"), classes=4)
    own.save_detector(detector.remember(origin), tmp_path / "saved", takes="inputs", example=texts[:1])
    answers = mlflow.pyfunc.load_model(str(tmp_path / "saved")).predict(pd.DataFrame({"text": texts[:3]}))
    expected = detector.verdict(transform.batch([transform(each) for each in texts[:3]]))
    assert answers["score"].tolist() == expected.score.tolist()


@pytest.mark.skipif(find_spec("pyspark") is None or which("java") is None, reason="Spark needs pyspark and Java")
def test_a_function_for_spark_follows(detector: OPNP, logged: Any) -> None:
    import mlflow
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[1]").getOrCreate()
    try:
        judge = mlflow.pyfunc.spark_udf(spark, logged.model_uri, env_manager="local")
        frame = spark.createDataFrame([(row,) for row in ROWS.tolist()], "features array<float>")
        found = frame.select(judge("features").alias("verdict")).select("verdict.*").toPandas()
    finally:
        spark.stop()
    assert {name: found[name].tolist() for name in COLUMNS} == table(detector)
