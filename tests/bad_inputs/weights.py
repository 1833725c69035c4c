"""Files of weights that are missing, damaged, of another kind or of another model."""

import os
import pickle
from typing import Any

from bad_inputs.case import Case, Setup, changed, cut, directory, finished, image, tensors, text, training

_CONV = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (10, 512), "fc.bias": (10,)}


def _weights(
    name: str, *before: Setup, value: str, remedy: str, file: str = "w.bin", more: tuple[str, ...] = (), **options: Any
) -> Case:
    """Returns a case of a prediction by a ResNet-18."""
    arguments = ("predict", "a.jpg", "--model=resnet18", f"--pretrained={file}", *more)
    return Case(name, arguments, value, remedy, before=(image("a.jpg"), *before), **options)


class _Code:
    """What is pickled as a call that leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("called",)


_OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}

CASES = (
    _weights("no such weights", value=r"w\.bin", remedy="give a file"),
    _weights("a folder for weights", directory("w.bin"), value=r"w\.bin", remedy="give a file of weights"),
    _weights("a workdir for weights", finished("w.bin"), value=r"w\.bin", remedy="vision_jax export"),
    _weights("text for weights", text("w.bin", "mine\n" * 20), value=r"w\.bin", remedy="safetensors.*npz"),
    _weights("nothing in the file", text("w.bin", ""), value=r"w\.bin", remedy="safetensors.*npz"),
    _weights(
        "a pointer of Git LFS",
        text("w.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        value=r"w\.bin",
        remedy="git lfs pull",
    ),
    _weights(
        "cut safetensors", tensors("w.bin", _CONV), changed("w.bin", cut), value=r"w\.bin", remedy="[Cc]opy or download"
    ),
    _weights(
        "a header that claims too much",
        text("w.bin", b"\xff" * 6 + b"\0\0{}" + b" " * 60),
        value=r"w\.bin",
        remedy="[Cc]opy or download",
    ),
    _weights(
        "a header that is no JSON",
        text("w.bin", b"\x08\0\0\0\0\0\0\0{{{{{{{{"),
        value=r"w\.bin",
        remedy="[Cc]opy or download",
    ),
    _weights("a pickle with code", text("w.bin", pickle.dumps(_Code())), value=r"w\.bin", remedy="safetensors or npz"),
    _weights(
        "an index without shards",
        text("w.bin", '{"weight_map": {"a": "x.safetensors"}}'),
        value=r"x\.safetensors",
        remedy="beside it",
    ),
    _weights("an index of nothing", text("w.bin", "{}"), value=r"w\.bin", remedy="weight_map"),
    _weights("weights of a part", tensors("w.bin", _CONV), value=r"w\.bin|bn1", remedy="missing|--model"),
    _weights("weights of nothing known", tensors("w.bin", {"zebra": (3,)}), value="zebra", remedy="resnet18|--model"),
    _weights(
        "an image of weights", text("w.bin", b"\xff\xd8\xff\xe0" + b"0" * 80), value=r"w\.bin", remedy="safetensors"
    ),
    _weights("a hub without a network", value="hf://a/b", remedy="network", file="hf://a/b", environment=_OFFLINE),
    _weights("half a name on the hub", value="hf://a", remedy="hf://OWNER/NAME", file="hf://a", environment=_OFFLINE),
    _weights("a bad name on the hub", value="a b!", remedy="hf://OWNER/NAME", file="hf://a b!/c", environment=_OFFLINE),
    _weights(
        "names of too few classes",
        tensors("w.bin", _CONV),
        text("names", "ant\nbee\n"),
        value="2 names",
        remedy="10 classes",
        more=("--classes=names",),
    ),
    training("weights for a training", "--config.model.pretrained=w.bin", value=r"w\.bin", remedy="give a file"),
    training(
        "weights of another model",
        "--config.model.pretrained=w.bin",
        before=(tensors("w.bin", _CONV),),
        value=r"w\.bin|conv1",
        remedy="lenet5|model.name",
    ),
    training(
        "a run of another model",
        "--config.model.pretrained=r",
        "--config.model.name=resnet18",
        "--config.data.image_size=32",
        "--config.data.eval_resize=32",
        before=(finished("r"),),
        value="lenet5|conv1",
        remedy="model.name|resnet18",
    ),
)
