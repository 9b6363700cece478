"""Images in folders and lists: which there are, in which order, with which labels; what cannot be read is named."""

import os
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from opnp.data import InputSet, open_inputs
from opnp.data.images import ImageArrays, decoded_image
from opnp.errors import DataFileError, EmptyDataError, MissingFileError
from tests.unit.data.image_files import PLAIN, inputs_of, pixels, save_image, scaled, write_tree

Refusal = type[DataFileError | EmptyDataError]


@pytest.mark.parametrize(
    ("counts", "labels", "class_names", "first"),
    [
        ({"10": 2, "2": 1, "007": 1}, (2, 7, 10, 10), None, "2/000.png"),
        ({"zebra": 1, "10": 2, "ant": 1}, (0, 0, 1, 2), ("10", "ant", "zebra"), "10/000.png"),
        ({"0": 1, "1": 0, "2": 1}, (0, 2), None, "0/000.png"),
        ({"1": 1, "0/deep/er": 2, ".hidden": 1, "0/.hidden": 1}, (0, 0, 1), None, "0/deep/er/000.png"),
    ],
)
def test_folders_are_classes_by_number_or_sorted_name(
    tmp_path: Path, counts: dict[str, int], labels: tuple[int, ...], class_names: tuple[str, ...] | None, first: str
) -> None:
    write_tree(tmp_path, counts)
    (tmp_path / first).with_name("._000.png").write_bytes(b"no image")
    for name in (first.replace("000.png", "notes.txt"), "README.md"):
        (tmp_path / name).write_text("no image", encoding="utf-8")
    images = open_inputs(tmp_path, PLAIN)
    assert (images.source.labels, images.source.class_names) == (labels, class_names)
    assert images.names[0] == first
    (_, found), *_ = images.batches(8)
    assert found.tolist() == list(labels)
    seed = list(counts).index(first.removesuffix("/000.png"))
    assert torch.equal(inputs_of(images)[0], scaled(pixels(counts[first.removesuffix("/000.png")], seed=seed))[0])


def test_a_flat_folder_has_no_labels_and_paths_as_names(tmp_path: Path) -> None:
    for index in (3, 1, 2):
        save_image(tmp_path / f"{index}.PNG", pixels(1, seed=index)[0])
    images = open_inputs(tmp_path, PLAIN)
    assert (images.labels, list(images.names)) == (None, ["1.PNG", "2.PNG", "3.PNG"])
    assert torch.equal(inputs_of(images), torch.cat([scaled(pixels(1, seed=index)) for index in (1, 2, 3)]))


@pytest.mark.parametrize(
    ("counts", "loose", "error", "message"),
    [
        ({"ant": 1, "bee": 0}, False, EmptyDataError, r"bee holds no image.*remove the empty ones, or name all"),
        ({"0": 0}, False, EmptyDataError, r"data holds no image: expected files ending in \.avif, .*\.webp"),
        ({"0": 1}, True, DataFileError, r"holds images \(x.png, \.\.\.\) beside folders with images \(0, \.\.\.\)"),
        ({"0": 1, "00": 1, "1": 1}, False, DataFileError, "the folders 0 and 00 are the same class"),
        ({"1" * 23: 1, "2": 1}, False, DataFileError, r"data: labels must be numbers of classes, below 2\^63, got 1"),
    ],
)
def test_folders_that_could_be_taken_wrongly(
    tmp_path: Path, counts: dict[str, int], loose: bool, error: Refusal, message: str
) -> None:
    (tmp_path / "data").mkdir()
    write_tree(tmp_path / "data", counts)
    if loose:
        save_image(tmp_path / "data" / "x.png", pixels(1)[0])
    with pytest.raises(error, match=message):
        open_inputs(tmp_path / "data", PLAIN)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".thumbnails"])
def test_what_storage_devices_leave_behind_is_passed_over(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path, {"ant": 1, f"ant/{name}": 1, f"bee/deep/{name}/b.png": 1, "bee": 2, name: 1})
    inputs = open_inputs(tmp_path, PLAIN)
    assert list(inputs.names) == ["ant/000.png", "bee/000.png", "bee/001.png"]
    assert inputs.source.class_names == ("ant", "bee")
    assert len(open_inputs(tmp_path / "ant", PLAIN, is_labelled=False)) == 1


def test_links_that_lead_back_end_with_each_file_once(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"ant/deep": 1, "ant": 1, "bee": 1})
    elsewhere = write_tree(tmp_path, {"elsewhere": 1}) / "elsewhere"
    links = {"ant/loop": "ant", "ant/deep/up": "", "ant/other": "bee", "bee/again": "bee", "bee/self": "bee/self"}
    for link, target in links.items():
        (tree / link).symlink_to(tree / target)
    (tree / "bee" / "far").symlink_to(elsewhere)
    (tree / "bee" / "far2").symlink_to(elsewhere)
    (tree / "cow").symlink_to(write_tree(tmp_path, {"herd": 2}) / "herd")
    inputs = open_inputs(tree, PLAIN)
    ants, bees = ["ant/000.png", "ant/deep/000.png"], ["bee/000.png", "bee/far/000.png"]
    assert list(inputs.names) == [*ants, *bees, "cow/000.png", "cow/001.png"]
    assert inputs.source.labels == (0, 0, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("folder", "link", "target", "is_refused"),
    [
        ("ant", "notes.txt", "gone", False),
        ("ant", "LICENSE", ".git/annex/objects/f8/2q/MD5E-s1--a/MD5E-s1--a", False),
        ("ant", "bee", "gone", True),
        ("ant", "bee", "bee", True),
        ("001.ant", "002.bee", "gone", True),
        ("001.ant", "bee", "gone", True),
    ],
)
def test_a_link_that_leads_nowhere_is_refused_where_it_may_be_a_class(
    tmp_path: Path, folder: str, link: str, target: str, is_refused: bool
) -> None:
    tree = write_tree(tmp_path / "tree", {folder: 2})
    (tree / link).symlink_to(target)
    if is_refused:
        for is_labelled in (True, False):
            with pytest.raises(DataFileError, match=f"{link}, a link that leads nowhere"):
                open_inputs(tree, PLAIN, is_labelled=is_labelled)
    else:
        assert len(open_inputs(tree, PLAIN)) == 2


def test_the_digest_is_of_names_and_contents_whatever_the_name(tmp_path: Path) -> None:
    file = save_image(tmp_path / "tree" / "0" / "größe.png", pixels(1)[0])
    content = sha256(file.read_bytes()).hexdigest()
    before = open_inputs(tmp_path / "tree", PLAIN).source.digest()
    assert before == sha256(f"0/größe.png\0{content}\n".encode()).hexdigest()  # as of versions before
    file.rename(file.with_name(os.fsdecode(b"\xff\xfe.png")))
    inputs = open_inputs(tmp_path / "tree", PLAIN)
    assert inputs.source.digest() == sha256(b"0/\xff\xfe.png\0" + f"{content}\n".encode()).hexdigest()
    assert list(inputs.names) == ["0/\\xff\\xfe.png"]
    assert len(inputs_of(inputs)) == 1


# ------------------------------------------------------------------------------------------------------ one image
def truncated(path: Path) -> None:
    Image.fromarray(pixels(1, height=64, width=64)[0].numpy()).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:1500])


def broken_chunk(path: Path) -> None:
    content = bytearray(save_image(path, pixels(1)[0]).read_bytes())
    content[12:16] = b"XXXX"
    path.write_bytes(content)


def deep(path: Path) -> None:
    Image.fromarray(torch.full((8, 8), 40000, dtype=torch.uint16).numpy()).save(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b""), "^no image$"),
        (lambda path: path.write_bytes(b"GIF89a"), "[^/]+"),
        (truncated, "truncated"),
        (broken_chunk, "[^/]+"),
        (deep, "^more than 8 bits a channel, mode I;16: store it with 8 bits$"),
        (lambda path: path.symlink_to("absent.png"), "^No such file or directory$"),
        (
            lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"),
            "^no image$",
        ),
        (lambda path: save_image(path, pixels(1, height=99, width=99)[0]), "Image size"),
    ],
    ids=["empty", "header alone", "truncated", "broken chunk", "deep", "link", "starts a program", "too large"],
)
def test_an_unreadable_image_is_told_by_the_reason_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object], reason: str
) -> None:
    spoil(tmp_path / "one.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4500)
    with pytest.raises(DataFileError, match=reason):
        decoded_image(tmp_path / "one.png")
    (tmp_path / "folder.png").mkdir()  # is passed over
    inputs = open_inputs(tmp_path, PLAIN)
    with pytest.raises(DataFileError, match=r": one\.png cannot be read \([^/]+\): mend or remove it"):
        inputs[0]
    assert len(inputs.source.digest()) == 64


def test_a_palette_with_transparency_becomes_what_it_shows(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(1)[0].numpy()).convert("P")
    picture.info["transparency"] = bytes(range(256))
    picture.save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as stored:
        expected = stored.convert("RGBA").convert("RGB").tobytes()
    assert decoded_image(tmp_path / "one.png").tobytes() == expected
    assert decoded_image((tmp_path / "one.png").read_bytes()).tobytes() == expected


def test_pictures_of_other_formats_are_read_or_counted(tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(1)[0].numpy())
    picture.save(tmp_path / "a.jfif")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    picture.save(tmp_path / ("c.avif" if ".avif" in Image.registered_extensions() else "c.webp"))
    inputs = open_inputs(tmp_path, PLAIN)
    assert [len(batch) for batch in inputs.batches(4)] == [2]
    assert inputs.unreadable == (("b.heic", "the Pillow that is installed reads no .heic files"),)


# ---------------------------------------------------------------------------------------------------------- lists
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images a, b and c of a subfolder, and a place for lists beside it."""
    for seed, name in enumerate("abc"):
        save_image(tmp_path / "some images" / f"{name}.png", pixels(1, seed=seed)[0])
    (tmp_path / "lists").mkdir()
    return tmp_path


def listed(folder: Path, content: str, *, ending: str = "csv", is_strict: bool = False) -> InputSet:
    path = folder / "lists" / f"some.{ending}"
    path.write_text(content.replace("@", "../some images"), encoding="utf-8", errors="surrogateescape")
    return open_inputs(path, PLAIN, is_strict=is_strict)


def order(images: InputSet) -> list[int]:
    """Return which of the three images each input is."""
    known = [scaled(pixels(1, seed=seed))[0] for seed in range(3)]
    return [next(index for index, image in enumerate(known) if torch.equal(image, each)) for each in inputs_of(images)]


def test_one_path_a_line(folder: Path) -> None:
    absolute = folder / "some images" / "a.png"
    images = listed(folder, f"\ufeff@/c.png\r\n\n  {absolute}\n@/c.png", ending="txt")
    assert order(images) == [2, 0, 2]
    assert images.labels is None
    assert list(images.names) == ["../some images/c.png", str(absolute), "../some images/c.png"]


@pytest.mark.parametrize(
    ("content", "labels", "names"),
    [
        ("@/b.png\n@/a.png\n", None, None),
        ("@/b.png,7\n\n@/a.png, 0\n", (7, 0), None),
        ('"@/b.png",dog\n@/a.png,"a, b"\n', (1, 0), ("a, b", "dog")),
        (' Path ,"LABELS"\n@/b.png,1\n@/a.png,2\n', (1, 2), None),
        ("note,label,path,text\nx,1,@/b.png,t\ny,2,@/a.png,t\n", (1, 2), None),
        ("path\n@/b.png\n@/a.png\n", None, None),
        ("path,label\n@/b.png,\n@/a.png\n", None, None),
    ],
)
def test_tables(folder: Path, content: str, labels: tuple[int, ...] | None, names: tuple[str, ...] | None) -> None:
    images = listed(folder, content)
    assert order(images) == [1, 0]
    assert (images.source.labels, images.source.class_names) == (labels, names)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("a.png,1\nb.png\n", DataFileError, "1 of 2 labels are missing: give all of them, or none"),
        ("a.png,1,2\n", DataFileError, "has 3 columns: expected path, or path and label, or a first line"),
        ("path,label\n,1\n", DataFileError, "row 1 has no path"),
        ("\n\n", EmptyDataError, "lists no image"),
        ("\udcff\udcfe", DataFileError, "is no readable"),
        (
            "filename,label\na.png,3\n",
            DataFileError,
            "its first line, filename, label, is read .*none of them is `path`",
        ),
        ("image,species\na.png,cat\nb.png,dog\n", DataFileError, "its first line, image, species, is read as names of"),
        ("a.png,3\nb.png,dog\n", DataFileError, "labels must be numbers of.*got both, such as '3' and 'dog'"),
        ("path,label,Label\na.png,3,4\n", DataFileError, "has 2 columns called `label`: one can be read"),
    ],
)
def test_lists_that_could_be_taken_wrongly(folder: Path, content: str, error: Refusal, message: str) -> None:
    with pytest.raises(error, match=rf"some\.csv.*{message}"):
        listed(folder, content)


def test_files_that_are_not_there_are_unreadable(folder: Path) -> None:
    content = "@/b.png,1\nabsent.png,0\n../lists,0\nb\0.png,0\n@/a.png,2\n"
    images = listed(folder, content)
    assert order(images) == [1, 0]
    assert images.unreadable[:2] == (("absent.png", "No such file or directory"), ("../lists", "Is a directory"))
    assert images.labels is not None
    assert images.labels[images.readable].tolist() == [1, 2]
    with pytest.raises(DataFileError, match=r"some\.csv: absent\.png cannot be read \(No such file.*\): mend"):
        order(listed(folder, content, is_strict=True))


def test_the_digest_is_of_list_and_files(folder: Path) -> None:
    digests = [listed(folder, f"@/b.png,{label}\nabsent.png,0\n").source.digest() for label in (1, 1, 2)]
    save_image(folder / "lists" / "absent.png", pixels(1)[0])
    digests.append(listed(folder, "@/b.png,1\nabsent.png,0\n").source.digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


# --------------------------------------------------------------------------------------------------------- arrays
COLOURS, GREY = pixels(5).numpy(), pixels(5, is_grey=True).numpy()
LABELS = np.array([3, 0, 2, 1, 3], dtype=np.int16)


def write(path: Path, **arrays: Any) -> Path:
    """Write arrays in the format that the ending names; of a .npy file `images` alone."""
    match path.suffix:
        case ".npy":
            np.save(path, arrays["images"])
        case ".npz":
            np.savez_compressed(path, **arrays)
        case _:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("images", [COLOURS, GREY], ids=["colours", "grey"])
@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_every_format_gives_the_images(tmp_path: Path, ending: str, images: Any) -> None:
    expected = scaled(torch.from_numpy(images))
    one_hot = np.eye(4)[LABELS]
    for labels in (None, LABELS, LABELS.astype(np.uint8), LABELS.astype(np.float32), LABELS[:, None], one_hot):
        if ending == "npy" and labels is not None:
            continue
        name = "labels" if labels is LABELS else "label"
        arrays = {"images": images} if labels is None else {"images": images, name: labels}
        found = open_inputs(write(tmp_path / f"some.{ending}", **arrays), PLAIN)
        assert torch.equal(inputs_of(found), expected)
        assert found.source.labels == (None if labels is None else (3, 0, 2, 1, 3))
        assert found.source.class_names is None
        assert list(found.names) == ["0", "1", "2", "3", "4"]
    digest = found.source.digest()
    assert open_inputs(write(tmp_path / f"some.{ending}", images=images[::-1]), PLAIN).source.digest() != digest


def test_a_plain_array_stays_on_disk_and_is_not_sent_to_workers(tmp_path: Path) -> None:
    source = ImageArrays.from_path(write(tmp_path / "large.npy", images=np.zeros((1000, 32, 32, 3), dtype=np.uint8)))
    assert isinstance(source.pixels, np.memmap)
    content = pickle.dumps(source)
    assert len(content) < 1000
    assert len(pickle.loads(content)) == 1000  # noqa: S301  # what was just written
    write(tmp_path / "some.npz", images=COLOURS, labels=np.zeros(3))
    unlabelled = ImageArrays.from_path(tmp_path / "some.npz", is_labelled=False)
    assert pickle.loads(pickle.dumps(unlabelled)).labels is None  # noqa: S301  # as above


class Trap:
    """Something that is told when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"pixels": COLOURS}, DataFileError, "must hold `images`, but it holds pixels"),
        ({"images": COLOURS.astype(np.float32)}, DataFileError, "`images` must be uint8 of shape.*got .*float32"),
        ({"images": COLOURS.transpose(0, 3, 1, 2)}, DataFileError, r"of shape \(5, 3, 8, 8\)"),
        ({"images": COLOURS[:0]}, EmptyDataError, r"`images` has no pixels, got shape \(0, 8, 8, 3\)"),
        ({"images": COLOURS[0]}, DataFileError, r"\(8, 8, 3\) is one image in colours, not 8 grey.*`images\[None\]`"),
        ({"images": COLOURS, "labels": LABELS[:4]}, DataFileError, "`labels` must be one an image, 5 of them, got 4"),
        ({"images": COLOURS, "labels": LABELS > 0}, DataFileError, "must be class indices, got .*bool"),
        ({"images": COLOURS, "labels": np.ones((5, 4))}, DataFileError, "multi-hot"),
        ({"images": COLOURS, "labels": LABELS - 1}, DataFileError, "1 of 5 labels are missing"),
        (
            {"images": COLOURS, "labels": np.full(5, 2**63, np.uint64)},
            DataFileError,
            r"numbers of classes, below 2\^63",
        ),
    ],
)
def test_arrays_of_other_content(tmp_path: Path, arrays: Any, error: Any, message: str) -> None:
    for ending in ("npz", "safetensors"):
        path = write(tmp_path / f"some.{ending}", **arrays)
        with pytest.raises(error, match=rf"some\.{ending}.*{message}"):
            open_inputs(path, PLAIN)
        if "labels" in arrays:
            assert len(open_inputs(path, PLAIN, is_labelled=False)) == 5


def test_files_that_are_damaged_or_pickled_or_absent(tmp_path: Path) -> None:
    objects = np.array([Trap()], dtype=object)
    np.save(tmp_path / "trap.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "trap.npz", images=objects)
    for name in ("cut.npy", "cut.npz"):
        write(tmp_path / name, images=COLOURS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("trap.npy", "trap.npz", "cut.npy", "cut.npz", "empty.npz"):
        with pytest.raises(DataFileError, match=rf"{name} is no readable file of NumPy"):
            open_inputs(tmp_path / name, PLAIN)
    with pytest.raises(MissingFileError, match=r"absent\.npy does not exist: expected a file with images"):
        ImageArrays.from_path(tmp_path / "absent.npy")
