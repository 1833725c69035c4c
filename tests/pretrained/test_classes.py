"""Classes of weights and of data are the same where their names are, and doubts are told."""

import json
import logging
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import encode, picture
from ml_collections import ConfigDict

import vision_jax
from vision_jax import build, evaluate, pretrained
from vision_jax import config as config_lib
from vision_jax.config import validation
from vision_jax.data import sources
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.pretrained import Classes, map_classes

NAME = "lenet5"
IDS = pretrained.imagenet_classes()


def test_imagenets_classes_are_in_the_order_of_published_weights():
    assert len(set(IDS)) == 1000
    assert list(IDS) == sorted(IDS)
    # Tench, goldfish, ..., the golden retriever, ..., toilet tissue.
    assert (IDS[0], IDS[1], IDS[207], IDS[999]) == ("n01440764", "n01443537", "n02099601", "n15075141")


def test_map_classes():
    np.testing.assert_array_equal(map_classes(["c", "a", "x"], ["a", "b", "c"]), [2, 0, -1])
    np.testing.assert_array_equal(map_classes(sorted(IDS), IDS), np.arange(1000))


def test_names_are_read_from_a_file(tmp_path: pathlib.Path):
    (tmp_path / "names.txt").write_text("great white shark\n\n  Bär \ncat\n", "utf-8")
    assert pretrained.read_class_names(str(tmp_path / "names.txt")) == ("great white shark", "Bär", "cat")
    assert pretrained.read_class_names("imagenet") == IDS
    assert pretrained.read_class_names(None) == ()
    (tmp_path / "names.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match=r"names.txt names the class 'cat' more than once"):
        pretrained.read_class_names(str(tmp_path / "names.txt"))
    with pytest.raises(DataError, match="It is 'imagenet', or a text file with one name a line"):
        pretrained.read_class_names("imagenet1k")


def state(num_classes: int) -> dict[str, np.ndarray]:
    """Weights of which each row of the classifier is its number."""
    model = vision_jax.create_model(NAME, num_classes=num_classes)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32), train=False))
    tensors = pretrained.to_torch(NAME, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    tensors["fc3.weight"] = np.repeat(np.arange(num_classes, dtype=np.float32)[:, None], 84, 1)
    tensors["fc3.bias"] = np.arange(num_classes, dtype=np.float32)
    return tensors


def rows(weights: int, num_classes: int, classes: Classes, seed: int | None) -> list[float]:
    """Which rows of the weights' classifier a model's has; new ones are between -1 and 1."""
    params = pretrained.from_torch(
        NAME, state(weights), num_classes=num_classes, classifier_seed=seed, classes=classes
    )["params"]
    np.testing.assert_array_equal(params["fc3"]["kernel"][0].round(), params["fc3"]["bias"].round())
    return params["fc3"]["kernel"][0].tolist()


FEW = sorted([IDS[900], IDS[3], IDS[207]])


@pytest.mark.parametrize("seed", [0, None])  # training, evaluation
def test_rows_are_taken_over_by_name(seed: int | None, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    # Weights of 1,000 classes, and WordNet ids among ImageNet's: that is assumed.
    assert rows(1000, 3, Classes(FEW), seed) == [3, 207, 900]
    assert "of the classifier's 1000 classes, 3 are taken over by name" in caplog.text
    # Names of a user's own, of which the order is another one.
    assert rows(4, 4, Classes(["1", "10", "2", "3"], ["1", "2", "3", "10"]), seed) == [0, 3, 1, 2]
    assert "***" not in caplog.text


def test_a_new_classifier_where_names_do_not_tell(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "vision_jax")
    for weights, classes, reason in (
        (1000, Classes(["cat", "dog", "eel"]), "the weights have 1000 classes of unknown names, and the model 3"),
        (3, Classes(["cat", "dog", "eel"], ["ant", "cat", "dog"]), "of the 3 classes of the data, 1 are none of the w"),
        (4, Classes((), ["ant", "bee", "cat", "dog"]), "the weights have 4 classes of unknown names, and the model 3"),
    ):
        caplog.clear()
        assert np.abs(rows(weights, 3, classes, 0)).max() < 1
        assert f"the classifier is new, for 3 classes (fc3.bias ({weights},) -> (3,)" in caplog.text
        assert reason in caplog.text
        with pytest.raises(DataError, match=r"Set model.pretrained_classes to imagenet, or to a file") as raised:
            rows(weights, 3, classes, None)
        assert reason in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"The weights have 4 classes, and model.pretrained_classes names 2"):
        rows(4, 4, Classes(["a"] * 4, ["a", "b"]), 0)


@pytest.mark.parametrize("seed", [0, None])
def test_doubts_are_told(seed: int | None, caplog: pytest.LogCaptureFixture):
    assert rows(4, 4, Classes(["1", "10", "2", "3"]), seed) == [0, 1, 2, 3]
    assert "*** THE CLASSES ARE NUMBERS, AND SORTED AS TEXT: 1, 10, 2, ... ***" in caplog.text
    assert "set model.pretrained_classes" in caplog.text
    caplog.clear()
    assert rows(1000, 1000, Classes(["cat", "dog", "eel"]), seed) == list(range(1000))
    assert "*** THE DATA HAS 3 CLASSES AND THE WEIGHTS 1000, OF UNKNOWN NAMES. ***" in caplog.text
    caplog.clear()
    # In the same order as numbers and as text, of other names, in ImageNet's order, unknown: nothing is said.
    for names in (["0", "1", "2", "3"], ["01", "02", "10", "11"], ["a", "b", "c", "d"], []):
        assert rows(4, 4, Classes(names), seed) == [0, 1, 2, 3]
    assert rows(1000, 1000, Classes(IDS), seed) == list(range(1000))
    assert not caplog.text


def test_weights_that_know_their_classes(tmp_path: pathlib.Path):
    """As `python -m vision_jax export` writes them."""
    file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(state(3), file, {"class_names": json.dumps(["dog", "cat", "eel"])})
    params = pretrained.load(NAME, file, num_classes=2, classes=Classes(["cat", "dog"]))["params"]
    assert params["fc3"]["bias"].tolist() == [1, 0]


def write_folder(directory: pathlib.Path, names: list[str]) -> None:
    for split in ("train", "validation"):
        for i, name in enumerate(names):
            (directory / split / name).mkdir(parents=True)
            for j in range(2):
                (directory / split / name / f"{j}.jpg").write_bytes(encode(picture(28, 28, seed=10 * i + j)))


def make_config(directory: pathlib.Path) -> ConfigDict:
    config = config_lib.default_config()
    config.model.name, config.model.pretrained = NAME, str(directory / "weights.safetensors")
    config.data.source, config.data.dir = "folder", str(directory)
    config.data.image_size = config.data.eval_resize = 28
    config.data.channels, config.data.mean, config.data.std = 1, (0.5,), (0.5,)
    config.batch_size = config.eval.batch_size = 8
    config.compilation_cache = ""
    return config


def test_a_folder_of_a_few_ids_is_scored_with_weights_of_1000_classes(tmp_path: pathlib.Path):
    """A network that always answers the same id is right for those images, whether the others compete or not."""
    answered = IDS[207]
    write_folder(tmp_path, FEW)
    tensors = {key: np.zeros_like(value) for key, value in state(1000).items()}
    tensors["fc3.bias"][207] = 1
    safetensors.numpy.save_file(tensors, tmp_path / "weights.safetensors")
    config = make_config(tmp_path)
    assert FEW.index(answered) == 1
    losses = {}
    for num_classes in (None, 1000):
        config.model.num_classes = num_classes
        results = evaluate.evaluate_pretrained(config)
        assert results["val/count"] == 6
        assert results["val/top1"] == pytest.approx(1 / 3)
        losses[num_classes] = results["val/loss"]
    for num_classes, loss in losses.items():  # of one logit of 1 and others of 0
        assert loss == pytest.approx(np.log(np.e + (num_classes or 3) - 1) - 1 / 3, rel=1e-4)


def test_a_training_on_a_few_ids_starts_from_their_rows(tmp_path: pathlib.Path):
    safetensors.numpy.save_file(state(1000), tmp_path / "weights.safetensors")
    config = make_config(tmp_path)
    mesh = sharding.make_mesh(config.mesh)
    variables = build.load_initial(config, build.make_objective(config, 3), FEW, mesh)
    assert variables["params"]["fc3"]["bias"].tolist() == [3, 207, 900]


def test_labels_are_the_weights_numbers_where_the_model_has_all_of_their_classes(tmp_path: pathlib.Path):
    write_folder(tmp_path, FEW)
    config = make_config(tmp_path)
    source = build.create_source(config, train=True)
    assert [source[i]["label"] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    config.model.num_classes = 1000
    for train in (True, False):  # alike, so that a checkpoint's classes are those of its evaluation
        source = build.create_source(config, train=train)
        assert [source[i]["label"] for i in range(6)] == [3, 3, 207, 207, 900, 900]
        assert (source.num_classes, list(source.class_names)) == (1000, list(IDS))
        assert sources.read_labels(source).tolist() == [3, 3, 207, 207, 900, 900]
        assert source.describe(0).endswith(f"{FEW[0]}/0.jpg")
    config.model.pretrained = None  # a training from nothing has no numbers to keep to
    assert build.create_source(config, train=True).num_classes == 3

    names = tmp_path / "names.txt"
    names.write_text("\n".join(["a", *FEW]))
    config.model.pretrained, config.model.pretrained_classes, config.model.num_classes = "x", str(names), 4
    assert [build.create_source(config, train=True)[i]["label"] for i in (0, 2, 4)] == [1, 2, 3]
    names.write_text("\n".join(["a", "b", *FEW[1:]]))
    with pytest.raises(DataError, match=f"has 1 classes that are none of model.pretrained_classes, such as '{FEW[0]}'"):
        build.create_source(config, train=True)


def test_a_label_beyond_the_classes_is_no_other_class():
    source = sources.RelabeledSource(sources.SyntheticSource(3, 5, 8, seed=0), np.array([7, 8]), list("abcdefghi"))
    labels = {}
    for i in range(3):
        label = source.source[i]["label"]
        if label < 2:
            labels[label] = source[i]["label"]
            assert labels[label] == 7 + label
        else:
            with pytest.raises(DataError, match=f"record {i} has the label {label}, but there are 2 classes"):
                source[i]


def test_names_without_weights_are_refused():
    config = config_lib.default_config()
    config.model.pretrained_classes = "imagenet"
    with pytest.raises(ConfigError, match="pretrained_classes is 'imagenet', but there are no weights"):
        validation.validate(config, 1)


def test_a_teacher_gets_no_new_classifier(tmp_path: pathlib.Path):
    """It is not trained: its answers would be random."""
    safetensors.numpy.save_file(state(1000), tmp_path / "teacher.safetensors")
    config = make_config(tmp_path)
    config.distill.teacher, config.distill.pretrained = NAME, str(tmp_path / "teacher.safetensors")
    teacher = build.make_objective(config, 3).frozen()["teacher"]
    with pytest.raises(DataError, match="the weights have 1000 classes of unknown names, and the model 3"):
        teacher.load()


def test_a_class_that_a_person_names():
    imagenet = pretrained.imagenet_classes()
    for text in ("tench", "n01440764", " Tench ", "0"):
        assert pretrained.find_class(text, imagenet, 1000) == 0
    assert pretrained.find_class("2", ("0", "2", "5"), 3) == 1  # a name comes before a number
    assert pretrained.find_class("2", ("cat", "dog", "emu"), 3) == 2
    assert pretrained.find_class("2", (), 3) == 2
    with pytest.raises(ConfigError, match="no class '11': there are: 0, 1, 2"):
        pretrained.find_class("11", ("0", "1", "2"), 3)
    assert pretrained.find_class("Cat", ("cat", "Cat"), 2) == 1
    with pytest.raises(ConfigError, match=r"'thench': did you mean tench or "):
        pretrained.find_class("thench", imagenet, 1000)
    with pytest.raises(ConfigError, match=r"'persian': did you mean Persian cat\?$"):
        pretrained.find_class("persian", imagenet, 1000)
    with pytest.raises(ConfigError, match=r"'1000': give a number from 0 to 999, or .*`predict --topk=1000` lists"):
        pretrained.find_class("1000", imagenet, 1000)
    with pytest.raises(ConfigError, match=r"'cow': there are: cat, dog\.$"):
        pretrained.find_class("cow", ("cat", "dog"), 2)
    with pytest.raises(
        ConfigError, match=r"'cat', and what the classes are called is unknown: give a number from 0 to 2"
    ):
        pretrained.find_class("cat", (), 3)
