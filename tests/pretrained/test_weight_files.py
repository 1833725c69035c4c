"""Files of weights: their kinds, shards, dtypes, and what is said of those that cannot be read."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from vision_jax.errors import DataError
from vision_jax.pretrained import files
from vision_jax.pretrained.tensors import to_numpy


def safetensors_file(tensors: dict[str, tuple[str, np.ndarray]]) -> bytes:
    """By the format's definition: the length of the header, the header, the data. Values are dtype and array."""
    header, data = {}, b""
    for key, (dtype, value) in tensors.items():
        header[key] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_small_floats_become_float32_on_the_host(tmp_path: pathlib.Path):
    values = np.array([[1.5, -0.25], [0, 2]])
    dtypes = {
        **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
        **{"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2},
    }
    # A single byte before them, so that none is aligned.
    tensors = {"byte": ("U8", np.ones(1, np.uint8))} | {k: (k, values.astype(dtype)) for k, dtype in dtypes.items()}
    (tmp_path / "weights").write_bytes(safetensors_file(tensors))
    with jax.transfer_guard("disallow_explicit"):  # nothing passes through an accelerator
        read = files.read(tmp_path / "weights").tensors
    assert read.keys() == tensors.keys()
    for key in dtypes:
        np.testing.assert_array_equal(to_numpy(read[key]), values.astype(np.float32), strict=True)
    (tmp_path / "weights").write_bytes(safetensors_file({"a": ("F4", np.ones(1, np.uint8))}))
    with pytest.raises(DataError, match="a has the dtype F4, which is not read"):
        files.read(tmp_path / "weights")


def test_what_the_safetensors_library_writes(tmp_path: pathlib.Path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.int64), "c": np.zeros((0, 2))}
    safetensors.numpy.save_file(tensors, tmp_path / "a", {"class_names": json.dumps(["cat", "dog"])})
    file = files.read(tmp_path / "a")
    assert file.class_names == ("cat", "dog")
    for key, value in tensors.items():
        np.testing.assert_array_equal(file.tensors[key], value, strict=True)


def test_halves_in_npz(tmp_path: pathlib.Path):
    """NumPy writes bfloat16 as two bytes of no type, as big_vision's files have them."""
    np.savez(tmp_path / "a.npz", a=np.array([1.5, -2], ml_dtypes.bfloat16))
    np.testing.assert_array_equal(
        to_numpy(files.read(tmp_path / "a.npz").tensors["a"]), np.float32([1.5, -2]), strict=True
    )


def write_shards(folder: pathlib.Path) -> pathlib.Path:
    shards = {"model-1.safetensors": {"a": np.ones(2)}, "model-2.safetensors": {"b": np.zeros(3), "c": np.ones(1)}}
    for name, tensors in shards.items():
        safetensors.numpy.save_file(tensors, folder / name)
    places = {key: name for name, tensors in shards.items() for key in tensors}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 48}, "weight_map": places}))
    return index


def test_shards_are_read_by_their_index(tmp_path: pathlib.Path):
    index = write_shards(tmp_path)
    tensors = files.read(index).tensors
    assert {key: value.shape for key, value in tensors.items()} == {"a": (2,), "b": (3,), "c": (1,)}
    safetensors.numpy.save_file({"b": np.zeros(3)}, tmp_path / "model-2.safetensors")
    with pytest.raises(DataError, match=r"says that c is in model-2.safetensors, where it is not"):
        files.read(index)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(DataError, match=r"names 2 shards, and model-1.safetensors is missing"):
        files.read(index)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    with pytest.raises(DataError, match="not in its folder"):
        files.read(index)


def test_shards_on_the_hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    write_shards(tmp_path)
    asked = []

    def download(where: str) -> str:
        asked.append(where)
        return str(tmp_path / where.rpartition("/")[2])

    monkeypatch.setattr(files, "_download", download)
    assert len(files.read("hf://big/model@v1/model.safetensors.index.json").tensors) == 3
    assert asked[1:] == ["big/model@v1/model-1.safetensors", "big/model@v1/model-2.safetensors"]


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: pathlib.Path):
    safetensors.numpy.save_file({"a": np.ones(100)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    contents = {
        "empty.pth": b"",
        "words.txt": b"some words",
        "cut.safetensors": whole[:-8],
        "cut_header.safetensors": whole[:40],
        "pickle.pkl": b"\x80\x04K\x03.",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "config.json": b"{}",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    for name, message in {
        "folder": "is a folder: give a file of weights, or the workdir of a run",
        "none.npz": "There is no file",
        "empty.pth": "is of an unknown kind, or damaged",
        "words.txt": "is of an unknown kind, or damaged: safetensors,",
        "cut.safetensors": "is damaged or cut off at a",
        "cut_header.safetensors": "is damaged: its header claims",
        "objects.npz": "holds Python objects, which are not read",
        "pickle.pkl": "is a pickle that torch.save did not write",
        "pointer.safetensors": "git lfs pull",
        "config.json": "is no index of shards",
        "run": "is the workdir of a run",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            files.read(tmp_path / name)
        assert "\n" not in str(raised.value)
        assert "allow_pickle" not in str(raised.value)


def test_workdirs(tmp_path: pathlib.Path):
    assert not files.is_workdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert files.is_workdir(tmp_path)
    assert files.is_workdir(str(tmp_path))
    assert not files.is_workdir("hf://timm/resnet18")
