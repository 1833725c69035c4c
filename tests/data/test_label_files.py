import pathlib

import pytest
from conftest import encode, picture

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.data import label_files, sources
from vision_jax.errors import DataError

PNG = encode(picture(9, 9), "PNG")
NAMES = ["n1", "n2"]


@pytest.fixture
def flat(tmp_path: pathlib.Path) -> pathlib.Path:
    """Classes n1 and n2 in train, and four images in val itself."""
    for name in ("train/n1/a.png", "train/n2/b.png", "val/v1.png", "val/v2.png", "val/sub/v3.png", "val/v4.JPEG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def labels_by_name(folder: pathlib.Path, text: str, class_names: list[str] | None = NAMES) -> dict[str, str]:
    path = folder.parent / "labels of val.csv"
    path.write_text(text)
    images = label_files.list_labeled_images(folder, path, class_names)
    return {name.decode(): images.class_names[label] for name, label in zip(images.names, images.labels, strict=True)}


EXPECTED = {"sub/v3.png": "n1", "v1.png": "n2", "v2.png": "n1", "v4.JPEG": "n2"}


@pytest.mark.parametrize(
    "text",
    [
        "v1.png,n2\nv2.png,n1\nsub/v3.png,n1\nv4.JPEG,n2\n",
        "\ufeffImage;Label\r\nv1;n2\r\nv2;n1\r\nv3;n1\r\nv4;n2\r\n",
        "label\tfile name\nn2\tval/v1.png\nn1\t./v2.png\nn1\tdata/val/sub/v3.png\nn2\tv4.JPEG\n",
        # ImageNet's LOC_val_solution.csv: the first word is the class, then come boxes.
        "ImageId,PredictionString\nv1,n2 1 2 3 4 \nv2,n1 1 2 3 4 n1 5 6 7 8\nv3,n1 0 0 9 9\nv4,n2 1 2 3 4\n",
        # Tiny ImageNet's val_annotations.txt.
        "v1.png\tn2\t0\t32\t44\t62\nv2.png\tn1\t1\t1\t1\t1\nv3.png\tn1\t0\t0\t0\t0\nv4.JPEG\tn2\t0\t0\t0\t0\n",
        "v1.png n2\nv2.png n1\nv3.png n1\n\nv4.JPEG n2",
        '"v1.png","n2"\n"v2.png","n1"\nv3,n1\n"v4", "n2"\n',
    ],
)
def test_forms_of_files(flat: pathlib.Path, text: str):
    assert labels_by_name(flat / "val", text) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "v1.png,n2\nv2.png,n3\n",
            r"of val\.csv, line 2: 'n3' is no class of the training split: did you mean n",
        ),
        ("v1.png,n2\nv7.png,n1\nv8.png,n1\n", r"line 2: there is no image 'v7.png' in .*val \(and 1 others"),
        ("v7.png,n2\nv1.png,n1\n", "line 1: there is no image 'v7.png'"),
        ("name,label\nv1.png,n2\nv2.png,n1\nv1,n2\n", "line 4: 'v1' is in line 2 already"),
        ("v1.png,n2\nv2.png\n", "line 2: 'v2.png' has no second column"),
        ("name,x,label\nv1.png,0,n2\nv2.png,n1\n", "line 3: it has 2 columns, fewer than the header"),
        ("name,label\n", "names no image"),
        ("", "names no image"),
        ('v1.png,"n2\nv2', "cannot be read"),
        ("v1.png,n\0\n", "cannot be read|no class"),
    ],
)
def test_what_is_wrong_with_a_file(flat: pathlib.Path, text: str, message: str):
    with pytest.raises(DataError, match=message) as caught:
        labels_by_name(flat / "val", text)
    assert "\n" not in str(caught.value)


def test_names_of_several_images(flat: pathlib.Path):
    (flat / "val" / "v3.png").write_bytes(PNG)
    with pytest.raises(DataError, match="'v3' in a file of labels is that of 2 images"):
        labels_by_name(flat / "val", "v3,n1\n")
    assert labels_by_name(flat / "val", "v3.png,n1\nsub/v3,n2\n") == {"v3.png": "n1", "sub/v3.png": "n2"}


def test_classes_of_a_training_split_are_those_in_the_file(flat: pathlib.Path, caplog: pytest.LogCaptureFixture):
    found = labels_by_name(flat / "val", "v1.png,a golden retriever\nv2.png,7\nv3,7\n", None)
    assert found == {"v1.png": "a golden retriever", "v2.png": "7", "sub/v3.png": "7"}
    assert "1 images that the file of labels does not name" in caplog.text


def source(directory: pathlib.Path, *, train: bool = False, **fields: str) -> sources.Source:
    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.val_split = "folder", str(directory), "val"
    for name, value in fields.items():
        config.data[name] = value
    return build.create_source(config, train=train)


def test_validation_split_with_a_file(flat: pathlib.Path):
    (flat / "val" / "sub" / "v3.png").rename(flat / "val" / "v3.png")
    (flat / "val" / "sub").rmdir()
    with pytest.raises(DataError, match=r"val holds 4 images, but no class folders.* data\.val_labels"):
        source(flat)
    text = "name,label\nv1.png,n2\nv2.png,n1\nv3.png,n1\nv4.JPEG,n2\n"
    (flat / "mine.csv").write_text(text)
    for where in ("mine.csv", str(flat / "mine.csv")):
        val = source(flat, val_labels=where)
        assert [tuple(val[i].values()) for i in range(4)] == [(PNG, 1), (PNG, 0), (PNG, 0), (PNG, 1)]
        assert list(val.class_names) == NAMES
    with pytest.raises(DataError, match=r"no file of labels 'other\.csv'"):
        source(flat, val_labels="other.csv")
    for name in ("val.csv", "val_labels.csv", "LOC_val_solution.csv", "val/labels.csv"):
        (flat / name).write_text(text)  # found without being named
        assert [source(flat)[i]["label"] for i in range(4)] == [1, 0, 0, 1]
        (flat / name).unlink()
    # The other way round: the training split has a file.
    other = source(flat, train=True, train_split="val", train_labels="mine.csv")
    assert (list(other.class_names), len(other)) == (NAMES, 4)
    assert list(source(flat, train_split="val", train_labels="mine.csv", val_split="train").class_names) == NAMES


def test_class_folders_are_preferred_to_files_that_are_merely_there(flat: pathlib.Path):
    (flat / "train.csv").write_text("these,are\nother,things\n")
    assert len(source(flat, train=True)) == 2
