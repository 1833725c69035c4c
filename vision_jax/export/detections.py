"""From the scores and boxes of all anchors to detections, as operators of ONNX, for one image.

It is what `vision_jax.dense.postprocess.select` does, in the same order: of each level the best pairs of anchor and
class, boxes clipped to the image, non-maximum suppression (NMS) within each class, and the best of what is left.
"""

from collections.abc import Sequence

import numpy as np

from vision_jax.dense.postprocess import Selection, float32_limit
from vision_jax.export.elementwise import reduce_tensor
from vision_jax.export.graph import FOUND, Graph, Tensor

OUTPUTS = ("boxes", "scores", "labels")
SIZES = "sizes"  # the input that says which part of a canvas is an image
_PLACE = "detections"
_INDEX = np.dtype(np.int64)


def append(graph: Graph, selection: Selection, counts: Sequence[int], canvas: tuple[int, int], *, padded: bool) -> None:
    """Makes detections of the outputs of a graph, which are its new outputs.

    These are `boxes` (n, 4) float32, x1, y1, x2 and y2 in pixels of the canvas, `scores` (n,) float32 and `labels` (n,)
    int64, best first, where n depends on the image.

    Args:
        graph: its outputs are the scores of all anchors, (1, anchors, classes), and their boxes, (1, anchors, 4).
        selection: what is taken for a detection.
        counts: how many anchors each level has.
        canvas: height and width of the images.
        padded: images are smaller than the canvas: `sizes` (1, 2) int64, height and width, is an input too. Otherwise,
            boxes are clipped to the canvas.
    """
    scores, boxes = graph.outputs
    graph.outputs = []
    levels = [_best_of_level(graph, selection, scores, boxes, *part) for part in _parts(counts)]
    values, labels, candidates = (_join(graph, parts) for parts in zip(*levels, strict=True))
    candidates = _clip(graph, candidates, canvas, graph.input(SIZES, (1, 2), _INDEX) if padded else None)
    numbers = _suppress(graph, selection, values, labels, candidates, scores.shape[2])
    count = graph.add("Shape", [numbers], (1,), _INDEX, _PLACE)
    # In the order of the candidates, so that of equal scores the first is taken.
    numbers, _ = _top_k(graph, numbers, count, FOUND, largest=0)
    most = graph.constant(np.array([selection.detections]), "most")
    best, order = _top_k(
        graph, _gather(graph, values, numbers), graph.add("Min", [count, most], (1,), _INDEX, _PLACE), FOUND
    )
    chosen = _gather(graph, numbers, order)
    found = (_gather(graph, candidates, chosen), best, _gather(graph, labels, chosen))
    for name, tensor in zip(OUTPUTS, found, strict=True):
        graph.finish(tensor, name)


def _parts(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Returns where the anchors of each level begin and end."""
    ends = np.cumsum(counts).tolist()
    return list(zip([0, *ends], ends, strict=False))


def _best_of_level(
    graph: Graph, selection: Selection, scores: Tensor, boxes: Tensor, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns scores, labels and boxes of the best pairs of anchor and class of a level, best first."""
    classes = scores.shape[2]
    scores, boxes = (_slice(graph, tensor, begin, end) for tensor in (scores, boxes))
    # The best pairs are of the anchors whose best class is best, so that only the pairs of these are compared.
    kept = min(selection.candidates, end - begin)
    highest = _reshape(graph, reduce_tensor(graph, "ReduceMax", scores, [1], _PLACE), (end - begin,))
    _, rows = _top_k(graph, highest, _number(graph, kept), kept)
    rows, _ = _top_k(graph, rows, _number(graph, kept), kept, largest=0)
    flat = _reshape(graph, _gather(graph, scores, rows), (kept * classes,))
    most = min(selection.candidates, kept * classes)
    values, pairs = _top_k(graph, flat, _number(graph, most), most)
    divisor = graph.constant(np.array(classes), "classes")
    anchors = graph.add("Div", [pairs, divisor], (most,), _INDEX, _PLACE)
    labels = graph.add("Mod", [pairs, divisor], (most,), _INDEX, _PLACE)
    return values, labels, _gather(graph, boxes, _gather(graph, rows, anchors))


def _clip(graph: Graph, boxes: Tensor, canvas: tuple[int, int], sizes: Tensor | None) -> Tensor:
    """Returns the part of boxes (n, 4) that is inside of the image."""
    if sizes is None:
        height, width = canvas
        limit = graph.constant(np.array([width, height, width, height], np.float32), "limit")
    else:
        order = graph.constant(np.array([1, 0, 1, 0]), "order")
        limit = _gather(graph, _reshape(graph, sizes, (2,)), order)
        limit = graph.add("Cast", [limit], (4,), np.float32, _PLACE, to=np.dtype(np.float32))
    zero = graph.constant(np.float32(0), "zero")
    boxes = graph.add("Max", [boxes, zero], boxes.shape, boxes.dtype, _PLACE)
    return graph.add("Min", [boxes, limit], boxes.shape, boxes.dtype, _PLACE)


def _suppress(
    graph: Graph, selection: Selection, scores: Tensor, labels: Tensor, boxes: Tensor, classes: int
) -> Tensor:
    """Returns the numbers of the candidates that NMS within each class keeps, (n,) int64.

    Each class has a row of scores, in which the candidates of other classes are below the threshold.
    """
    count = scores.shape[0]
    numbers = graph.constant(np.arange(classes)[:, None], "classes")
    own = graph.add("Equal", [labels, numbers], (classes, count), np.bool_, _PLACE)
    none = graph.constant(np.float32(-1), "none")
    rows = graph.add("Where", [own, scores, none], (classes, count), scores.dtype, _PLACE)
    inputs = [
        _reshape(graph, boxes, (1, count, 4)),
        _reshape(graph, rows, (1, classes, count)),
        graph.constant(np.array([selection.detections]), "most"),
        graph.constant(np.array([float32_limit(selection.nms_threshold)]), "nms_threshold"),
        graph.constant(np.array([selection.score_threshold], np.float32), "score_threshold"),
    ]
    kept = graph.add("NonMaxSuppression", inputs, (FOUND, 3), _INDEX, _PLACE)  # image, class and candidate
    return graph.add("Gather", [kept, graph.constant(np.array(2), "candidate")], (FOUND,), _INDEX, _PLACE, axis=1)


def _slice(graph: Graph, tensor: Tensor, begin: int, end: int) -> Tensor:
    """Returns some rows of (1, rows, columns), without the first axis."""
    rows, columns = tensor.shape[1:]
    tensor = _reshape(graph, tensor, (rows, columns))
    bounds = [graph.constant(np.array([number]), "bound") for number in (begin, end, 0)]
    return graph.add("Slice", [tensor, *bounds], (end - begin, columns), tensor.dtype, _PLACE)


def _reshape(graph: Graph, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    target = graph.constant(np.array(shape, np.int64), "shape")
    return graph.add("Reshape", [tensor, target], shape, tensor.dtype, _PLACE)


def _gather(graph: Graph, tensor: Tensor, numbers: Tensor) -> Tensor:
    """Returns entries of the first axis."""
    shape = (*numbers.shape, *tensor.shape[1:])
    return graph.add("Gather", [tensor, numbers], shape, tensor.dtype, _PLACE, axis=0)


def _join(graph: Graph, parts: Sequence[Tensor]) -> Tensor:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return graph.add("Concat", parts, shape, parts[0].dtype, _PLACE, axis=0)


def _number(graph: Graph, number: int) -> Tensor:
    return graph.constant(np.array([number]), "count")


def _top_k(graph: Graph, values: Tensor, count: Tensor, size: int, *, largest: int = 1) -> tuple[Tensor, Tensor]:
    """Returns the largest of values (n,), or the smallest, in their order, and where they are, the first of equal ones.

    Args:
        graph: of all.
        values: see above.
        count: how many, (1,) int64.
        size: the same where it is known, or `FOUND`.
        largest: 1, or 0 for the smallest.
    """
    found, places = graph.add_several(
        "TopK", [values, count], [(size,), (size,)], (values.dtype, _INDEX), _PLACE, axis=0, largest=largest, sorted=1
    )
    return found, places
