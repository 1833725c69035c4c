"""A server of a made-up model, whose class is the mean gray of an image: python served.py PORT_FILE SECONDS_A_BATCH."""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

from vision_jax.data.transforms import EvalTransform
from vision_jax.runtime import console
from vision_jax.serve import program
from vision_jax.serve.app import Options
from vision_jax.serve.backends import Best
from vision_jax.serve.batching import Limits


class Gray:
    """Has 256 classes, the gray levels, of which it gives that of an image and the next one."""

    name = "gray <level>"
    class_names = tuple(f"gray {n}" for n in range(256))
    topk = 2

    def __init__(self, seconds: float = 0.0, max_pixels: int = 10_000):
        self.transform = EvalTransform(8, 8, 1, copied=(), max_pixels=max_pixels)
        self.seconds = seconds
        self.sizes: list[int] = []

    def prepare(self, max_batch: int) -> None:
        pass

    def __call__(self, images: np.ndarray) -> Best:
        assert images.dtype == np.uint8
        self.sizes.append(len(images))
        time.sleep(self.seconds)
        level = images.reshape(len(images), -1).mean(1).round().astype(int)
        if (level == 13).any():
            raise FloatingPointError("an unlucky number")
        return Best(np.tile(np.float32([0.75, 0.25]), (len(images), 1)), np.stack([level, level + 1], 1))


def options(**changes: Any) -> Options:
    return Options(**{"limits": Limits(8, 0.005, 40), "max_bytes": 20_000, "max_seconds": 2.0} | changes)


def main(port_file: str, seconds: str) -> None:
    console.configure_logging()
    listen = program._listen

    def told(address: program.Address) -> Any:
        listener = listen(address)
        part = pathlib.Path(port_file + ".part")
        part.write_text(json.dumps(listener.getsockname()[1]))
        part.rename(port_file)
        return listener

    program._listen = told
    program.serve(Gray(float(seconds)), options(), program.Address(port=0, drain=0.5))


if __name__ == "__main__":
    main(*sys.argv[1:])
