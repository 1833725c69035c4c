"""What evaluators of boxes and masks share: a split is gone through canvas by canvas, so that shapes are few."""

import dataclasses
import functools
from typing import ClassVar, cast

import jax
import numpy as np

from vision_jax.data import resizing
from vision_jax.data.boxes import DenseSource, DenseSubset
from vision_jax.data.dense import DenseTransform
from vision_jax.errors import DataError
from vision_jax.evaluators.base import Evaluator


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DenseEvaluator(Evaluator):
    """An evaluator of what is on canvases; see `vision_jax.data.dense`."""

    # What objectives it measures: those of this `Objective.dense`.
    dense: ClassVar[str] = ""

    @functools.cached_property
    def by_canvas(self) -> tuple[tuple["DenseEvaluator", np.ndarray], ...]:
        """For each canvas that an image has, an evaluator like this one of its images, and their numbers (n,).

        They keep what they compile.
        """
        context = self.context
        transform = context.transform
        assert isinstance(transform, DenseTransform)  # objectives of boxes and masks have no other
        found = []
        source = cast(DenseSource, context.source)
        for canvas, indices in resizing.bucket_indices(source.sizes, transform.resizing, transform.canvases):
            part = dataclasses.replace(context, source=DenseSubset(source, indices), transform=transform.on(canvas))
            found.append((dataclasses.replace(self, context=part), indices))
        return tuple(found)

    def check_count(self, count: int) -> int:
        """Returns the number of images counted, after checking it; see `Context.check_count`.

        Raises:
            DataError: if those of all canvases that are damaged are together more than may be left out.
        """
        there, most = len(self.context.source), self.context.max_bad_records * jax.process_count()
        if there - count > most:  # each canvas has a loader, and each of these may leave out so many
            raise DataError(
                f"{there - count} of {there} images are damaged, and {most} may be left out: repair them, or raise "
                "data.max_bad_eval_records."
            )
        return self.context.check_count(count)
