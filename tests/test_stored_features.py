"""Features in files: they are the model's, survive interruptions, and are measured as scikit-learn measures them."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import sklearn.linear_model
import sklearn.neighbors
from conftest import encode, picture
from stored_features import SIZE, clusters, random_model, store

import vision_jax
from vision_jax import features, pretrained
from vision_jax.commands import common
from vision_jax.commands import features as command_line
from vision_jax.data import order, tfds_format
from vision_jax.data.images import ImageSource
from vision_jax.data.sources import SubsetSource, TfdsSource
from vision_jax.errors import ConfigError, DataError
from vision_jax.features import Images, Options

COUNT = 21
MODEL = vision_jax.create_model("lenet5", num_classes=10)
OPTIONS = Options(dtype="float32", shard_size=9, batch_size=8)


@pytest.fixture(scope="module")
def trained():
    return random_model()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Images of the model's size, the names of two of which are odd: those of the last ones by name."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        name = {19: "x\ny.png", 20: "z\udcff.png"}.get(i, f"{i:02d}.png")
        PIL.Image.fromarray(picture(SIZE, SIZE, seed=i)[:, :, 0]).save(folder / name)
    return folder


class Pictured:
    """A source of the photographs, with labels; reading some numbers fails."""

    num_classes, class_names = 3, ("a", "b", "c")

    def __init__(self, photos: pathlib.Path, failing: int | None = None):
        self.images, self.failing = ImageSource.find([photos]), failing
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        if index == self.failing:
            raise DataError("the cable was pulled")
        return {**self.images[index], "label": index % 3}

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def fingerprint(self) -> str:
        return self.images.fingerprint()


def expected(trained, paths: list[pathlib.Path]) -> np.ndarray:
    """Returns features of Pillow's pixels."""
    pixels = np.stack([np.asarray(PIL.Image.open(path), np.float32)[:, :, None] for path in paths])
    variables = {"params": jax.device_get(trained.variables["params"])}
    return np.asarray(MODEL.apply(variables, jnp.asarray((pixels / 255 - 0.3) / 0.35), train=False, method="features"))


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def whole(trained, photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("whole")
    done = features.extract(trained, Images(Pictured(photos), "photos"), directory, OPTIONS)
    assert done == features.Extracted(rows=COUNT, damaged=0, shards=3, made=3, dim=84)
    return directory


def test_they_are_the_models(trained, photos: pathlib.Path, whole: pathlib.Path):
    stored = features.read(whole, verify=True)
    paths = sorted(photos.iterdir())
    assert stored.names == [str(path) for path in paths]
    assert stored.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert (stored.label_name(1), stored.about.digest) == ("b", trained.digest)
    wanted = expected(trained, paths)
    np.testing.assert_allclose(np.asarray(stored.features), wanted, rtol=1e-4, atol=1e-5)
    everything = np.asarray(stored.features)
    for index in (slice(7, 11), slice(0, 0), slice(20, 2, -3), [20, 0, 9, 9], np.array([8])):
        np.testing.assert_array_equal(stored.features[index], everything[index])


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, photos: pathlib.Path, whole: pathlib.Path, tmp_path):
    directory = tmp_path / "f"
    with pytest.raises(DataError, match="the cable was pulled"):
        features.extract(trained, Images(Pictured(photos, failing=13), "photos"), directory, OPTIONS)
    with pytest.raises(DataError, match=r"f are not complete, 1 of 3 shards: run the command"):
        features.read(directory)
    # As a process leaves it that is killed in its second shard.
    (directory / "features-00001.npy").write_bytes(b"half of it")
    (directory / ".labels-00001.npy.tmp").write_bytes(b"")
    source = Pictured(photos)
    done = features.extract(trained, Images(source, "photos"), directory, OPTIONS)
    assert (done.made, done.rows) == (2, COUNT)
    assert min(source.read) == 9
    assert contents(directory) == contents(whole)
    source.read.clear()
    assert features.extract(trained, Images(source, "photos"), directory, OPTIONS).made == 0
    assert not source.read


def test_damaged_files_are_refused_and_made_again(trained, photos: pathlib.Path, whole: pathlib.Path, tmp_path, caplog):
    for name, data in contents(whole).items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "features-00001.npy"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:500])
    with pytest.raises(DataError, match=r"features-00001.npy has 500 bytes instead of \d+: run the command that made"):
        features.read(tmp_path)
    data[-1] ^= 1
    path.write_bytes(data)
    features.read(tmp_path)  # which does not read everything
    with pytest.raises(DataError, match=r"features-00001.npy has been altered"):
        features.read(tmp_path, verify=True)
    assert features.extract(trained, Images(Pictured(photos), "photos"), tmp_path, OPTIONS).made == 1
    assert "features-00001.npy has been altered: its SHA-256 is another: this shard is made again" in caplog.text
    assert contents(tmp_path) == contents(whole)
    (tmp_path / "features.json").write_text('{"format": 1')
    with pytest.raises(DataError, match=r"features.json is damaged"):
        features.read(tmp_path)
    (tmp_path / "features.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"is of format 2, and this version reads 1"):
        features.read(tmp_path)
    with pytest.raises(DataError, match="holds no features"):
        features.read(photos)


def test_a_data_set_of_tfds_is_no_damaged_features(trained, photos: pathlib.Path, tmp_path: pathlib.Path):
    """tfds too calls a file features.json: nobody is told to delete the data set."""
    (tmp_path / "features.json").write_text('{"pythonClassName": "FeaturesDict", "featuresDict": {}}')
    message = "of another program, such as tfds: .* holds no features"
    with pytest.raises(DataError, match=message):
        features.read(tmp_path)
    with pytest.raises(DataError, match=message):
        features.extract(trained, Images(Pictured(photos), "photos"), tmp_path, OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["features.json"]


def test_other_features_are_not_gone_on_with(trained, photos: pathlib.Path, whole: pathlib.Path):
    before = contents(whole)
    images = Images(Pictured(photos), "photos")
    half = Images(SubsetSource(Pictured(photos), np.arange(10)), "half")
    for arguments, message in (
        ((random_model(1), images, whole, OPTIONS), "the digest of the weights and the preprocessing is"),
        ((trained, images, whole, dataclasses.replace(OPTIONS, dtype="float16")), "--dtype is float32 there, and flo"),
        ((trained, half, whole, OPTIONS), "the fingerprint of the images is .*; the number of images is 21 there, and"),
        ((trained, images, photos, OPTIONS), r"photos\d, which holds no features but 00.png: give another folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            features.extract(*arguments)
    assert contents(whole) == before


def test_damaged_images(trained, photos: pathlib.Path, tmp_path: pathlib.Path):
    """As many as are allowed are left out, whatever shard they are in; one more is an error that names it."""
    source = Pictured(photos)
    good = source.images
    broken = {4, 20}

    class Broken(Pictured):
        def __getitem__(self, index: int) -> dict:
            return {"image": b"nothing" if index in broken else good[index]["image"], "label": 0}

    images = Images(Broken(photos), "photos")
    with pytest.raises(DataError, match=r"Cannot decode .*04\.png: "):
        features.extract(trained, images, tmp_path / "none", OPTIONS)
    with pytest.raises(DataError, match=r"2 images are damaged, such as .*z\?\.png: repair or remove them, or raise"):
        features.extract(trained, images, tmp_path / "one", dataclasses.replace(OPTIONS, max_bad=1))
    done = features.extract(trained, images, tmp_path / "two", dataclasses.replace(OPTIONS, max_bad=2))
    assert (done.rows, done.damaged) == (COUNT - 2, 2)
    stored = features.read(tmp_path / "two")
    assert [shard.damaged for shard in stored.shards] == [(4,), (), (20,)]
    assert stored.numbers.tolist() == [i for i in range(COUNT) if i not in broken]
    assert stored.names == [good.describe(i) for i in stored.numbers]
    paths = [pathlib.Path(name) for name in stored.names]
    np.testing.assert_allclose(np.asarray(stored.features), expected(trained, paths), rtol=1e-4, atol=1e-5)
    broken |= set(range(COUNT))
    with pytest.raises(DataError, match="All 21 images are damaged"):
        features.extract(trained, images, tmp_path / "all", dataclasses.replace(OPTIONS, max_bad=COUNT))


@pytest.mark.parametrize(
    ("scale", "message"), [(np.nan, "are not finite: the weights"), (100.0, "do not fit float16: use --dtype=float32")]
)
def test_numbers_that_cannot_be_stored(scale: float, message: str, photos: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(DataError, match=rf"The features of .*00.png {message}.* \(9 images of 9 here\)"):
        features.extract(
            random_model(scale=scale),
            Images(Pictured(photos), "photos"),
            tmp_path / "f",
            dataclasses.replace(OPTIONS, dtype="float16"),
        )


def test_heads_beside_the_model_do_not_count(photos: pathlib.Path, tmp_path: pathlib.Path):
    rotation = random_model(objective="rotation")
    assert "rotation" in rotation.variables["params"]
    features.extract(rotation, Images.of_paths([str(photos)]), tmp_path / "f", Options(dtype="float16", batch_size=8))
    stored = features.read(tmp_path / "f")
    assert (stored.labels, stored.label_name(0), stored.features.dtype) == (None, None, np.float16)
    wanted = expected(rotation, sorted(photos.iterdir()))
    np.testing.assert_allclose(np.asarray(stored.features, np.float32), wanted, rtol=2e-3, atol=1e-4)


def test_files_of_a_prepared_data_set_have_their_names(trained, tmp_path: pathlib.Path):
    """Also those that are longer than what travels with a batch, and records that have none."""
    names = [b"ant/1.jpg", b"bee/\xff.jpg", b"n" * 300 + b".jpg", None]
    data = [tfds_format.serialize_example(encode(picture(40, 40, i)), i % 2, name) for i, name in enumerate(names)]
    (tmp_path / "data").mkdir()
    writer = tfds_format.open_shard(tmp_path / "data" / tfds_format.shard_name("mine", "train", 0, 1))
    for record in data:
        writer.write(record)
    writer.close()
    sizes = {"train": sum(map(len, data))}
    tfds_format.write_metadata(tmp_path / "data", "mine", {"train": [4]}, sizes, ["ant", "bee"], file_names=True)
    source = TfdsSource(tmp_path / "data", "train")
    features.extract(trained, Images(source, "mine"), tmp_path / "f", Options(batch_size=8))
    stored = features.read(tmp_path / "f")
    assert stored.names[:2] == ["ant/1.jpg", "bee/\udcff.jpg"]
    assert stored.names[2].startswith("record 2 (nnn")
    assert stored.names[3].startswith("record 3 of the split 'train'")
    source.close()


# ---- Measures


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[features.Features, features.Features]:
    root = tmp_path_factory.mktemp("splits")
    return store(root / "train", *clusters(400, 8, 5, seed=0)), store(root / "val", *clusters(150, 8, 5, seed=1))


def test_measures_against_scikit_learn(splits):
    (train, val) = splits
    x, y, queries, wanted = (np.asarray(v) for v in (train.features, train.labels, val.features, val.labels))
    options = features.Protocols(k=7, temperature=0.2, ridge_l2=10.0, logistic_l2s=(0.1, 1000.0))
    found = features.measure(["knn", "ridge", "logistic", "probe"], train, val, options)

    def weights(distances):
        return np.exp((1 - distances) / 0.2)

    knn = sklearn.neighbors.KNeighborsClassifier(7, metric="cosine", weights=weights, algorithm="brute").fit(x, y)
    assert found["knn"]["top1"] == pytest.approx(knn.score(queries, wanted))
    mean, std = x.mean(0), x.std(0)
    ridge = sklearn.linear_model.RidgeClassifier(alpha=10.0).fit((x - mean) / std, y)
    assert found["ridge"]["top1"] == pytest.approx(ridge.score((queries - mean) / std, wanted), abs=0.01)
    held_out = np.isin(np.arange(400), order.permutation(0, 0, 400)[:80])
    scores = {}
    for l2 in options.logistic_l2s:
        model = sklearn.linear_model.LogisticRegression(C=1 / l2, max_iter=2000).fit(x[~held_out], y[~held_out])
        scores[l2] = model.score(x[held_out], y[held_out])
    best = max(scores, key=scores.get)
    model = sklearn.linear_model.LogisticRegression(C=1 / best, max_iter=2000).fit(x, y)
    accuracy = model.score(queries, wanted)
    assert (found["logistic"]["top1"], found["logistic"]["l2"]) == (pytest.approx(accuracy, abs=0.01), best)
    tried = found["probe"]["rates"]
    chosen = tried["learning_rates"].index(found["probe"]["learning_rate"])
    assert found["probe"]["top1"] == tried["top1"][chosen] == max(tried["top1"]) == pytest.approx(accuracy, abs=0.05)
    one = features.measure(["logistic"], train, val, features.Protocols(logistic_l2s=(best,)))
    assert one["logistic"] == {name: found["logistic"][name] for name in ("top1", "top5", "l2")}


def test_what_cannot_be_measured(splits, tmp_path: pathlib.Path, caplog):
    train, val = splits
    x, y = clusters(20, 8, 5, seed=2)
    others = store(tmp_path / "digest", x, y, digest="1", model="other")
    unlabeled = store(tmp_path / "unlabeled", x)
    classes = store(tmp_path / "classes", x, y, class_names=("a", "b", "c", "d", "e"))
    for validation, message in (
        (others, r"are of different models or preprocessing \(none, nowhere; other, nowhere\)"),
        (unlabeled, "have no labels"),
        (classes, "are of other classes"),
    ):
        with pytest.raises(DataError, match=message):
            features.measure(["knn"], train, validation)
    with pytest.raises(ConfigError, match="There is no measure 'kn': did you mean knn"):
        features.measure(["kn"], train, val)
    assert features.measure(["knn"], train, train, features.Protocols(k=1))["knn"]["top1"] == 1
    assert "these are no results on unseen images" in caplog.text
    for options, message in (({"k": 0}, "--k is 0"), ({"ridge_l2": -1.0}, "--ridge_l2 is -1.0: give positive")):
        with pytest.raises(ConfigError, match=message):
            features.Protocols(**options)


# ---- The command


@pytest.fixture(scope="module")
def weights(trained, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("weights") / "lenet5.safetensors"
    safetensors.numpy.save_file(pretrained.to_torch("lenet5", jax.device_get(trained.variables)), path)
    return path


def test_the_command(weights: pathlib.Path, image_folder: pathlib.Path, tmp_path: pathlib.Path, capsys):
    """Splits of folders, numbered by their own classes, are written and measured."""
    model = ["--model=lenet5", f"--pretrained={weights}", "--config.data.source=folder"]
    data = [f"--config.data.dir={image_folder}", "--batch_size=8"]
    for split, count in (("train", 24), ("validation", 9)):
        assert command_line.main([*model, *data, f"--split={split}", f"--output={tmp_path / split}"]) == 0
        assert f"84 features of {count} images; lenet5" in capsys.readouterr().out
    stored = features.read(tmp_path / "validation")
    assert (stored.about.class_names, stored.about.split) == (("ant", "bee", "cat"), "validation")
    arguments = ["--measure=knn,ridge", f"--train={tmp_path / 'train'}", f"--val={tmp_path / 'validation'}", "--k=3"]
    assert command_line.main([*arguments, f"--json={tmp_path / 'm.json'}"]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "m.json").read_text())
    train = features.read(tmp_path / "train")
    assert results["knn"] == features.measure(["knn"], train, stored, features.Protocols(k=3))["knn"]
    assert f"knn          {results['knn']['top1']:8.2%}  {results['knn']['top5']:.2%}  k=3, temperature=0.07" in printed
    (image_folder / "train" / "ant" / "ant0.jpg").write_bytes(b"nothing")
    assert command_line.main([*model, *data, "--split=train", f"--output={tmp_path / 'b'}", "--max_bad=1"]) == 0
    assert "84 features of 23 images, 1 damaged ones left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split=train", "--output=x"], "Which model?"),
        (["MODEL", "--output=x"], "Which images?"),
        (["MODEL", "--split=train", "--output=x", "PHOTOS"], "Which images?"),
        (["MODEL", "PHOTOS"], "Where to?"),
        (["MODEL", "PHOTOS", "--output=gs://x"], "--output is 'gs://x': URLs"),
        (["MODEL", "PHOTOS", "--output=WEIGHTS"], "which is no folder"),
        (["MODEL", "PHOTOS", "--output=x", "--shard_size=0"], "--shard_size is 0"),
        (["MODEL", "PHOTOS", "--output=x", "--k=3"], "--k is 3, which is for --measure alone"),
        (["MODEL", "--split=train", "--output=x"], "--split=train of what?"),
        (["MODEL", "--split=test", "--output=x", "--config.data.source=synthetic"], "--split is 'test', and synthetic"),
        (["MODEL", "nowhere.jpg", "--output=x"], "There is no nowhere.jpg"),
        (["--measure=", "--train=PHOTOS", "--val=PHOTOS"], "--measure is '': give knn"),
        (["--measure=knn", "--train=PHOTOS"], "--measure needs --train=DIR and --val=DIR"),
        (["--measure=knn", "--train=PHOTOS", "--val=PHOTOS"], "holds no features"),
        (["--measure=knn", "--train=PHOTOS", "--val=PHOTOS", "--split=train"], "--split is 'train', which is not for"),
    ],
)
def test_what_the_command_refuses(arguments, message, weights: pathlib.Path, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    replaced = {"MODEL": f"--model=lenet5 --pretrained={weights}", "PHOTOS": str(photos), "WEIGHTS": str(weights)}
    for name, value in replaced.items():
        arguments = [part for argument in arguments for part in argument.replace(name, value).split(" ")]
    assert command_line.main(arguments) == 1
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert not out
    assert not (tmp_path / "x").exists()


def test_numbers_with_commas(capsys):
    assert (common.integers("1,5,"), common.floats("1e-3,2")) == ((1, 5), (1e-3, 2.0))
    for value, message in (("", "'' is not a number"), ("1,x", "'x' is not a number")):
        with pytest.raises(SystemExit, match="2"):
            command_line.main(["--measure=logistic", "--train=t", "--val=v", f"--logistic_l2s={value}"])
        assert f"argument --logistic_l2s: {message}" in capsys.readouterr().err


def test_one_process_alone_writes(trained, photos: pathlib.Path, tmp_path: pathlib.Path):
    from vision_jax.errors import CheckpointError
    from vision_jax.runtime import writers

    with (
        writers.open_workdir(tmp_path),
        pytest.raises(CheckpointError, match=r"Another run is using .*, or give another --output"),
    ):
        features.extract(trained, Images(Pictured(photos), "photos"), tmp_path, OPTIONS)
