"""Miniatures of known data sets: the names and layouts of their files as published, with a few made-up images.

They are written by struct, tarfile, zipfile and scipy, not by what reads them.
"""

import dataclasses
import gzip
import io
import itertools
import json
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
import scipy.io
from conftest import encode, picture

Files = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Miniature:
    """Files of a data set.

    Attributes:
        archives: what is in each, by its name.
        loose: files that are no archives.
        expected: class and image of each record, by split; the image as bytes of its file, or as pixels. All images of
            a set without published splits are in `all`.
        classes: how many there are in the miniature.
    """

    archives: Mapping[str, Files]
    loose: Files
    expected: Mapping[str, list[tuple[str, bytes | np.ndarray]]]
    classes: int

    def write(self, directory: pathlib.Path, *, unpacked: bool = False) -> pathlib.Path:
        """Writes the files as they are downloaded, or with the archives unpacked in their folder."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, members in self.archives.items():
            if unpacked:
                for member, data in members.items():
                    put(directory / member, data)
            else:
                put(directory / name, pack(name, members))
        for name, data in self.loose.items():
            put(directory / name, data)
        return directory


def put(path: pathlib.Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pack(name: str, members: Files) -> bytes:
    """Returns an archive of the kind that its name says, with folders as members of their own, as most have them."""
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w" if name.endswith(".tar") else "w:gz") as tar:
        for folder in sorted({str(parent) for m in members for parent in pathlib.PurePath(m).parents} - {"."}):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


_seeds = itertools.count()


def jpeg() -> bytes:
    """A JPEG like no other."""
    return encode(picture(12, 10, seed=next(_seeds)))


def lines(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def mat(**values: object) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, values)
    return file.getvalue()


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, compressed."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(next(_seeds)).randint(0, 256, shape).astype(np.uint8)


def mnist(
    names: tuple[str, ...], prefix: str = "", test: str = "t10k", first: int = 0, turned: bool = False
) -> Miniature:
    files, expected = {}, {}
    for split, called in (("train", "train"), ("test", test)):
        images, labels = noise(len(names) + 1, 28, 28), np.arange(len(names) + 1) % len(names)
        files[f"{prefix}{called}-images-idx3-ubyte.gz"] = idx(images.transpose(0, 2, 1) if turned else images)
        files[f"{prefix}{called}-labels-idx1-ubyte.gz"] = idx(labels + first)
        expected[split] = [(names[label], image) for label, image in zip(labels, images, strict=True)]
    return Miniature({}, files, expected, len(names))


def emnist(part: str, names: str, first: int = 0) -> Miniature:
    one = mnist(tuple(names), f"emnist-{part}-", "test", first, turned=True)
    other = mnist(("0", "1"), "emnist-other-", "test").loose  # the archive has all parts
    members = {f"gzip/{name}": data for name, data in {**one.loose, **other}.items()}
    return dataclasses.replace(one, archives={"gzip.zip": members}, loose={})


def cifar(classes: int) -> Miniature:
    folder = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
    batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    files, expected = {}, {}
    for split, names in (batches if classes == 10 else {"train": ["train.bin"], "test": ["test.bin"]}).items():
        expected[split] = []
        for name in names:
            images, labels = noise(3, 32, 32, 3), np.random.RandomState(next(_seeds)).randint(0, classes, 3)
            coarse = b"" if classes == 10 else b"\x07"
            rows = [coarse + bytes([n]) + i.transpose(2, 0, 1).tobytes() for n, i in zip(labels, images, strict=True)]
            files[f"{folder}/{name}"] = b"".join(rows)
            expected[split] += [(f"thing_{label}", image) for label, image in zip(labels, images, strict=True)]
    names_file = "batches.meta.txt" if classes == 10 else "fine_label_names.txt"
    files[f"{folder}/{names_file}"] = lines(*(f"thing_{i}" for i in range(classes)), "")
    return Miniature({f"cifar-{classes}-binary.tar.gz": files}, {}, expected, classes)


def svhn() -> Miniature:
    files, expected = {}, {}
    for split, count in (("train", 11), ("test", 4), ("extra", 5)):
        images, labels = noise(count, 32, 32, 3), np.arange(count) % 10 + 1  # 10 is the digit 0
        files[f"{split}_32x32.mat"] = mat(X=images.transpose(1, 2, 3, 0), y=labels[:, None].astype(np.uint8))
        expected[split] = [(str(label % 10), image) for label, image in zip(labels, images, strict=True)]
    return Miniature({}, files, expected, 10)


def fastai(top: str, wnids: tuple[str, ...]) -> Miniature:
    files: Files = {f"{top}/noisy_imagenette.csv": b"path,noisy_labels_0\n"}
    expected = {}
    for split, folder in (("train", "train"), ("validation", "val")):
        images = {f"{top}/{folder}/{wnid}/{wnid}_{i}.JPEG": (wnid, jpeg()) for wnid in wnids for i in range(2)}
        files |= {name: data for name, (_, data) in images.items()}
        expected[split] = list(images.values())
    files[f"{top}/train/{wnids[0]}/._{wnids[0]}_0.JPEG"] = b"left by macOS"
    return Miniature({f"{top}.tgz": files}, {}, expected, len(wnids))


def tiny_imagenet() -> Miniature:
    top, wnids = "tiny-imagenet-200", ("n02124075", "n01443537")
    train = [(wnid, i, jpeg()) for wnid in wnids for i in range(3)]
    val = [(wnid, jpeg()) for wnid in (*wnids, wnids[0])]
    files = {
        f"{top}/wnids.txt": lines(*wnids),
        f"{top}/words.txt": lines("n00001740\tentity", "n01443537\tgoldfish, Carassius auratus"),
        **{f"{top}/train/{wnid}/images/{wnid}_{i}.JPEG": data for wnid, i, data in train},
        **{f"{top}/train/{wnid}/{wnid}_boxes.txt": lines(f"{wnid}_0.JPEG\t0\t10\t63\t58") for wnid in wnids},
        **{f"{top}/val/images/val_{i}.JPEG": data for i, (_, data) in enumerate(val)},
        f"{top}/val/val_annotations.txt": lines(*(f"val_{i}.JPEG\t{w}\t0\t32\t44\t62" for i, (w, _) in enumerate(val))),
        f"{top}/test/images/test_0.JPEG": jpeg(),
    }
    expected = {"train": [(wnid, data) for wnid, _, data in train], "validation": val}
    return Miniature({f"{top}.zip": files}, {}, expected, 2)


def pets() -> Miniature:
    breeds = ("Abyssinian", "american_bulldog", "Egyptian_Mau")
    images: Files = {"images/Abyssinian_100.mat": b"there are a few"}
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    expected: dict[str, list] = {"train": [], "test": []}
    for label, breed in enumerate(breeds):
        for i, split in ((1, "trainval"), (20, "test"), (3, "trainval")):
            images[f"images/{breed}_{i}.jpg"] = data = jpeg()
            lists[split].append(f"{breed}_{i} {label + 1} {1 + breed.islower()} {label + 1}")
            expected["train" if split == "trainval" else "test"].append((breed, data))
    annotations = {f"annotations/{split}.txt": lines(*rows) for split, rows in lists.items()}
    annotations |= {"annotations/README": b"...", "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n"}
    return Miniature({"images.tar.gz": images, "annotations.tar.gz": annotations}, {}, expected, 3)


def flowers() -> Miniature:
    labels = np.asarray([[77, 1, 102, 2, 1, 77, 1]])
    images = {f"jpg/image_{i:05d}.jpg": jpeg() for i in range(1, 8)}
    ids = {"trnid": [[7, 1]], "valid": [[4]], "tstid": [[2, 3, 5, 6]]}
    names = {1: "pink primrose", 2: "hard-leaved pocket orchid", 77: "passion flower", 102: "blackberry lily"}
    expected = {
        split: [(names[labels[0, i - 1]], images[f"jpg/image_{i:05d}.jpg"]) for i in ids[key][0]]
        for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
    }
    loose = {
        "imagelabels.mat": mat(labels=labels.astype(np.uint8)),
        "setid.mat": mat(**{key: np.asarray(value, np.uint16) for key, value in ids.items()}),
    }
    return Miniature({"102flowers.tgz": images}, loose, expected, 102)


def food() -> Miniature:
    classes = ("apple_pie", "waffles")
    images = {(name, i): jpeg() for name in classes for i in range(3)}
    splits = {"train": [0, 2], "test": [1]}
    listed = {
        split: {name: [f"{name}/{100 + i}" for i in chosen] for name in classes} for split, chosen in splits.items()
    }
    files = {
        **{f"food-101/images/{name}/{100 + i}.jpg": data for (name, i), data in images.items()},
        **{f"food-101/meta/{split}.json": json.dumps(content).encode() for split, content in listed.items()},
        "food-101/meta/classes.txt": lines(*classes),
        "food-101/meta/labels.txt": lines("Apple pie", "Waffles"),
        "food-101/README.txt": b"...",
    }
    expected = {s: [(name, images[name, i]) for name in classes for i in chosen] for s, chosen in splits.items()}
    return Miniature({"food-101.tar.gz": files}, {}, expected, 2)


def textures() -> Miniature:
    classes = ("banded", "zigzagged")
    names = [f"{name}/{name}_{i:04d}.jpg" for name in classes for i in range(3)]
    images = {name: jpeg() for name in names}
    folds = {
        1: {"train": names[0::3], "val": names[1::3], "test": names[2::3]},
        2: {"train": names[2::3], "val": names[0::3], "test": names[1::3]},
    }
    files = {f"dtd/images/{name}": data for name, data in images.items()}
    files |= {
        f"dtd/labels/{s}{fold}.txt": lines(*chosen) for fold, parts in folds.items() for s, chosen in parts.items()
    }
    called = {"train": "train", "validation": "val", "test": "test"}
    expected = {s: [(n.split("/")[0], images[n]) for n in folds[1][short]] for s, short in called.items()}
    return Miniature({"dtd-r1.0.1.tar.gz": files}, {}, expected, 2)


def eurosat() -> Miniature:
    classes = (
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop"),
        *("Residential", "River", "SeaLake"),
    )
    images = {f"2750/{name}/{name}_{i}.jpg": (name, jpeg()) for name in classes for i in range(1, 6)}
    files = {name: data for name, (_, data) in images.items()}
    return Miniature({"EuroSAT.zip": files}, {}, {"all": list(images.values())}, 10)


def stanford_dogs() -> Miniature:
    breeds = ("n02085620-Chihuahua", "n02115913-dhole")
    names = [f"{breed}/{breed[:9]}_{i}.jpg" for breed in breeds for i in range(3)]
    images = {name: jpeg() for name in names}
    expected, lists = {}, {}
    for split, chosen in (("train", names[0::3] + names[1::3]), ("test", names[2::3])):
        cells = np.empty((len(chosen), 1), object)
        cells[:, 0] = chosen
        labels = np.asarray([[breeds.index(name.split("/")[0]) + 1] for name in chosen], float)
        lists[f"{split}_list.mat"] = mat(file_list=cells, annotation_list=cells, labels=labels)
        expected[split] = [(name.split("/")[0], images[name]) for name in chosen]
    lists["file_list.mat"] = b"all of them"
    archives = {"images.tar": {f"Images/{name}": data for name, data in images.items()}, "lists.tar": lists}
    return Miniature(archives, {}, expected, 2)


def caltech101() -> Miniature:
    classes = ("accordion", "BACKGROUND_Google", "Faces", "yin_yang")
    counts = dict(zip(classes, (32, 31, 33, 34), strict=True))
    images = {
        f"101_ObjectCategories/{c}/image_{i:04d}.jpg": (c, jpeg()) for c in classes for i in range(1, counts[c] + 1)
    }
    inner = {name: data for name, (_, data) in images.items()}
    inner["101_ObjectCategories/BACKGROUND_Google/tmp"] = b"which is there"
    files = {
        "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"left by macOS",
        "caltech-101/101_ObjectCategories.tar.gz": pack("x.tar.gz", inner),
        "caltech-101/Annotations.tar": b"outlines",
    }
    return Miniature({"caltech-101.zip": files}, {}, {"all": list(images.values())}, 4)


def places365(size: str) -> Miniature:
    classes = ("/a/airfield", "/z/zen_garden")
    train = [(f"{name}/{i:08d}.jpg", label, jpeg()) for label, name in enumerate(classes) for i in (1, 2)]
    val = [(f"Places365_val_{i:08d}.jpg", label, jpeg()) for i, label in ((1, 1), (2, 0))]
    lists = {
        "places365_train_standard.txt": lines(*(f"{name} {label}" for name, label, _ in train)),
        "places365_val.txt": lines(*(f"{name} {label}" for name, label, _ in val)),
        "places365_test.txt": lines("Places365_test_00000001.jpg"),
        "categories_places365.txt": lines(*(f"{name} {label}" for label, name in enumerate(classes))),
    }
    archives = {
        f"train_{size}_places365standard.tar": {f"data_{size}{name}": data for name, _, data in train},
        f"val_{size}.tar": {f"val_{size}/{name}": data for name, _, data in val},
        "filelist_places365-standard.tar": lists,
    }
    expected = {s: [(classes[n], data) for _, n, data in part] for s, part in (("train", train), ("validation", val))}
    return Miniature(archives, {}, expected, 2)


def inaturalist(year: str) -> Miniature:
    """Of 2017 and 2021, the lists name the species; of 2018 and 2019, a file of its own does."""
    species, mini = ("Rana temporaria", "Bufo bufo", "Apis mellifera"), year == "2021_mini"
    folders = {"2017": ("train_val_images",) * 2, "2021": ("train", "val"), "2021_mini": ("train_mini", "val")}
    train, val = folders.get(year, (f"train_val{year}",) * 2)
    expected, lists, images = {}, {}, dict[str, Files]()
    obfuscated = year in ("2018", "2019")
    categories = [
        {"id": label, "name": str(9000 + label) if obfuscated else name, "supercategory": "Animalia"}
        for label, name in enumerate(species)
    ]
    for split, folder, count in (("train", train, 5), ("validation", val, 3)):
        records = [
            (i * 7 + len(folder), i % 3, f"{folder}/Animalia/{i % 3}/{split}{i}.jpg", jpeg()) for i in range(count)
        ]
        content = {
            "info": {},
            "images": [{"id": n, "file_name": name, "latitude": float("nan")} for n, _, name, _ in records],
            "annotations": [{"id": n, "image_id": n, "category_id": label} for n, label, _, _ in reversed(records)],
            "categories": categories,
        }
        stem = {"train": "train_mini" if mini else "train", "validation": "val"}[split]
        lists[f"{stem}{'' if year.startswith('2021') else year}.json"] = json.dumps(content).encode()
        images.setdefault(folder, {}).update({name: data for _, _, name, data in records})
        expected[split] = [(species[label], data) for _, label, _, data in records]
    archives = {f"{folder}.tar.gz": members for folder, members in images.items()}
    if year == "2017":
        archives["train_val2017.zip"] = lists
    else:
        archives |= {f"{name}.tar.gz": {name: data} for name, data in lists.items()}
    if obfuscated:
        names = json.dumps([{"id": label, "name": name} for label, name in enumerate(species)]).encode()
        archives["categories.json.tar.gz"] = {"categories.json": names}
    return Miniature(archives, {}, expected, 3)


DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
UPPER, LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
MINIATURES: Mapping[str, Callable[[], Miniature]] = {
    "mnist": lambda: mnist(DIGITS),
    "fashion_mnist": lambda: mnist(FASHION),
    "kmnist": lambda: mnist(("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")),
    "emnist_balanced": lambda: emnist("balanced", "0123456789" + UPPER + "abdefghnqrt"),
    "emnist_byclass": lambda: emnist("byclass", "0123456789" + UPPER + LOWER),
    "emnist_bymerge": lambda: emnist("bymerge", "0123456789" + UPPER + "abdefghnqrt"),
    "emnist_digits": lambda: emnist("digits", "0123456789"),
    "emnist_letters": lambda: emnist("letters", UPPER, first=1),
    "emnist_mnist": lambda: emnist("mnist", "0123456789"),
    "cifar10": lambda: cifar(10),
    "cifar100": lambda: cifar(100),
    "svhn": svhn,
    "imagenette": lambda: fastai("imagenette2-160", ("n01440764", "n03888257")),
    "imagewoof": lambda: fastai("imagewoof2", ("n02086240", "n02115641")),
    "tiny_imagenet": tiny_imagenet,
    "pets": pets,
    "flowers": flowers,
    "food101": food,
    "dtd": textures,
    "eurosat": eurosat,
    "stanford_dogs": stanford_dogs,
    "caltech101": caltech101,
    "places365": lambda: places365("large"),
    "places365_small": lambda: places365("256"),
    "inaturalist_2017": lambda: inaturalist("2017"),
    "inaturalist_2018": lambda: inaturalist("2018"),
    "inaturalist_2019": lambda: inaturalist("2019"),
    "inaturalist_2021": lambda: inaturalist("2021"),
    "inaturalist_2021_mini": lambda: inaturalist("2021_mini"),
}
