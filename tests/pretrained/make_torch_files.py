"""Writes torch_zip.pth and torch_legacy.pth, which test_torch_files.py reads; needs torch (2.13.0 wrote them)."""

import argparse
import collections
import pathlib

import torch

HERE = pathlib.Path(__file__).parent


def content() -> dict[str, object]:
    """A checkpoint with a tensor of each kind, as trainings write them."""
    grid = torch.arange(24.0).reshape(4, 6)
    state = collections.OrderedDict(
        whole=grid,
        view=grid[1:3, 1:6:2].t(),  # neither contiguous nor at the beginning of its storage
        parameter=torch.nn.Parameter(torch.tensor([0.5, -2.0])),
        half=torch.tensor([1.5, -0.25]).half(),
        bfloat16=torch.tensor([1.5, -0.25]).bfloat16(),
        float8_e4m3=torch.tensor([1.5, -0.25]).to(torch.float8_e4m3fn),
        float8_e5m2=torch.tensor([1.5, -0.25]).to(torch.float8_e5m2),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 3),
    )
    options = argparse.Namespace(
        lr=0.1, input_size=[3, 64, 144], where=pathlib.PurePosixPath("x"), device=torch.device("cpu")
    )
    return {"state_dict": state, "epoch": 3, "args": options, "seen": {"a", "b"}}


if __name__ == "__main__":
    for name, new in (("torch_zip.pth", True), ("torch_legacy.pth", False)):
        torch.save(content(), HERE / name, _use_new_zipfile_serialization=new)
