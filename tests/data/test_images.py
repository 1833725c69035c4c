"""Images of one's own: files, folders and archives."""

import io
import os
import pathlib
import pickle
import tarfile
import zipfile

import pytest
from conftest import encode, picture

from vision_jax.data import archives
from vision_jax.data.images import ImageSource
from vision_jax.errors import DataError

FILES = {"b/2.png": b"two", "a/1.JPG": b"one", "a/notes.txt": b"x", "__MACOSX/a/._1.JPG": b"x", "3.jpeg": b"three"}


def write_tar(path: pathlib.Path, mode: str) -> None:
    with tarfile.open(path, mode) as tar:
        link = tarfile.TarInfo("a/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)


def write_folder(path: pathlib.Path) -> None:
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)


WRITERS = {
    "x.tar": lambda path: write_tar(path, "w"),
    "x.tar.gz": lambda path: write_tar(path, "w:gz"),
    "x.tgz": lambda path: write_tar(path, "w:gz"),
    "x.tar.bz2": lambda path: write_tar(path, "w:bz2"),
    "x.tar.xz": lambda path: write_tar(path, "w:xz"),
    "x.zip": write_zip,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_in_folders_and_archives(name: str, tmp_path: pathlib.Path):
    path = tmp_path / name
    WRITERS[name](path)
    source = ImageSource.find([path])
    for copy in (source, pickle.loads(pickle.dumps(source))):
        found = {copy.describe(i): copy[i]["image"] for i in range(len(copy))}
        assert list(found.items()) == [(f"{path}/{n}", FILES[n]) for n in ("3.jpeg", "a/1.JPG", "b/2.png")]


def test_files_count_whatever_they_are_called_and_in_their_order(tmp_path: pathlib.Path):
    names = ["z", "a.dat", "m.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    source = ImageSource.find([tmp_path / name for name in names])
    assert [source[i]["image"].decode() for i in range(3)] == names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.with_name("gone"), "There is no"),
        (lambda path: path.mkdir() or path, "holds no image"),
        (lambda path: path.with_suffix(".tar").write_bytes(b"x" * 700) and path.with_suffix(".tar"), "no tar file"),
        (lambda path: path.with_suffix(".zip").write_bytes(b"x" * 700) and path.with_suffix(".zip"), "is no zip file"),
        (lambda path: path.with_suffix(".tgz").write_bytes(b"\x1f\x8bx") and path.with_suffix(".tgz"), "cut off"),
    ],
)
def test_what_holds_no_images(make, message: str, tmp_path: pathlib.Path):
    with pytest.raises(DataError, match=message):
        ImageSource.find([make(tmp_path / "x")])


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_truncated_archives(suffix: str, tmp_path: pathlib.Path):
    path = tmp_path / f"x{suffix}"
    WRITERS[path.name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=r"truncated|cut off|damaged|no tar file|no zip file"):
        archives.open_archive(path)


def test_a_file_that_cannot_be_read_is_damaged(tmp_path: pathlib.Path):
    path = tmp_path / "1.png"
    path.write_bytes(encode(picture(8, 8), "PNG"))
    source = ImageSource.find([path])
    os.unlink(path)
    with pytest.raises(ValueError, match="No such file"):
        source[0]
