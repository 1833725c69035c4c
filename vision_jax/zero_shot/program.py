"""Predicts classes that are given by their names, and measures that on labelled images."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vision_jax.build import TrainedModel
from vision_jax.config import default_config
from vision_jax.data.images import ImageSource
from vision_jax.data.transforms import Preprocessing, SquareTransform
from vision_jax.devices import sharding
from vision_jax.errors import ConfigError, DataError
from vision_jax.models import clip_variants
from vision_jax.models.clip import Clip
from vision_jax.objectives import Setup
from vision_jax.objectives.classification import Classification
from vision_jax.objectives.pairs import Pairs, to_clip
from vision_jax.predict import Predictor
from vision_jax.pretrained import clip as weights_of_clip
from vision_jax.text import Tokenizer, prompts
from vision_jax.zero_shot.classes import as_classifier, embed_classes
from vision_jax.zero_shot.preprocessing import preprocessing
from vision_jax.zero_shot.published import as_published, tokenizer_of

log = logging.getLogger(__name__)

Classes = tuple[tuple[str, ...], tuple[str, ...]]  # as `text.prompts.read_classes` returns them


@dataclasses.dataclass(frozen=True)
class WordModel:
    """A model of images and words, ready for both.

    Attributes:
        model: the module.
        variables: its `params` and `batch_stats`.
        tokenizer: of its texts.
        preprocessing: of its images.
        templates: sentences that it was trained on, or that it is mostly used with.
    """

    model: Clip
    variables: Mapping[str, Any]
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    templates: tuple[str, ...] = prompts.PLAIN

    def predictor(
        self, names: Sequence[str], templates: Sequence[str], *, topk: int = 5, batch_size: int = 128
    ) -> Predictor:
        """Returns what predicts classes.

        Args:
            names: of the classes.
            templates: sentences with a place for a name; see `text.prompts`.
            topk, batch_size: see `Predictor`.
        """
        weights = embed_classes(self.model, self.variables, self.tokenizer, names, templates)
        classifier, variables = as_classifier(self.model, self.variables, weights)
        options: dict[str, Any] = {"topk": topk, "batch_size": batch_size, "preprocessing": self.preprocessing}
        return Predictor(classifier, variables, class_names=names, **options)


def load(name: str, weights: str, *, tokenizer: str | None = None, **options: Any) -> WordModel:
    """Reads published weights, with the tokenizer and the preprocessing that belong to them.

    Args:
        name: of the model; see `clip_variants.list_clips`.
        weights: a file, or hf://OWNER/NAME[/FILE]; see `vision_jax.pretrained.load`.
        tokenizer: its file; None: it is looked for beside the weights.
        **options: of the model, see `clip_variants.create`.

    Raises:
        ConfigError: for an unknown name or option, or weights that were trained with another activation.
        DataError: if weights or tokenizer are missing, cannot be read or do not fit.
    """
    variant = clip_variants.variant(name)
    model = clip_variants.create(name, **options)
    file = weights_of_clip.read(weights)  # first, so that a name that leads nowhere is told as such
    variant = as_published(variant, weights, model.text.transformer.activation)
    words = tokenizer_of(variant, weights, tokenizer, model.text.context_length)
    return WordModel(model, weights_of_clip.load(model, file), words, preprocessing(variant, model.img_size))


def of_run(trained: TrainedModel) -> WordModel:
    """Returns the model of a run that learned from pairs of images and texts.

    Raises:
        ConfigError: if it did not, or its tokenizer does not fit.
        DataError: if its tokenizer cannot be read.
    """
    objective = trained.objective
    if not isinstance(objective, Pairs):
        raise ConfigError(f"{trained.origin} learned no words: its objective is none of clip and siglip.")
    tokenizer = objective.open_tokenizer()
    variables = to_clip(trained.variables)
    return WordModel(objective.clip, variables, tokenizer, trained.preprocessing, objective.templates)


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How many labelled images were classified rightly.

    Attributes:
        count: of the images, without damaged ones.
        top1, top5: shares whose class was the best, or among the best five.
        damaged: images that could not be read.
    """

    count: int
    top1: float
    top5: float
    damaged: int


def labelled(directory: str, folders: Sequence[str]) -> tuple[ImageSource, np.ndarray]:
    """Returns the images of a folder that has one for each class, and their labels.

    Args:
        directory: with the folders.
        folders: what that of each class is called. Some classes may have none.

    Returns:
        the images, and (images,) int32.

    Raises:
        DataError: if there is no such folder, one is of no class, or there is no image.
    """
    root = pathlib.Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"--labelled is {directory}, which is no folder: it has one folder of images for each class.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := [name for name in found if name not in folders]:
        raise DataError(
            f"{directory} has the folder {unknown[0]!r}, which is none of the {len(folders)} classes: write it before "
            "the name of its class in a file of --classes, with a tab between them."
        )
    if not found:
        raise DataError(f"{directory} has no folder: it has one folder of images for each class.")
    items: list[Any] = []
    labels: list[int] = []
    for name in found:
        images = ImageSource.find([root / name]).items
        items += images
        labels += [folders.index(name)] * len(images)
    log.info("%s: %d images of %d of the %d classes.", directory, len(items), len(found), len(folders))
    return ImageSource(items), np.array(labels, np.int32)


def measure(predictor: Predictor, source: ImageSource, labels: np.ndarray) -> Accuracy:
    """Returns how many images are classified rightly.

    Raises:
        ConfigError: if the predictor tells fewer than five classes, of which it has more.
        DataError: if all images are damaged.
    """
    wanted = min(5, len(predictor.class_names))
    if predictor.topk < wanted:
        raise ConfigError(f"topk is {predictor.topk}, and the best {wanted} classes are asked for.")
    best = five = damaged = 0
    for label, prediction in zip(labels.tolist(), predictor.stream(source), strict=True):
        if prediction.error is not None:
            log.warning("%s: damaged: %s", prediction.path, prediction.error)
            damaged += 1
            continue
        numbers = [found.number for found in prediction.classes[:5]]
        best += numbers[0] == label
        five += label in numbers
    count = len(labels) - damaged
    if not count:
        raise DataError(f"All {damaged} images are damaged.")
    return Accuracy(count, best / count, five / count, damaged)


def as_trained(words: WordModel, name: str, origin: str, classes: Classes, templates: Sequence[str]) -> TrainedModel:
    """Returns a classifier of words in the shape of a trained model, for what measures these.

    Args:
        words: the model of images and words.
        name: of its architecture.
        origin: where its weights are from, for a person.
        classes: their names, and what the data calls them.
        templates: sentences with a place for a name.
    """
    names, folders = classes
    weights = embed_classes(words.model, words.variables, words.tokenizer, names, templates)
    classifier, variables = as_classifier(words.model, words.variables, weights)
    transform, mean, std = words.preprocessing.transform, words.preprocessing.mean, words.preprocessing.std
    config = default_config()
    config.model.name, config.model.num_classes = name, len(names)
    config.dtype = jnp.dtype(words.model.text.dtype).name
    data = config.data
    data.image_size = data.eval_size = transform.size
    data.eval_resize, data.eval_filter, data.channels = transform.resize, transform.filter, transform.channels
    data.eval_square = isinstance(transform, SquareTransform)
    data.mean, data.std = tuple(mean), tuple(std)
    shape = (transform.size, transform.size, transform.channels)
    setup = Setup(classifier, shape, tuple(mean), tuple(std))
    mesh = sharding.make_mesh(config.mesh)
    placed = sharding.place(variables, sharding.replicated(mesh))
    return TrainedModel(config, Classification(setup=setup), placed, folders, origin, mesh)
