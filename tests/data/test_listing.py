import collections
import io
import logging
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
from conftest import encode, picture

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data import decode, listing, pillow, sources
from vision_jax.errors import DataError
from vision_jax.preparation import inputs

PNG = encode(picture(9, 9), "PNG")


def fill(root: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def names_of(directory: pathlib.Path) -> list[str]:
    """The images of the training split as a training sees them, after checking that `prepare` sees the same."""
    source = sources.FolderSource(directory, "train")
    seen = [os.path.relpath(source.describe(i), directory / "train") for i in range(len(source))]
    records = inputs.FolderInput(directory).index(directory).splits["train"]
    assert [os.fsdecode(name) for name in records["name"].tolist()] == seen
    assert records["label"].tolist() == source.labels.tolist()
    return seen


def test_what_is_hidden_is_no_class_and_no_image(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    images = ("train/bee/1.png", "train/bee/sub/2.PNG", "train/cat/1.png")
    hidden = ("train/.ipynb_checkpoints/1.png", "train/__MACOSX/bee/1.png", "train/bee/._1.png", "train/.DS_Store")
    fill(tmp_path, *images, *hidden, "train/cat/.thumbnails/1.png", "train/cat/@eaDir/1.png")
    assert names_of(tmp_path) == ["bee/1.png", "bee/sub/2.PNG", "cat/1.png"]
    assert f"Left out in {tmp_path / 'train'}: 6 hidden." in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_left_out_is_counted_by_kind(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    fill(tmp_path, "train/bee/1.png", "train/2.png", "train/readme.md", "train/bee/.x", "train/bee/README")
    fill(tmp_path, *(f"train/bee/{i}.TXT" for i in range(12)), "train/bee/film.mp4")
    os.mkfifo(tmp_path / "train" / "bee" / "pipe.png")
    assert names_of(tmp_path) == ["bee/1.png"]
    others = "1 .md, 1 .mp4, 1 hidden, 1 images outside of class folders, 1 special files, 1 without a suffix"
    assert f"train: 12 .txt, {others}." in caplog.text


def test_every_suffix_of_an_image_that_can_be_decoded(tmp_path: pathlib.Path):
    """Whatever Pillow writes under a suffix and can read again: `.jfif`, `.avif`, `.pgm`, in any case."""
    image = PIL.Image.fromarray(picture(16, 16))
    written = []
    for suffix, name in PIL.Image.registered_extensions().items():
        if suffix in {".pdf", ".eps", ".ps", ".palm", ".im", ".pfm"}:
            continue  # no images, or not to be read
        for mode in ("RGB", "L", "1", "P", "RGBA"):
            file = io.BytesIO()
            try:
                image.convert(mode).save(file, name)
                decode.decode(file.getvalue(), 3)
            except (OSError, ValueError, KeyError):  # there is no encoder, or the decoder refuses what it wrote
                continue
            written.append(f"train/bee/{suffix[1:]}{suffix.upper() if len(written) % 2 else suffix}")
            (tmp_path / written[-1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / written[-1]).write_bytes(file.getvalue())
            break
    assert sorted(f"train/{name}" for name in names_of(tmp_path)) == sorted(written)
    expected = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".pgm", ".ppm", ".pbm", ".pnm", ".webp", ".bmp", ".tif"}
    expected |= {".tiff", ".gif"} | ({".avif"} if PIL.features.check("avif") else set())
    assert {os.path.splitext(name)[1].lower() for name in written} >= expected
    assert not pillow.image_suffixes() & {".mpg", ".pdf", ".eps", ".h5", ".txt", ".mp4", ".npy", ".csv", ""}


def test_links_to_folders_are_followed_and_loops_end(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    fill(tmp_path, "elsewhere/deep/3.png", "elsewhere/4.png", "train/bee/1.png", "train/bee/sub/2.png")
    bee = tmp_path / "train" / "bee"
    (bee / "more").symlink_to(tmp_path / "elsewhere")
    (bee / "again").symlink_to(tmp_path / "elsewhere" / "deep")  # sorted before `more`, through which it comes too
    (bee / "sub" / "up").symlink_to(bee)
    (bee / "top").symlink_to(tmp_path / "train")
    (bee / "self").symlink_to("self")
    (bee / "gone.png").symlink_to(tmp_path / "gone.png")
    (bee / "one.png").symlink_to(bee / "1.png")
    (tmp_path / "elsewhere" / "back").symlink_to(bee / "more")
    (tmp_path / "train" / "wasp").symlink_to(tmp_path / "elsewhere")  # of another class the same folder counts too
    (tmp_path / "train" / "ant").symlink_to(tmp_path / "train")  # that would be a class of all images
    seen = ["bee/1.png", "bee/again/3.png", "bee/more/4.png", "bee/one.png", "bee/sub/2.png"]
    assert names_of(tmp_path) == [*seen, "wasp/4.png", "wasp/deep/3.png"]
    assert "5 links to folders that are listed already" in caplog.text  # up, top, ant, and twice back
    assert "2 links that lead nowhere" in caplog.text  # self, gone.png
    source = sources.FolderSource(tmp_path, "train")
    assert all(source[i]["image"] == PNG for i in range(len(source)))


def test_folders_without_images_are_no_classes(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    fill(tmp_path, "train/bee/1.png", "train/cat/1.png", "val/cat/1.png", "train/notes/a.txt")
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "val" / "dog").mkdir()
    assert names_of(tmp_path) == ["bee/1.png", "cat/1.png"]
    assert sources.FolderSource(tmp_path, "train").class_names == ["bee", "cat"]
    assert "No classes, as they hold no image: 2 folders in" in caplog.text
    assert "(ant, notes)" in caplog.text
    assert sources.folder_class_names(tmp_path, "train") == ["bee", "cat"]

    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.val_split = "folder", str(tmp_path), "val"
    val = build.create_source(config, train=False)
    assert (val.class_names, val.labels.tolist()) == (["bee", "cat"], [1])  # numbered as in training
    assert f"Classes without an image in {tmp_path / 'val'}: 1 (bee)." in caplog.text
    fill(tmp_path, "val/dog/1.png")
    with pytest.raises(DataError, match="val has classes that the training split has not: dog"):
        build.create_source(config, train=False)
    # An evaluation knows the classes of the checkpoint.
    known = build.create_source(config, train=False, class_names=["ant", "cat", "dog"])
    assert (list(known.class_names), known.labels.tolist()) == (["ant", "cat", "dog"], [1, 2])
    config.data.train_split = "gone"  # an evaluation can do without the training split
    assert build.create_source(config, train=False).class_names == ["cat", "dog"]


def test_listing_for_predictions(tmp_path: pathlib.Path):
    fill(tmp_path, "b.png", "a/c.png", "a/.hidden.png", "x.txt")
    names, left_out = listing.list_images(tmp_path)
    assert names == ["a/c.png", "b.png"]
    assert left_out == collections.Counter({"hidden": 1, ".txt": 1})
    assert listing.has_images(tmp_path)
    with pytest.raises(DataError, match=r"Cannot list .*gone"):
        listing.list_images(tmp_path / "gone")


def test_names_that_are_no_utf8(tmp_path: pathlib.Path):
    path = os.path.join(os.fsencode(tmp_path), b"train", b"bee", b"\xe9.png")
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(PNG)
    source = sources.FolderSource(tmp_path, "train")
    assert source[0] == {"image": PNG, "label": 0}
    assert os.fsencode(source.describe(0)) == path
    assert np.array_equal(source.labels, [0])
