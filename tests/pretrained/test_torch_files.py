"""What torch saved is read without it. `make_torch_files.py` wrote the files that are here."""

import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from vision_jax import pretrained
from vision_jax.errors import DataError
from vision_jax.pretrained import files, torch_files
from vision_jax.pretrained.tensors import to_numpy

HERE = pathlib.Path(__file__).parent
GRID = np.arange(24, dtype=np.float32).reshape(4, 6)
FEW = np.array([1.5, -0.25], np.float32)
EXPECTED = {
    "whole": GRID,
    "view": GRID[1:3, 1:6:2].T,
    "parameter": np.array([0.5, -2], np.float32),
    **dict.fromkeys(("half", "bfloat16", "float8_e4m3", "float8_e5m2"), FEW),
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_both_formats_are_read_without_torch(name: str, tmp_path: pathlib.Path):
    """Whatever the file is called, and with objects of classes that are not looked for."""
    copy = tmp_path / "best.ckpt"
    copy.write_bytes((HERE / name).read_bytes())
    file = files.read(copy)
    values = {key.removeprefix("state_dict."): to_numpy(value) for key, value in file.tensors.items()}
    assert values.keys() == EXPECTED.keys()
    for key, expected in EXPECTED.items():
        np.testing.assert_array_equal(values[key], expected, err_msg=key, strict=True)
    assert file.others == ("epoch", "args", "seen")
    assert file.image_size == (64, 144)


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_a_file_that_is_cut_off_is_refused(name: str, tmp_path: pathlib.Path):
    whole = (HERE / name).read_bytes()
    for length in (len(whole) - 200, len(whole) // 2, 80):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError) as raised:
            files.read(tmp_path / name)
        assert str(raised.value).startswith(str(tmp_path / name))


def test_a_storage_that_was_altered_is_refused(tmp_path: pathlib.Path):
    data = bytearray((HERE / "torch_zip.pth").read_bytes())
    data[data.index(GRID.tobytes()) + 8] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    file = files.read(tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"a.pth is damaged: Bad CRC-32"):
        to_numpy(file.tensors["state_dict.whole"])


def write(path: pathlib.Path, content: object) -> None:
    """Writes an archive of no storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(content, protocol=2))


class Evil:
    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_no_code_of_the_file_runs(tmp_path: pathlib.Path):
    write(tmp_path / "a.pth", {"state_dict": {"a": np.ones(2, np.float32)}, "x": Evil(tmp_path / "ran")})
    pickle.loads(pickle.dumps(Evil(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would
    (tmp_path / "ran").unlink()
    file = files.read(tmp_path / "a.pth")
    np.testing.assert_array_equal(file.tensors["state_dict.a"], [1, 1])
    assert file.others == ("x",)
    assert not (tmp_path / "ran").exists()


def test_tensors_within_their_storage_alone_are_read():
    storage = torch_files._Storage(lambda: np.zeros(16, np.uint8), np.dtype(np.float32))
    tensor = torch_files._rebuild_tensor(storage, 1, (3,), (1,))
    assert tensor.numpy().shape == (3,)
    for offset, size, stride in ((2, (3,), (1,)), (0, (2,), (4,)), (-1, (2,), (1,)), (1, (2,), (-1,))):
        with pytest.raises(DataError, match="reaches beyond its 4 stored values"):
            torch_files._rebuild_tensor(storage, offset, size, stride).numpy()
    # Bytes of the file are no pointers to objects.
    foreign = torch_files._rebuild_tensor_v3(storage, 0, (2,), (1,), False, None, np.dtype(object))
    assert torch_files.is_unreadable(foreign)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no tensors by name, but an object of the class list"),
        (3, "holds no tensors by name, but an object of the class int"),
        (pathlib.PurePosixPath("x"), "holds no tensors by name, but an object of the class pathlib"),
        ({"epoch": 3}, r"by torch.save\(model.state_dict\(\), FILE\)"),
    ],
)
def test_what_has_no_tensors_is_refused_in_one_line(content: object, message: str, tmp_path: pathlib.Path):
    write(tmp_path / "a.pth", content)
    with pytest.raises(DataError, match=message) as raised:
        pretrained.load("resnet18", tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


def test_what_torch_writes_today_is_read(tmp_path: pathlib.Path):
    torch = pytest.importorskip("torch")
    import make_torch_files

    for i, options in enumerate(({}, {"pickle_protocol": 5}, {"_use_new_zipfile_serialization": False})):
        path = tmp_path / f"{i}.bin"
        torch.save(make_torch_files.content(), path, **options)
        file = files.read(path)
        for key, expected in EXPECTED.items():
            np.testing.assert_array_equal(to_numpy(file.tensors[f"state_dict.{key}"]), expected, err_msg=key)
        module = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.BatchNorm1d(3))
        module[0].register_buffer("scratch", torch.zeros(2), persistent=False)
        torch.save({"model": module}, path, **options)  # the module itself
        state = {f"model.{key}": value.numpy() for key, value in module.state_dict().items()}
        tensors = files.read(path).tensors
        assert tensors.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(tensors[key].numpy(), value, err_msg=key)
        torch.save({"a": torch.eye(2).to_sparse(), "b": torch.ones(2)}, path, **options)
        assert files.read(path).unreadable == {"a": "torch._utils._rebuild_sparse_tensor"}
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "script.pt"))
    with pytest.raises(DataError, match="is a TorchScript program"):
        files.read(tmp_path / "script.pt")
