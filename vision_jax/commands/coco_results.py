"""COCO's results: the list of detections, as JSON, that pycocotools' `loadRes` and evaluation servers read."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vision_jax.errors import DataError, reason, suggest

if TYPE_CHECKING:
    from vision_jax.data.images import ImageSource
    from vision_jax.predict_dense import DensePrediction


class CocoIds:
    """What a JSON file of COCO's kind calls images and categories; it needs no annotations.

    Args:
        path: of the file, such as instances_val2017.json or image_info_test-dev2017.json.
        source: the images that are predicted; each must be listed, by the end of its path.
        names: of the model's classes, of which each must be a category, but for those that no object is of.

    Raises:
        DataError: if the file cannot be read, or lacks an image or a class.
    """

    def __init__(self, path: pathlib.Path, source: "ImageSource", names: Sequence[str]):
        self._path = path
        content = self._read()
        self._images = self._ids(content, "images", "file_name")
        categories = self._ids(content, "categories", "name")
        self._categories = [self._category(name, categories) for name in names]
        for number in range(len(source)):
            self._image(source.describe(number))

    def rows(self, prediction: "DensePrediction", threshold: float) -> list[dict[str, Any]]:
        """Returns the detections of an image, best first, with boxes (left, top, width, height) in its pixels.

        Args:
            prediction: of the image; if it is damaged, there are none.
            threshold: the least score.
        """
        if prediction.boxes is None:
            return []
        found = prediction.boxes.above(threshold)
        columns = (column.tolist() for column in (found.boxes, found.scores, found.labels))
        image, rows = self._image(prediction.path), []
        for (x1, y1, x2, y2), score, label in zip(*columns, strict=True):
            category, box = self._categories[label], [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
        return rows

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"--annotations is {self._path}, which cannot be read: {reason(error)}.") from error
        return content if isinstance(content, dict) else {}

    def _ids(self, content: dict[str, Any], kind: str, key: str) -> dict[str, Any]:
        """Returns the ids of what is listed, by its name."""
        ids: dict[str, Any] = {}
        listed = content.get(kind)
        for item in listed if isinstance(listed, list) else ():
            if not isinstance(item, dict) or not isinstance(item.get(key), str) or "id" not in item:
                raise DataError(f"{self._path} has {item!r} among its {kind}, which need an id and a {key}.")
            if item[key] in ids:
                raise DataError(f"{self._path} has two {kind} with the {key} {item[key]!r}: names must differ.")
            ids[item[key]] = item["id"]
        if not ids:
            raise DataError(f"{self._path} has no list of {kind}: give a file such as COCO's instances_val2017.json.")
        return ids

    def _category(self, name: str, categories: dict[str, Any]) -> Any:
        from vision_jax.data.boxes import BACKGROUND, UNUSED

        if name not in categories and name.strip("_") not in (BACKGROUND, UNUSED):
            known = suggest(name, list(categories))
            raise DataError(f"{self._path} has no category {name!r}, which the model finds: {known}")
        return categories.get(name)

    def _image(self, path: str) -> Any:
        parts = pathlib.PurePath(path).parts
        for first in range(len(parts)):
            if (name := "/".join(parts[first:])) in self._images:
                return self._images[name]
        raise DataError(f"{path} is no image of {self._path}: leave it out, or give the file that lists it.")


@contextlib.contextmanager
def writing(output: pathlib.Path) -> Iterator[Any]:
    """Gives what writes a row of the list. The file is there once it is whole.

    Raises:
        DataError: if it cannot be written.
    """
    part = output.with_name(f".{output.name}.part")
    separator = "[\n"
    try:
        with part.open("w", encoding="utf-8") as file:

            def write(row: dict[str, Any]) -> None:
                nonlocal separator
                file.write(separator + json.dumps(row))
                separator = ",\n"

            yield write
            file.write("\n]\n" if separator == ",\n" else "[]\n")
        os.replace(part, output)
    except OSError as error:
        raise DataError(f"Cannot write {output}: {reason(error)}. Make room, or give another --output.") from error
    finally:
        part.unlink(missing_ok=True)
