"""The folder of explanations: pictures, arrays, explanations.json, a contact sheet and a page."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image

from vision_jax.errors import ConfigError, DataError, check_folder, printable, reason
from vision_jax.explain import Method
from vision_jax.explanations import page
from vision_jax.explanations.explainer import Explanation
from vision_jax.explanations.faithfulness import Faithfulness, Means
from vision_jax.explanations.overlays import as_rgb, enlarged, overlay, resized
from vision_jax.predict import Class
from vision_jax.report.markup import Markup
from vision_jax.report.sheet import Row, contact_sheet
from vision_jax.runtime.writers import write_atomically

PAGE, JSON, SHEET = "index.html", "explanations.json", "contact_sheet.png"
MOST_SHOWN = 100  # images on the page and on the contact sheet, which are for people
_IMAGES, _OVERLAYS, _MAPS = "images", "overlays", "maps"
_THUMBNAIL = 160  # pixels of an image of the contact sheet
_LONGEST_NAME = 40  # characters of an image's name that are kept in those of its files


def check_output(directory: pathlib.Path, overwrite: bool) -> None:
    """Checks that explanations can be written to a folder.

    Raises:
        ConfigError: if it is no folder, has something else in it, or explanations that are not to be replaced.
    """
    check_folder("--output", directory)
    there = {path.name for path in directory.iterdir()} if directory.exists() else set()
    others = there - {PAGE, JSON, SHEET, _IMAGES, _OVERLAYS, _MAPS}
    if there and JSON not in there:  # which is written first: folders of these names may be anybody's
        others = there
    if others:
        raise ConfigError(
            f"--output is {directory}, which has other files, such as {min(others)}: give another folder."
        )
    if there and not overwrite:
        raise ConfigError(f"There are explanations in {directory} already: give another --output, or --overwrite.")


class Folder:
    """Writes explanations to a folder as they come. What is there already is removed; see `check_output`.

    Args:
        directory: where they are written.
        methods: by how they are written.

    Raises:
        DataError: if it cannot be written.
    """

    def __init__(self, directory: pathlib.Path, methods: Mapping[str, Method]):
        self._directory, self._methods = directory, methods
        self._entries: list[dict[str, Any]] = []
        self._cards: list[Markup] = []
        self._rows: list[Row] = []
        self._means = Means()
        with self._storage():
            directory.mkdir(exist_ok=True)
        self._write_json({})
        with self._storage():
            for name in (PAGE, SHEET):
                (directory / name).unlink(missing_ok=True)
            for name in (_IMAGES, _OVERLAYS, _MAPS):
                if (directory / name).exists():
                    shutil.rmtree(directory / name)
                (directory / name).mkdir()

    def add(self, explanation: Explanation) -> None:
        """Writes the files of an explanation.

        Raises:
            DataError: if the storage fails.
        """
        number = len(self._entries)
        entry: dict[str, Any] = {"image": printable(explanation.path)}
        overlays = {}
        if explanation.error is not None:
            entry["error"] = explanation.error
        else:
            name = f"{number:05d}_{_slug(pathlib.PurePath(explanation.path).stem)[:_LONGEST_NAME]}"
            overlays = {
                method: overlay(explanation.image, values, self._methods[method].signed)
                for method, values in explanation.maps.items()
            }
            with self._storage():
                entry |= self._write(name, explanation, overlays)
            self._means.add(explanation.curves)
        self._entries.append(entry)
        if number < MOST_SHOWN:
            self._cards.append(page.card(number, explanation, overlays, self._methods))
            if explanation.error is None:
                self._rows.append(_sheet_row(explanation, overlays))

    def finish(self, title: str, about: Mapping[str, Any]) -> dict[str, Faithfulness]:
        """Writes explanations.json, the contact sheet and the page.

        Args:
            title: of the page.
            about: what explanations.json says besides; `model` has a `name` and its `origin`, for the page too.

        Returns:
            how faithful each method is, the best first; {}: it was not measured.

        Raises:
            DataError, CheckpointError: if the storage fails.
        """
        faithfulness = self._means.results()
        self._write_json(about)
        if self._rows:
            with self._storage():
                sheet = contact_sheet(self._rows, _THUMBNAIL, 1 + len(self._methods))
                sheet.save(self._directory / SHEET)
        model = f"{about['model']['name']}, {about['model']['origin']}."
        text = page.make_page(title, model, self._cards, len(self._entries), self._methods, faithfulness)
        write_atomically(self._directory / PAGE, text)
        return faithfulness

    def _write_json(self, about: Mapping[str, Any]) -> None:
        """Writes explanations.json, with what has been added so far."""
        faithfulness = {name: found.as_json() for name, found in self._means.results().items()}
        content = {
            **about,
            "methods": {name: _describe_method(method) for name, method in self._methods.items()},
            **({"faithfulness": faithfulness} if faithfulness else {}),
            "images": self._entries,
        }
        write_atomically(self._directory / JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _write(self, name: str, explanation: Explanation, overlays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Writes the pictures and arrays of an image, and returns its entry."""
        seen = f"{_IMAGES}/{name}.png"
        _save(self._directory / seen, as_rgb(explanation.image))
        maps = {}
        for method, values in explanation.maps.items():
            files = {
                "overlay": f"{_OVERLAYS}/{name}.{_slug(method)}.png",
                "map": f"{_MAPS}/{name}.{_slug(method)}.npy",
            }
            _save(self._directory / files["overlay"], enlarged(overlays[method]))
            np.save(self._directory / files["map"], values)
            extremes = {"least": float(values.min()), "largest": float(values.max())}
            curves = explanation.curves.get(method)
            auc = {} if curves is None else {f"{kind}_auc": value for kind, value in curves.areas().items()}
            maps[method] = {**files, **extremes, **auc}
        assert explanation.target is not None  # it has no error
        return {
            "prediction": _describe_class(explanation.classes[0]),
            "classes": [_describe_class(each) for each in explanation.classes],
            "target": _describe_class(explanation.target),
            "score": explanation.score,
            **({} if explanation.label is None else {"label": explanation.label}),
            "input": seen,
            "maps": maps,
        }

    @contextlib.contextmanager
    def _storage(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"Cannot write to {self._directory}: {reason(error, path=True)}. Make room, or give another --output."
            ) from error


def _slug(text: str) -> str:
    """Returns a text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "image"


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    PIL.Image.fromarray(pixels).save(path)


def _describe_class(given: Class) -> dict[str, Any]:
    return {"number": given.number, "name": printable(given.name), "probability": given.probability}


def _describe_method(method: Method) -> dict[str, Any]:
    return {"name": method.name, "options": dataclasses.asdict(method), "signed": method.signed}


def _sheet_row(explanation: Explanation, overlays: Mapping[str, np.ndarray]) -> Row:
    images = [resized(as_rgb(image), _THUMBNAIL) for image in (explanation.image, *overlays.values())]
    best, target = explanation.classes[0], explanation.target
    assert target is not None  # it has no error
    said = f"{best.name} {best.probability:.1%}"
    if target.number != best.number:
        said += f", explained: {target.name} {target.probability:.1%}"
    if explanation.label is not None:
        said += f", label: {explanation.label}"
    return f"{said}   {explanation.path}", images, ["image", *overlays]
