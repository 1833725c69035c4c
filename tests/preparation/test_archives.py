import io
import pathlib
import re
import shutil
import tarfile

import pytest
from conftest import encode, picture
from miniature import WNIDS, tar, train_images, validation_images, write_archives

from vision_jax.data.archives import Part, tar_members
from vision_jax.errors import DataError
from vision_jax.preparation import archives


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_archives(tmp_path_factory.mktemp("imagenet") / "downloads")


def edited(directory: pathlib.Path, name: str, data: bytes | None) -> pathlib.Path:
    """A copy of the archives in which one is other, or gone."""
    copy = directory.parent / f"copy of {len(list(directory.parent.iterdir()))}"
    shutil.copytree(directory, copy)
    if data is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(data)
    return copy


GOOD = encode(picture(20, 20))


@pytest.mark.parametrize(
    ("archive", "data", "message"),
    [
        (archives.TRAIN, tar({"../n01440764.tar": b""}), r"member named '\.\./n01440764\.tar', which does not belong"),
        (archives.TRAIN, tar({"n01440764.tar": tar({"n02105855_1.JPEG": GOOD})}), "'n02105855_1.JPEG', which does not"),
        (archives.TRAIN, tar({"n01440764.tar": tar({"/n01440764_1.JPEG": GOOD})}), "does not belong"),
        (archives.TRAIN, tar({"n01440764.tar": tar({})}), "n01440764.tar holds no images"),
        (archives.TRAIN, tar({"n01440764.tar": GOOD}), "n01440764.tar is truncated, or is no tar file"),
        (
            archives.TRAIN,
            tar({"n09999999.tar": tar({"n09999999_1.JPEG": GOOD})}),
            "the devkit does not name: n09999999",
        ),
        (archives.TRAIN, 2 * tar({"n01440764.tar": b""})[:512] + bytes(1024), "has n01440764.tar twice"),
        (archives.TRAIN, tar({"n01440764.tar": tar({"n01440764_1.JPEG": GOOD})[:800]}), "truncated"),
        (archives.TRAIN, b"<html>Please log in</html>", "is no tar file"),
        (archives.VALIDATION, tar(validation_images())[:9000], "truncated"),
        (archives.VALIDATION, tar(validation_images())[:512], "truncated"),
        (archives.VALIDATION, tar({"ILSVRC2012_val_00000002.JPEG": GOOD}), "no image number 1"),
        (archives.VALIDATION, tar({"ILSVRC2012_val_00000001.JPEG": GOOD}), "has 1 images, but the devkit labels of 9"),
        (f"{archives.DEVKIT}.tar.gz", None, "holds the labels of its images"),
        (f"{archives.DEVKIT}.tar.gz", b"nothing", "devkit .* cannot be read"),
        (f"{archives.DEVKIT}.tar.gz", tar({"ILSVRC2012_devkit_t12/data/meta.mat": b"x"}), "devkit .* cannot be read"),
        (f"{archives.DEVKIT}.tar.gz", tar({"other": b"x"}), "holds no ILSVRC2012_devkit_t12/data/meta.mat"),
    ],
)
def test_archives_that_are_not_right(
    downloads: pathlib.Path, tmp_path: pathlib.Path, archive: str, data: bytes | None, message: str
):
    with pytest.raises(DataError, match=message):
        archives.ImageNetArchives(edited(downloads, archive, data)).index(tmp_path)


def test_a_damaged_index_is_made_again(downloads: pathlib.Path, tmp_path: pathlib.Path):
    expected = archives.ImageNetArchives(downloads).index(tmp_path).splits
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 2
    for size in (0, 100, -100):
        for path in kept:
            path.write_bytes(path.read_bytes()[:size])
        again = archives.ImageNetArchives(downloads).index(tmp_path).splits
        assert all((again[split] == expected[split]).all() for split in ("train", "validation"))
    assert sorted(tmp_path.iterdir()) == kept


def test_links_in_archives_are_refused(downloads: pathlib.Path, tmp_path: pathlib.Path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("n01440764.tar")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"n01440764\.tar is not a regular file"):
        archives.ImageNetArchives(edited(downloads, archives.TRAIN, file.getvalue())).index(tmp_path)


def test_truncation_at_any_place_is_noticed(downloads: pathlib.Path, tmp_path: pathlib.Path):
    whole = tar({name: data for name, data in train_images().items() if name.startswith(WNIDS[0])})
    length = len(whole.rstrip(b"\0"))
    part = tmp_path / "part.tar"
    for size in [*range(0, length, 1531), *range(0, length, 512)]:
        part.write_bytes(whole[:size])
        with part.open("rb") as file, pytest.raises(DataError, match=r"truncated|no tar file|damaged"):
            list(tar_members(Part(file.fileno(), 0, size, "x"), re.compile(".*")))
