"""Data sets that `prepare` knows as they are downloaded, each by a description.

Sizes and layouts are those of their authors' pages and of the readers of tensorflow_datasets 4.9 and torchvision.
"""

import functools
from collections.abc import Mapping

from vision_jax.errors import ConfigError, suggest
from vision_jax.preparation import class_names, layouts, pixels
from vision_jax.preparation.description import Draw, Known
from vision_jax.preparation.downloads import Download


def _mnist(name: str, title: str, homepage: str, terms: str, names: tuple[str, ...]) -> Known:
    files = (f"{split}-{what}-ubyte.gz" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    return Known(
        name,
        title,
        homepage,
        terms,
        tuple(Download(file) for file in files),
        pixels.idx,
        {"train": 60_000, "test": 10_000},
        len(names),
        class_names=names,
        telling=False,
        small=True,
    )


def _emnist(part: str, train: int, test: int, names: tuple[str, ...], *, first_label: int = 0, note: str = "") -> Known:
    prefix = f"emnist-{part}-"
    files = (f"{prefix}{s}-{what}-ubyte.gz" for s in ("train", "test") for what in ("images-idx3", "labels-idx1"))
    return Known(
        f"emnist_{part}",
        f"EMNIST, {part}",
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        "see the homepage",
        (Download("gzip.zip", tuple(files)),),
        functools.partial(pixels.idx, prefix=prefix, first_label=first_label, transposed=True),
        {"train": train, "test": test},
        len(names),
        tops=("gzip",),
        class_names=names,
        telling=False,
        small=True,
        note=note,
    )


def _cifar(classes: int, train: tuple[str, ...], test: str, names: str, labels: int) -> Known:
    return Known(
        f"cifar{classes}",
        f"CIFAR-{classes}",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "see the homepage",
        (Download(f"cifar-{classes}-binary.tar.gz", (*train, test, names)),),
        functools.partial(pixels.cifar, train=train, test=(test,), names=names, labels=labels),
        {"train": 50_000, "test": 10_000},
        classes,
        tops=(f"cifar-{classes}-batches-bin" if classes == 10 else f"cifar-{classes}-binary",),
        small=True,
        note="the binary version",
    )


def _fastai(name: str, title: str, examples: Mapping[str, int], words: Mapping[str, str]) -> Known:
    tops = (f"{name}2", f"{name}2-320", f"{name}2-160")
    return Known(
        name,
        title,
        "https://github.com/fastai/imagenette",
        "that of the repository is Apache 2.0; the images are ImageNet's",
        (Download(f"{tops[0]}.tgz", ("train", "val"), also=tuple(f"{top}.tgz" for top in tops[1:])),),
        functools.partial(layouts.class_folders, splits={"train": "train", "validation": "val"}, words=words),
        examples,
        10,
        tops=tops,
        telling=False,
        note="of any of the three sizes",
    )


def _places(name: str, title: str, size: str) -> Known:
    train, validation = f"data_{size}", f"val_{size}"
    lists = ("places365_train_standard.txt", "places365_val.txt", "categories_places365.txt")
    return Known(
        name,
        title,
        "http://places2.csail.mit.edu/",
        "see the homepage",
        (
            Download(f"train_{size}_places365standard.tar", (train,)),
            Download(f"val_{size}.tar", (validation,)),
            Download("filelist_places365-standard.tar", lists),
        ),
        functools.partial(layouts.places, train=train, validation=validation),
        {"train": 1_803_460, "validation": 36_500},
        365,
        note="the labels of the test images are not published",
    )


def _inaturalist(
    year: str,
    examples: Mapping[str, int],
    classes: int,
    downloads: tuple[Download, ...],
    lists: tuple[str, str],
    categories: str = "",
) -> Known:
    return Known(
        f"inaturalist_{year}",
        f"iNaturalist {year.replace('_', ' ')}",
        f"https://github.com/visipedia/inat_comp/tree/master/{year[:4]}",
        "non-commercial research and education; images are not to be passed on",
        downloads,
        functools.partial(layouts.inaturalist, train=lists[0], validation=lists[1], categories=categories),
        examples,
        classes,
        telling=not year.startswith("2021"),
        note="the labels of the test images are not published",
    )


def _inaturalist_2021(train: str, examples: int) -> Known:
    return _inaturalist(
        "2021" if train == "train" else "2021_mini",
        {"train": examples, "validation": 100_000},
        10_000,
        (
            Download(f"{train}.tar.gz", (train,)),
            Download("val.tar.gz", ("val",)),
            Download(f"{train}.json.tar.gz", (f"{train}.json",)),
            Download("val.json.tar.gz", ("val.json",)),
        ),
        (f"{train}.json", "val.json"),
    )


def _inaturalist_by_year(year: str, train: int, validation: int, classes: int) -> Known:
    return _inaturalist(
        year,
        {"train": train, "validation": validation},
        classes,
        (
            Download(f"train_val{year}.tar.gz", (f"train_val{year}",)),
            Download(f"train{year}.json.tar.gz", (f"train{year}.json",)),
            Download(f"val{year}.json.tar.gz", (f"val{year}.json",)),
            Download("categories.json.tar.gz", ("categories.json",), optional=True),
        ),
        (f"train{year}.json", f"val{year}.json"),
        "categories.json",
    )


# Images of the pets that tfds encodes afresh, since their JPEGs are cut off or are of other formats.
_DAMAGED_PETS = (
    *("beagle_116", "chihuahua_121", "Abyssinian_5", "Abyssinian_34"),
    *(f"Egyptian_Mau_{number}" for number in (14, 139, 145, 156, 167, 177, 186, 191)),
)

_ALL = (
    _mnist("mnist", "MNIST", "http://yann.lecun.com/exdb/mnist/", "see the homepage", class_names.DIGITS),
    _mnist(
        "fashion_mnist", "Fashion-MNIST", "https://github.com/zalandoresearch/fashion-mnist", "MIT", class_names.FASHION
    ),
    _mnist("kmnist", "Kuzushiji-MNIST", "http://codh.rois.ac.jp/kmnist/", "CC BY-SA 4.0", class_names.KUZUSHIJI),
    _emnist("balanced", 112_800, 18_800, class_names.MERGED),
    _emnist("byclass", 697_932, 116_323, class_names.CHARACTERS),
    _emnist("bymerge", 697_932, 116_323, class_names.MERGED),
    _emnist("digits", 240_000, 40_000, class_names.DIGITS),
    _emnist(
        "letters",
        124_800,
        20_800,
        class_names.LETTERS,
        first_label=1,
        note="the first release had 88,800 and 14,800 images: `--subset`",
    ),
    _emnist("mnist", 60_000, 10_000, class_names.DIGITS),
    _cifar(10, tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    _cifar(100, ("train.bin",), "test.bin", "fine_label_names.txt", 2),
    Known(
        "svhn",
        "SVHN, cropped digits",
        "http://ufldl.stanford.edu/housenumbers/",
        "non-commercial use",
        (
            Download("train_32x32.mat"),
            Download("test_32x32.mat"),
            Download("extra_32x32.mat", optional=True),
        ),
        pixels.svhn,
        {"train": 73_257, "test": 26_032, "extra": 531_131},
        10,
        class_names=class_names.DIGITS,
        optional=frozenset({"extra"}),
        small=True,
    ),
    _fastai("imagenette", "Imagenette", {"train": 9_469, "validation": 3_925}, class_names.IMAGENETTE),
    _fastai("imagewoof", "Imagewoof", {"train": 9_025, "validation": 3_929}, class_names.IMAGEWOOF),
    Known(
        "tiny_imagenet",
        "Tiny ImageNet",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "the images are ImageNet's",
        (Download("tiny-imagenet-200.zip", ("train", "val", "wnids.txt")),),
        layouts.tiny_imagenet,
        {"train": 100_000, "validation": 10_000},
        200,
        tops=("tiny-imagenet-200",),
        telling=False,
        small=True,
        note="the labels of the test images are not published",
    ),
    Known(
        "pets",
        "Oxford-IIIT Pets",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "CC BY-SA 4.0",
        (Download("images.tar.gz", ("images",)), Download("annotations.tar.gz", ("annotations/trainval.txt",))),
        layouts.pets,
        {"train": 3_680, "test": 3_669},
        37,
        tops=("oxford-iiit-pet",),
        damaged=frozenset(f"images/{name}.jpg" for name in _DAMAGED_PETS),
        note="`train` is the published trainval",
    ),
    Known(
        "flowers",
        "Oxford Flowers-102",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "see the homepage",
        (Download("102flowers.tgz", ("jpg",)), Download("imagelabels.mat"), Download("setid.mat")),
        functools.partial(layouts.flowers, class_names=class_names.FLOWERS),
        {"train": 1_020, "validation": 1_020, "test": 6_149},
        102,
        tops=("flowers-102",),
        class_names=class_names.FLOWERS,
        note="the test split is the largest; many train on `train+validation`",
    ),
    Known(
        "food101",
        "Food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "see the homepage",
        (Download("food-101.tar.gz", ("images", "meta/classes.txt")),),
        layouts.food,
        {"train": 75_750, "test": 25_250},
        101,
        tops=("food-101",),
        note="tfds calls the test split `validation`",
    ),
    Known(
        "dtd",
        "Describable Textures",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        "research",
        (Download("dtd-r1.0.1.tar.gz", ("images", "labels/train1.txt")),),
        layouts.textures,
        {"train": 1_880, "validation": 1_880, "test": 1_880},
        47,
        tops=("dtd",),
        note="the first of the ten published partitions",
    ),
    Known(
        "eurosat",
        "EuroSAT, RGB",
        "https://github.com/phelber/EuroSAT",
        "MIT",
        (Download("EuroSAT.zip", class_names.EUROSAT, also=("EuroSAT_RGB.zip",)),),
        functools.partial(layouts.class_folders, splits={"train": ""}),
        {"train": 21_600, "test": 5_400},
        10,
        tops=("2750", "EuroSAT_RGB"),
        draw=Draw(share=0.8),
        telling=False,
        small=True,
        note="published without splits: 80 % of each class are for training, by `--seed`",
    ),
    Known(
        "stanford_dogs",
        "Stanford Dogs",
        "http://vision.stanford.edu/aditya86/ImageNetDogs/",
        "the images are ImageNet's",
        (Download("images.tar", ("Images",)), Download("lists.tar", ("train_list.mat", "test_list.mat"))),
        layouts.dogs,
        {"train": 12_000, "test": 8_580},
        120,
    ),
    Known(
        "caltech101",
        "Caltech-101",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "CC BY 4.0",
        (
            Download(
                "caltech-101.zip",
                ("101_ObjectCategories",),
                also=("101_ObjectCategories.tar.gz",),
                within="101_ObjectCategories.tar.gz",
            ),
        ),
        functools.partial(layouts.class_folders, splits={"train": "101_ObjectCategories"}, lower=True),
        {"train": 3_060, "test": 6_084},
        102,
        tops=("caltech-101",),
        draw=Draw(per_class=30),
        note="published without splits: 30 images of each class, of which BACKGROUND_Google is one, are for training, "
        "by `--seed`",
    ),
    _places("places365", "Places365-Standard", "large"),
    _places("places365_small", "Places365-Standard, 256x256", "256"),
    _inaturalist(
        "2017",
        {"train": 579_184, "validation": 95_986},
        5_089,
        (
            Download("train_val_images.tar.gz", ("train_val_images",)),
            Download("train_val2017.zip", ("train2017.json", "val2017.json")),
        ),
        ("train2017.json", "val2017.json"),
    ),
    _inaturalist_by_year("2018", 437_513, 24_426, 8_142),
    _inaturalist_by_year("2019", 265_213, 3_030, 1_010),
    _inaturalist_2021("train", 2_686_843),
    _inaturalist_2021("train_mini", 500_000),
)
KNOWN: Mapping[str, Known] = {known.name: known for known in _ALL}
# As tfds and others call them.
_ALIASES = {
    "oxford_iiit_pet": "pets",
    "oxford_flowers102": "flowers",
    "flowers102": "flowers",
    "svhn_cropped": "svhn",
    "food": "food101",
    "dogs": "stanford_dogs",
    "caltech": "caltech101",
}


def get(name: str) -> Known:
    """Returns the description of a data set.

    Raises:
        ConfigError: if there is none of that name.
    """
    known = KNOWN.get(_ALIASES.get(name, name))
    if known is None:
        raise ConfigError(f"--dataset={name} is not known: {suggest(name, [*KNOWN, *_ALIASES])} --datasets lists all.")
    return known


def table() -> str:
    """Returns a table of the data sets in Markdown, for the documentation."""
    lines = ["| `--dataset` | data set | files | images | classes |", "|---|---|---|---|---|"]
    for known in _ALL:
        files = ", ".join(f"`{download.file}`" + " (optional)" * download.optional for download in known.downloads)
        counts = ", ".join(f"{split} {count:,}" for split, count in known.examples.items())
        title = f"[{known.title}]({known.homepage})" + (f"; {known.note}" if known.note else "")
        lines.append(f"| `{known.name}` | {title} | {files} | {counts} | {known.num_classes:,} |")
    return "\n".join(lines)


def overview() -> str:
    """Returns the data sets in words, for the command line."""
    lines = []
    for known in _ALL:
        files = ", ".join(download.file for download in known.downloads if not download.optional)
        counts = ", ".join(f"{split} {count:,}" for split, count in known.examples.items())
        lines.append(f"{known.name}: {known.title}; {counts}; {known.num_classes:,} classes")
        lines.append(f"    {files}\n    {known.homepage} (terms: {known.terms})")
    return "\n".join(lines)
