"""Compares detections that an ONNX file gives with those of `vision_jax.dense.postprocess`, of the same scores."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from vision_jax.errors import DataError
from vision_jax.export import detections, onnx_file
from vision_jax.export.check import SHARE, Results, Run
from vision_jax.export.graph import Graph
from vision_jax.export.subject import FoundSubject

_LEVELS = 256  # made-up scores are multiples of 1 / 256, so that some are equal
_OBJECTS = 40  # around which made-up boxes are


def write(made: FoundSubject, graph: Graph, path: pathlib.Path, metadata: Mapping[str, str], *, external: bool) -> Run:
    """Writes a detector, and returns from images to the scores and boxes of all anchors, by a copy of the file.

    With each of its calls, it checks the detections that the file gives; and what the file makes of made-up scores is
    checked here.

    Args:
        made: the detector.
        graph: with the scores and boxes of all anchors as its outputs, after which detections are made here.
        path: of the file.
        metadata, external: as of `onnx_file.write`.

    Raises:
        DataError: if detections are not those of JAX.
        OSError: if the file cannot be written.
    """
    copy = path.with_name(f"all-{path.name}")
    _check_made_up(made, copy, graph.opset)
    everything = list(graph.outputs)
    detections.append(graph, made.selection, made.counts, made.canvas, padded=made.padded)
    found = list(graph.outputs)
    graph.outputs = found + everything
    onnx_file.write(graph, copy, metadata, external=external)
    run_all = onnx_file.load(copy)
    for file in path.parent.glob(f"{copy.name}*"):  # it has been read
        file.unlink()
    graph.outputs = found
    onnx_file.write(graph, path, metadata, external=external)
    run_found = onnx_file.load(path)

    def run(images: np.ndarray) -> Results:
        given = {detections.SIZES: made.part()} if made.padded else {}
        *results, scores, boxes = run_all(images, **given)
        for result, again in zip(results, run_found(images, **given), strict=True):
            if not np.array_equal(result, again):
                raise DataError(f"{path.name} gives other detections than a copy of it with more outputs.")
        _compare(made, tuple(results), scores, boxes, "images")
        return scores, boxes

    return run


def _check_made_up(made: FoundSubject, path: pathlib.Path, opset: int) -> None:
    """Checks the operators that make detections, alone, with scores of all sizes and boxes that overlap.

    Raises:
        DataError: if they do not give what JAX does.
    """
    random = np.random.default_rng(0)
    anchors, (height, width) = sum(made.counts), made.canvas
    scores = random.uniform(0, 1, (1, anchors, made.trained.num_classes)) ** 4
    objects = random.uniform(0, 1, (_OBJECTS, 4)) * [width, height, width / 2, height / 2]
    chosen = objects[random.integers(0, _OBJECTS, anchors)] * random.uniform(0.8, 1.2, (anchors, 4))
    boxes = np.concatenate([chosen[:, :2] - chosen[:, 2:] / 2, chosen[:, :2] + chosen[:, 2:] / 2], 1)
    given = (np.round(scores * _LEVELS) / _LEVELS).astype(np.float32), boxes[None].astype(np.float32)
    graph = Graph(opset)
    graph.outputs = [
        graph.input(name, array.shape, array.dtype) for name, array in zip(made.traced, given, strict=True)
    ]
    detections.append(graph, made.selection, made.counts, made.canvas, padded=made.padded)
    onnx_file.write(graph, path, {}, external=False)
    run = onnx_file.load(path)
    path.unlink()
    sizes = {detections.SIZES: made.part()} if made.padded else {}
    _compare(made, tuple(run(given[0], **{made.traced[1]: given[1]}, **sizes)), *given, "made-up scores")


def _compare(
    made: FoundSubject, found: tuple[np.ndarray, ...], scores: np.ndarray, boxes: np.ndarray, what: str
) -> None:
    """Checks detections against those of JAX; they are copies of the same numbers, so they are equal or others.

    Raises:
        DataError: if more than `SHARE` of them differ.
    """
    expected = jax.device_get(made.select(scores, boxes))
    rows = int((expected.labels[0] >= 0).sum())
    wanted = [expected.boxes[0, :rows], expected.scores[0, :rows, None], expected.labels[0, :rows, None]]
    given = [found[0], found[1][:, None], found[2][:, None]]
    ours, theirs = ({tuple(row) for row in np.concatenate(parts, 1).tolist()} for parts in (wanted, given))
    differ = max(len(ours - theirs), len(theirs - ours), abs(rows - len(found[0])))
    if differ > SHARE * max(rows, len(found[0])):
        raise DataError(
            f"The file was not written: of the {rows} detections that JAX finds of {what}, {differ} are not those of "
            "ONNX."
        )
    if (np.diff(found[1]) > 0).any():
        raise DataError(f"The file was not written: the detections of {what} are not in the order of their scores.")
