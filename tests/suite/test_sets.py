"""What is known of the sets, against their sources; and the forms that a validation set may have."""

import json
import pathlib

import miniature
import numpy as np
import pytest
from evaluation_sets import VALIDATION, WNIDS, png, right, validation_files, write

from vision_jax.commands import models
from vision_jax.data import tfds_format
from vision_jax.data.loader import Loader
from vision_jax.data.order import EvalOrder
from vision_jax.data.transforms import EvalTransform
from vision_jax.errors import DataError
from vision_jax.evaluators import suites
from vision_jax.suite import published
from vision_jax.suite.find import find_sets
from vision_jax.suite.images import FIELDS, Images, number_in, open_validation
from vision_jax.suite.sets import objectnet_classes

# mapping_files/imagenet_pytorch_id_to_objectnet_id.json of abarbu/objectnet-template-pytorch at 50cc8860: the number
# that the challenge gives ObjectNet's class, for each of ImageNet's that has one.
CHALLENGE = """
409:1 530:1 414:2 954:4 419:5 790:8 434:9 440:13 703:16 671:17 444:17 446:20 455:29 930:35 462:38 463:39 499:40 473:45
470:46 487:48 423:52 559:52 765:52 588:57 550:64 507:67 673:68 846:75 533:78 539:81 630:86 740:88 968:89 729:92 549:98
545:102 567:109 578:83 589:112 587:115 560:120 518:120 606:124 608:128 508:131 618:132 619:133 620:134 951:138 623:139
626:142 629:143 644:149 647:150 651:151 659:153 664:154 504:157 677:159 679:164 950:171 695:173 696:175 700:179
418:182 749:182 563:182 720:188 721:190 725:191 728:193 923:196 731:199 737:200 811:201 742:205 761:210 769:216
770:217 772:218 773:219 774:220 783:223 792:229 601:231 655:231 689:231 797:232 804:235 806:236 809:237 813:238
632:239 732:248 759:248 828:250 850:251 834:253 837:255 841:256 842:257 610:258 851:259 849:268 752:269 457:273
906:273 859:275 999:276 412:284 868:286 879:289 882:292 883:293 893:297 531:298 898:299 543:302 778:303 479:304
694:304 902:306 907:307 658:309 909:310
"""


def test_objectnet_classes_are_the_challenge_s():
    """Its numbers are in the order of ObjectNet's names for its classes; here their folders are told apart alone."""
    groups: dict[str, set[int]] = {}
    for pair in CHALLENGE.split():
        number, label = pair.split(":")
        groups.setdefault(label, set()).add(int(number))
    found = objectnet_classes()
    assert len(found) == len(groups) == 113
    assert sum(map(len, found.values())) == 125
    assert sorted(map(sorted, groups.values())) == sorted(found.values())
    assert list(found) == sorted(found)
    assert found["alarm_clock"] == [409, 530]  # analog clock, digital clock
    assert found["banana"] == [954]


def test_mapped_classes_leave_a_place_to_those_of_no_group():
    best = np.asarray([[4, 9, 7], [-1, -1, -1], [7, 4, 8]])
    assert suites.mapped_classes(best, [[9], [4, 7]]).tolist() == [[1, 0, 1], [-1, -1, -1], [1, 1, -1]]


def test_published_top1_is_that_of_the_table_of_models():
    """Which has it from the same results, copied by hand."""
    checked = 0
    for known in models.read_facts().values():
        library, _, tag = known.get("source", "").partition(" ")
        if library == "timm":
            assert published.weights_name(f"hf://timm/{tag}") == tag
            values = [published._published()[tag][setting] for setting in published.settings(tag)]
            assert known["top1"] in [value["val"]["top1"] for value in values]
            checked += 1
    assert checked > 100


def test_numbers_of_validation_images():
    assert number_in("n01440764/ILSVRC2012_val_00000293.JPEG") == 293
    assert number_in("ILSVRC2012_val_00050000.JPEG") == 50_000
    assert number_in("ILSVRC2012_test_00000001.JPEG") == 0
    assert number_in("val_00000001.JPEG") == 0


def labels_by_number(images: Images) -> dict[int, int]:
    return {record["number"]: record["label"] for record in (images[index] for index in range(len(images)))}


def opened(root: pathlib.Path) -> Images:
    place = find_sets(root).validation
    assert place is not None
    return open_validation(place)


def test_validation_images_in_the_archives_of_ilsvrc2012(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    miniature.write_archives(tmp_path / "imagenet")
    images = opened(tmp_path)
    wnids = [miniature.IDS[number] for number in miniature.VALIDATION_IDS]
    assert labels_by_number(images) == {number: WNIDS.index(wnid) for number, wnid in enumerate(wnids, 1)}
    assert images[3]["image"] == miniature.validation_images()["ILSVRC2012_val_00000004.JPEG"]
    assert images.describe(0).endswith("ILSVRC2012_img_val.tar/ILSVRC2012_val_00000001.JPEG")


@pytest.mark.parametrize("nested", [False, True])
def test_validation_images_with_a_file_of_labels(nested: bool, tmp_path: pathlib.Path):
    """As Kaggle has them."""
    directory = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" if nested else tmp_path
    write(directory / "val", {name.split("/")[1]: data for name, data in validation_files().items()})
    lines = [f"ILSVRC2012_val_{number:08d},{WNIDS[label]} 1 2 3 4" for number, (label, _) in VALIDATION.items()]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))
    assert labels_by_number(opened(tmp_path)) == {number: label for number, (label, _) in VALIDATION.items()}


@pytest.mark.parametrize("file_names", [True, False])
def test_validation_images_of_a_prepared_data_set(file_names: bool, tmp_path: pathlib.Path):
    directory = tmp_path / "imagenet2012" / "5.1.0"
    directory.mkdir(parents=True)
    writer = tfds_format.open_shard(directory / tfds_format.shard_name("imagenet2012", "validation", 0, 1))
    for number, (label, color) in VALIDATION.items():
        name = b"ILSVRC2012_val_%08d.JPEG" % number if file_names else None
        writer.write(tfds_format.serialize_example(png(color), label, name))
    writer.close()
    tfds_format.write_metadata(
        directory, "imagenet2012", {"validation": [6]}, {"validation": 1}, WNIDS, file_names=file_names
    )
    images = opened(tmp_path)
    assert [images[index]["label"] for index in range(6)] == [label for label, _ in VALIDATION.values()]
    assert [images[index]["number"] for index in range(6)] == ([1, 2, 3, 4, 5, 6] if file_names else [0] * 6)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps({**info, "name": "imagenet2012_corrupted"}))
    assert find_sets(tmp_path).validation is None


def test_classes_that_are_not_imagenet_s_are_refused(tmp_path: pathlib.Path):
    write(tmp_path / "val", {"0/a.png": png(right(0)), "1/a.png": png(right(1))})
    with pytest.raises(DataError, match="val has classes that are none of ImageNet's 1,000 WordNet ids: 0, 1"):
        opened(tmp_path)


def test_the_border_is_cut_before_all_else():
    """And an image that is nothing but border is damaged."""
    with_border, without = png(right(123), 20, border=2), png(right(123), 20)
    source = Images(_Bytes([with_border, without, png(right(0), 0, border=2)]), WNIDS, np.zeros(3), np.zeros(3))
    transform = EvalTransform(16, 20, 3, copied=FIELDS, border=2)
    with Loader(source, EvalOrder(3, 3), transform, np.arange(3), max_bad_records=1, leave_out=True) as loader:
        batch = loader.start(0)()
        assert batch["mask"].tolist() == [1, 1, 0]
        assert batch["index"].tolist() == [0, 1, 0]
        assert (batch["image"][:2] == [35, 60, 85]).all()
        assert loader.problems == {2: "it is not larger than its border of 2 pixels"}


class _Bytes:
    """A source of encoded images."""

    num_classes, class_names = 1000, WNIDS

    def __init__(self, images: list[bytes]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        return {"image": self.images[index]}

    def describe(self, index: int) -> str:
        return f"image {index}"
