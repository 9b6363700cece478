"""Saved data sets, models by name and class names: damaged or odd, each is one message, and no code is run."""

import random
import sys
import warnings
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from opnp.adapters import model_from_name
from opnp.data import open_inputs, train_and_test
from opnp.errors import DataFileError, OpnpError
from tests.reliability.inputs_world import LINES, damaged, is_told, run_opnp, within, write_world
from tests.tried import Tried
from tests.unit.data.image_files import PLAIN
from tests.unit.data.text_world import LETTERS


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of texts that was saved to disk."""
    folder = tmp_path_factory.mktemp("saved") / "texts"
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["some", "words", "here"] * 4, "label": [0, 1, 1] * 4}, features=features).save_to_disk(
        str(folder)
    )
    return folder


@pytest.mark.parametrize("trials", [25, pytest.param(900, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_damaged_data_sets_are_read_or_refused(saved: Path, tried: Tried, name: str, trials: int) -> None:
    tried("inputs", "saved data sets of which a file is cut off or has bytes changed", trials)
    whole = (saved / name).read_bytes()
    try:
        for content in damaged(whole, trials, seed=5, head=900):
            (saved / name).write_bytes(content)
            for transform in (LETTERS, PLAIN):
                try:
                    with within(60), warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of datasets, on features that it does not know
                        found = open_inputs(saved, transform)
                        list(found.batches(5))
                except OpnpError as error:
                    message = str(error)
                    assert "Traceback" not in message
    finally:
        (saved / name).write_bytes(whole)
    assert len(open_inputs(saved, LETTERS)) == 12


@pytest.mark.reliability
@pytest.mark.parametrize("splits", ["[]", "3", '{"splits": 3}', '{"splits": [3]}', '{"splits": []}', "[" * 3000, "\0"])
def test_indices_of_splits_that_are_none_are_told(tmp_path: Path, tried: Tried, splits: str) -> None:
    tried("inputs", "indices of splits of data sets that are odd")
    (tmp_path / "dataset_dict.json").write_text(splits, encoding="utf-8")
    with pytest.raises(DataFileError, match=r"holds the splits|is no readable data set"):
        open_inputs(tmp_path, LETTERS)


_MODULE = """
import sys
from pathlib import Path
from torch import nn

Path("imported").touch()


class Raising(nn.Module):
    def __init__(self):
        raise SystemExit(0)


class Meta(type):
    def __getattr__(cls, name):
        raise ValueError("no\\nname")


class Odd(metaclass=Meta):
    pass


def wants(argument):
    return nn.Identity()


def recursive():
    return recursive()


def hungry():
    raise MemoryError


def stopped():
    raise StopIteration


def nothing():
    return None
"""


@pytest.mark.reliability
def test_names_of_models_of_odd_kind_are_refused(tmp_path: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "oddnets.py").write_text(_MODULE, encoding="utf-8")
    (tmp_path / "unfinished.py").write_text("def net(:\n", encoding="utf-8")
    (tmp_path / "binary.py").write_bytes(b"\0\xff\xfe")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    odd = ["Raising", "Odd.name", "wants", "recursive", "hungry", "stopped", "nothing", "no", "__name__"]
    odd += ["__builtins__", "nn", "sys.exit", "wants.__globals__", "..", ".wants", "wants.", "wants()", "wants:x", " "]
    names = [f"oddnets:{name}" for name in odd]
    names += ["unfinished:net", "binary:net", "leaving:net", "no.such:net", ".oddnets:wants", "..:x", "a/b:c", "a b:c"]
    names += [
        "oddnets.py:wants",
        "oddnets",
        ":",
        "",
        "os:",
        ":os",
        "\0:x",
        "x:\0",
        "os:getcwd",
        "builtins:list",
        "\udcff:x",
    ]
    tried("inputs", "names of models that name none", len(names))
    try:
        for name in names:
            with pytest.raises(OpnpError) as refused, within(30):
                model_from_name(name)
            assert "`model`" in str(refused.value), name
    finally:
        for name in ("oddnets", "unfinished", "binary", "leaving"):
            sys.modules.pop(name, None)


@pytest.mark.reliability
def test_folders_with_odd_halves_are_told(tmp_path: Path, tried: Tried) -> None:
    tried("inputs", "folders of training and test inputs that lack or fake one", 3)
    (tmp_path / "train").symlink_to("nowhere")
    (tmp_path / "test").mkdir()
    with pytest.raises(OpnpError, match="holds no train"):
        train_and_test(tmp_path)
    (tmp_path / "train").unlink()
    (tmp_path / "train").symlink_to("train")
    with pytest.raises(OpnpError, match="holds no train"):
        train_and_test(tmp_path)
    (tmp_path / "train.npz").mkdir()
    assert train_and_test(tmp_path)[0].name == "train.npz"
    with pytest.raises(OpnpError, match=r"train\.npz"):
        open_inputs(tmp_path / "train.npz", PLAIN)


@pytest.mark.reliability
def test_files_of_class_names_of_odd_kind_are_told(
    tmp_path: Path, tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_world(tmp_path))
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    monkeypatch.setattr("opnp.serve.app.run_service", lambda app, listening, **_: listening.close())
    assert run_opnp(*LINES["fit model"]).code == 0
    generator = random.Random(0)  # noqa: S311  # bytes for a test
    odd = {
        "latin": b"\xe4\n" * 4,
        "empty": b"",
        "few": b"a\nb\n",
        "many": b"x\n" * 1000,
        "bytes": generator.randbytes(99),
    }
    tried("inputs", "files of class names of odd kind", len(odd) + 2)
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
        ran = run_opnp(*LINES["serve"], "--class-names", name)
        assert is_told(ran), (name, ran)
    (tmp_path / "good").write_text("\ufeffa\nb\nc\nd\n", encoding="utf-8")
    assert run_opnp(*LINES["serve"], "--class-names", "good").code == 0
    assert is_told(run_opnp(*LINES["serve"], "--class-names", tmp_path))
