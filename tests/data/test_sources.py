import json
import pathlib
import pickle
import shutil
from typing import Any

import numpy as np
import pytest
from conftest import encode, picture
from miniature import write_tfrecord

from vision_jax import build
from vision_jax import config as config_lib
from vision_jax.commands import prepare
from vision_jax.data import decode, digits, sources, tfds_format
from vision_jax.data.arrayrecord import ArrayRecordFiles
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError


def write(directory: pathlib.Path, **splits: int) -> pathlib.Path:
    """A data set in tfds' layout with so many examples in each split."""
    directory.mkdir(parents=True)
    examples = {name: [(encode(picture(20, 24, seed=i)), i % 3) for i in range(n)] for name, n in splits.items()}
    tfds_format.write_dataset(directory, "mine", examples, class_names=["a", "b", "c"])
    return directory


def test_tfds_source_agrees_with_tfds(tmp_path: pathlib.Path):
    import tensorflow_datasets as tfds

    directory = write(tmp_path / "mine" / "1.0.0", train=10, validation=4)
    theirs = tfds.builder_from_directory(str(directory)).as_data_source(
        "train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for where in (directory, tmp_path / "mine", tmp_path):
        mine = sources.TfdsSource(where, "train")
        assert (len(mine), mine.num_classes, list(mine.class_names)) == (10, 3, ["a", "b", "c"])
        assert [mine[i] for i in range(10)] == [{key: theirs[i][key] for key in ("image", "label")} for i in range(10)]
    part = sources.TfdsSource(directory, "train[50%:]")
    assert [part[i] for i in range(5)] == [mine[i] for i in range(5, 10)]


def test_tfrecords_are_read_in_place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = write(tmp_path / "1.0.0", train=7)
    expected = sources.TfdsSource(directory, "train")
    (array_record,) = directory.glob("*.array_record-*")
    write_tfrecord(
        directory / array_record.name.replace("array_record", "tfrecord"),
        [ArrayRecordFiles([array_record], [7])[i] for i in range(7)],
    )
    array_record.unlink()
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    mine = sources.TfdsSource(directory, "train[2:5]+train[6:]")
    again = pickle.loads(pickle.dumps(mine))
    for source in (mine, again):
        assert [source[i] for i in range(4)] == [expected_example(i) for i in (2, 3, 4, 6)]
    assert expected.class_names == mine.class_names
    info.write_text(info.read_text().replace('"7"', '"8"'))
    with pytest.raises(DataError, match="has 7 records, and the metadata say 8"):
        sources.TfdsSource(directory, "train")


def expected_example(i: int) -> dict[str, Any]:
    """What `write` has written."""
    return {"image": encode(picture(20, 24, seed=i)), "label": i % 3}


def test_files_that_do_not_fit_the_metadata_are_named(tmp_path: pathlib.Path):
    directory = write(tmp_path / "1.0.0", train=4)
    source = sources.TfdsSource(directory, "train")
    (path,) = directory.glob("*.array_record-*")
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"4"', '"5"'))
    with pytest.raises(DataError, match="has 4 records, and the data set's metadata say 5"):
        sources.TfdsSource(directory, "train")[0]
    assert source[3] == expected_example(3)
    source.close()
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        source[0]


def test_subset_is_the_same_for_every_seed_and_grows(image_folder: pathlib.Path):
    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.train_examples = "folder", str(image_folder), 7
    whole = sources.FolderSource(image_folder, "train")
    few = build.create_source(config, train=True)
    config.seed, config.data.train_examples = 1, 12
    more = build.create_source(config, train=True)
    assert (len(few), len(more), few.num_classes) == (7, 12, 3)
    assert {few.describe(i) for i in range(7)} < {more.describe(i) for i in range(12)}
    paths = [whole.describe(i) for i in range(24)]
    assert [few[i] for i in range(7)] == [whole[paths.index(few.describe(i))] for i in range(7)]
    for source in (whole, few):
        assert sources.read_labels(source).tolist() == [source[i]["label"] for i in range(len(source))]
    assert len(build.create_source(config, train=False)) == 9
    config.data.train_examples = 25
    with pytest.raises(DataError, match="more than the 24"):
        build.create_source(config, train=True)


def test_a_subset_of_each_class(image_folder: pathlib.Path):
    """The same for every seed, and within that of a larger count."""
    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.train_per_class = "folder", str(image_folder), 2
    whole = sources.FolderSource(image_folder, "train")
    found = {}
    for seed, count in ((0, 2), (1, 2), (0, 5)):
        config.seed, config.data.train_per_class = seed, count
        source = build.create_source(config, train=True)
        assert np.bincount(sources.read_labels(source)).tolist() == [count] * 3
        found[seed, count] = {source.describe(i) for i in range(len(source))}
    assert found[0, 2] == found[1, 2] < found[0, 5] < {whole.describe(i) for i in range(24)}
    assert len(build.create_source(config, train=False)) == 9
    config.data.train_per_class = 9
    with pytest.raises(DataError, match=r"train_per_class is 9, and the class 'ant' has 8 examples"):
        build.create_source(config, train=True)
    config.data.train_examples = 3
    with pytest.raises(ConfigError, match=r"data\.train_examples and data\.train_per_class are set"):
        config_lib.validate(config, 1)


def test_a_subset_that_a_file_lists(image_folder: pathlib.Path, tmp_path: pathlib.Path):
    """By names of files or paths; of a folder, and of records that have names."""
    names, path = ["cat/cat3.jpg", "ant2.jpg", "", "bee7.jpg"], tmp_path / "names.txt"
    path.write_text("\n".join(names))
    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.train_list = "folder", str(image_folder), str(path)
    source = build.create_source(config, train=True)
    expected = [(image_folder / "train" / name).read_bytes() for name in ("ant/ant2.jpg", "bee/bee7.jpg", names[0])]
    assert [source[i]["image"] for i in range(len(source))] == expected
    assert [source[i]["label"] for i in range(3)] == [0, 1, 2]

    prepared = tmp_path / "prepared"
    assert prepare.main([str(image_folder), str(prepared), "--encoding=original"]) == 0
    config.data.source, config.data.dir = "tfds", str(prepared)
    source = build.create_source(config, train=True)
    assert sorted(source[i]["image"] for i in range(len(source))) == sorted(expected)

    config.data.source, config.data.dir = "folder", str(image_folder)
    (image_folder / "train" / "ant" / "bee7.jpg").write_bytes(expected[0])
    for text, message in (
        ("bee7.jpg", "has names of several images each, so give CLASS/IMAGE: bee7.jpg"),
        ("ant/ant1.jpg\nant1.jpg", "lists 1 images twice"),
        ("ant9.jpg\nant1.jpg", "lists 1 images that are not in the split: ant9.jpg"),
        ("\n", "which lists no image"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message.replace(".", r"\.")):
            build.create_source(config, train=True)
    config.data.train_list = str(tmp_path / "none.txt")
    with pytest.raises(DataError, match="which cannot be read"):
        build.create_source(config, train=True)
    config.data.source, config.data.train_list = "synthetic", str(path)
    path.write_text("a.jpg")
    with pytest.raises(DataError, match="the images of the training split have no names"):
        build.create_source(config, train=True)


def test_tfds_source_says_what_is_wrong(tmp_path: pathlib.Path):
    directory = write(tmp_path / "one" / "1.0.0", train=4)
    with pytest.raises(DataError, match="no split 'validation': there are: train"):
        sources.TfdsSource(directory, "validation")
    with pytest.raises(DataError, match="is empty"):
        sources.TfdsSource(directory, "train[:0]")
    with pytest.raises(DataError, match="is empty"):
        sources.TfdsSource(directory, "train[3:1]")
    with pytest.raises(DataError, match="cannot give the split"):
        sources.TfdsSource(directory, "train[1:2:3]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no features\.json"):
        sources.TfdsSource(tmp_path / "empty", "train")
    assert len(sources.TfdsSource(directory, "train[:50%]+train[75%:]")) == 3
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(DataError, match="several data sets"):
        sources.TfdsSource(tmp_path, "train")
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "riegeli"))
    with pytest.raises(DataError, match="only array_record and tfrecord"):
        sources.TfdsSource(directory, "train")
    info.write_text("{")
    with pytest.raises(DataError, match=r"metadata in .* cannot be read"):
        sources.TfdsSource(directory, "train")


def test_image_and_label_among_several():
    """CIFAR-100 has classes of classes, Oxford's pets have species and masks."""
    import tensorflow_datasets as tfds

    image, mask = tfds.features.Image(shape=(None, None, 3)), tfds.features.Image(shape=(None, None, 1))
    fine, coarse = tfds.features.ClassLabel(num_classes=100), tfds.features.ClassLabel(num_classes=20)
    features = {"coarse_label": coarse, "segmentation_mask": mask, "image": image, "label": fine}
    assert tfds_format.image_and_label(features, pathlib.Path("mine")) == ("image", "label")
    assert tfds_format.image_and_label({"photo": image, "class": fine}, pathlib.Path("mine")) == ("photo", "class")
    with pytest.raises(DataError, match="mine has 2 features of type ClassLabel"):
        tfds_format.image_and_label({"image": image, "fine": fine, "coarse": coarse}, pathlib.Path("mine"))
    assert tfds_format.image_and_label(features, pathlib.Path("mine"), "coarse_label") == ("image", "coarse_label")
    for name in ("coarse", "image"):
        with pytest.raises(DataError, match=f"mine has no class label '{name}'"):
            tfds_format.image_and_label(features, pathlib.Path("mine"), name)


def test_a_label_of_another_name(tmp_path: pathlib.Path):
    """Of a data set that is written with one label, and whose metadata then have two."""
    directory = write(tmp_path / "1.0.0", train=4)
    path = directory / "features.json"
    features = json.loads(path.read_text())
    described = features["featuresDict"]["features"]
    described["kind"] = described["label"]
    path.write_text(json.dumps(features))
    usual, other = (sources.TfdsSource(directory, "train", label) for label in (None, "kind"))
    assert usual[1] == expected_example(1)
    assert usual.fingerprint() != other.fingerprint()
    with pytest.raises(IndexError):  # the records have no such feature
        _ = other[1]


def test_folder_source(image_folder: pathlib.Path):
    source = sources.FolderSource(image_folder, "train")
    assert (len(source), source.num_classes, source.class_names) == (24, 3, ["ant", "bee", "cat"])
    assert [source[i]["label"] for i in range(24)] == [0] * 8 + [1] * 8 + [2] * 8
    assert source[9]["image"] == (image_folder / "train" / "bee" / "bee1.jpg").read_bytes()
    assert source.describe(9).endswith("bee1.jpg")


def test_folder_source_says_what_is_wrong(image_folder: pathlib.Path):
    with pytest.raises(DataError, match=r"\['train', 'validation'\]"):
        sources.FolderSource(image_folder, "test")
    (image_folder / "flat").mkdir()
    with pytest.raises(DataError, match="no class folders: a class needs"):
        sources.FolderSource(image_folder, "flat")
    (image_folder / "flat" / "dog").mkdir()
    (image_folder / "flat" / "dog" / "film.mp4").touch()
    with pytest.raises(DataError, match=r"no images in its class folders \(dog\); there is 1 \.mp4"):
        sources.FolderSource(image_folder, "flat")
    (image_folder / "flat" / "1.jpg").touch()
    with pytest.raises(DataError, match=r"holds 1 images, but no class folders.* CSV file .* by data\.val_labels"):
        sources.FolderSource(image_folder, "flat", labels_option="data.val_labels")


def test_fingerprints_are_those_of_the_data(image_folder: pathlib.Path, tmp_path: pathlib.Path):
    """Equal for copies elsewhere, other for data that differ in a name, a record, a shard or an argument."""
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    here, there = sources.FolderSource(image_folder, "train"), sources.FolderSource(copy, "train")
    assert here.fingerprint() == there.fingerprint()
    seen = {here.fingerprint(), sources.FolderSource(copy, "validation").fingerprint()}
    (copy / "train" / "bee" / "bee1.jpg").unlink()
    seen.add(sources.FolderSource(copy, "train").fingerprint())
    (copy / "train" / "bee").rename(copy / "train" / "wasp")
    seen.add(sources.FolderSource(copy, "train").fingerprint())
    seen |= {sources.SubsetSource(here, np.arange(n)).fingerprint() for n in (3, 4)}
    first, second = write(tmp_path / "a" / "1.0.0", train=5), write(tmp_path / "b" / "1.0.0", train=5)
    whole = sources.TfdsSource(first, "train")
    assert whole.fingerprint() == sources.TfdsSource(second, "train").fingerprint()
    seen |= {whole.fingerprint(), sources.TfdsSource(first, "train[:3]").fingerprint()}
    seen.add(sources.TfdsSource(write(tmp_path / "c" / "1.0.0", train=6), "train").fingerprint())
    seen |= {sources.SyntheticSource(100, 10, 32, seed=seed).fingerprint() for seed in (0, 1)}
    assert sources.SyntheticSource(100, 10, 32, seed=0).fingerprint() in seen
    assert len(seen) == 11
    (shard,) = second.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-10])  # a copy that is not whole
    assert whole.fingerprint() != sources.TfdsSource(second, "train").fingerprint()


def test_synthetic_source_is_a_function_of_the_seed():
    source = sources.SyntheticSource(1000, 10, 32, seed=0)
    same, other = sources.SyntheticSource(1000, 10, 32, seed=0), sources.SyntheticSource(1000, 10, 32, seed=1)
    assert [source[i] for i in range(50)] == [same[i] for i in range(50)]
    assert [source[i] for i in range(50)] != [other[i] for i in range(50)]
    assert {source[i]["label"] for i in range(1000)} == set(range(10))
    assert decode.image_size(source[0]["image"]) == (32, 32)


def test_digits_are_scikit_learns(cache: pathlib.Path):
    from sklearn.datasets import load_digits

    directory = digits.prepare(cache / "vision_jax")
    train, validation = (sources.TfdsSource(directory, split) for split in ("train", "validation"))
    assert (len(train), len(validation), train.num_classes) == (1437, 360, 10)
    originals, labels = load_digits(return_X_y=True)
    counts = np.bincount([validation[i]["label"] for i in range(360)])
    assert (np.abs(counts - np.bincount(labels) * 360 / 1797) < 1).all()  # stratified

    # Averaging 4x4 pixels of the JPEG gives back an image of the original set, with its label, and each just once.
    levels = []
    for source in (train, validation):
        for i in range(0, len(source), 9):
            pixels = decode.decode(source[i]["image"], 1)[:, :, 0].reshape(8, 4, 8, 4).mean((1, 3)) * 16 / 255
            distance = np.abs(originals.reshape(-1, 8, 8) - pixels).mean((1, 2))
            nearest = int(distance.argmin())
            assert distance[nearest] < 1.2
            assert labels[nearest] == source[i]["label"]
            levels.append(nearest)
    assert len(set(levels)) == len(levels)


def test_digits_prepared_by_many_at_once(tmp_path: pathlib.Path):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        directories = list(pool.map(lambda _: digits.prepare(tmp_path), range(4)))
    assert set(directories) == {tmp_path / "digits" / digits.VERSION}
    assert [path.name for path in (tmp_path / "digits").iterdir()] == [digits.VERSION]


def test_create_source(image_folder: pathlib.Path):
    config = config_lib.default_config()
    config.data.source, config.data.dir = "folder", str(image_folder)
    assert len(build.create_source(config, train=True)) == 24
    assert len(build.create_source(config, train=False)) == 9
    config.data.source = "synthetic"
    assert len(build.create_source(config, train=True)) == 1_281_167


def test_records_are_mapped_in_their_order_and_one_that_cannot_be_read_is_named():
    class Torn:
        def __len__(self) -> int:
            return 2500  # more than a thread takes at once

        def __getitem__(self, index: int) -> dict:
            if index == 2100:
                raise OSError("torn")
            return {"label": 2 * index}

        def describe(self, index: int) -> str:
            return f"record {index}"

    found = sources.map_records(Torn(), lambda index, record: (index, record["label"]), 2)
    assert [next(found) for _ in range(2000)] == [(index, 2 * index) for index in range(2000)]
    with pytest.raises(DataError, match=r"^Cannot read record 2100: torn\. Repair or remove it\.$"):
        list(found)


def test_balanced_labels_are_read_once_a_run(image_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    config = config_lib.default_config()
    config.data.source, config.data.dir, config.data.balanced, config.batch_size = "folder", str(image_folder), True, 8
    source = build.create_source(config, train=True)
    read = []
    monkeypatch.setattr("vision_jax.assembly.inputs.read_labels", lambda *_: read.append(1) or source.labels)
    order = build.make_order(config, source)
    plan, mesh = config_lib.make_plan(config, len(source)), sharding.make_mesh(config.mesh)
    for rewinds in ([], [(3, 1)]):
        with build.make_train_loader(config, plan, mesh, source, rewinds, order=order):
            assert len(read) == 1
