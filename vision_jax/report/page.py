"""The page: one HTML file with all figures and images in it, which needs no network and no JavaScript."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import vision_jax
from vision_jax.report import dense, predicted, written
from vision_jax.report.classes import ClassTable
from vision_jax.report.dense import Found
from vision_jax.report.evaluation import Evaluation
from vision_jax.report.markup import Markup, document, element, report_style
from vision_jax.report.runs import Run
from vision_jax.report.samples import Sample

GENERATOR = "vision_jax report"


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What is known of a run beside what it has written.

    Attributes:
        evaluation: of its checkpoint; None: there is none.
        table: a table of classes that an evaluation in training wrote, and where it comes from; None: there is none.
        samples: of its first training batch; (): there are none.
        found: what a detector or segmenter finds in some images; None: there is none.
        dense_table: the table of classes of such a one, and where it comes from; None: there is none.
    """

    evaluation: Evaluation | None = None
    table: tuple[str, ClassTable] | None = None
    samples: Sequence[Sample] = ()
    found: Found | None = None
    dense_table: tuple[str, Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Content:
    """What a page shows.

    Attributes:
        runs: what they wrote.
        predicted: for each of them, what else is known.
        notes: on what is missing, a sentence each.
        devices: what the report was made on; None: no device was used.
    """

    runs: Sequence[Run]
    predicted: Sequence[Predicted]
    notes: Sequence[str]
    devices: str | None


def render(content: Content) -> str:
    """Returns the page; see `markup.document`."""
    runs, title = content.runs, f"Report: {', '.join(run.name for run in content.runs)}"
    sections = [
        ("results", "Results", written.results(runs)),
        ("curves", "Curves", written.curve_figures(runs)),
        ("time", "Time", written.time_spent(runs)),
        ("configuration", "Configuration", written.configuration(runs)),
        ("classes", "Classes", _per_run(content, _classes)),
        ("calibration", "Calibration", _per_run(content, _calibration)),
        ("found", "Truth and what was found", _per_run(content, _found)),
        ("mistakes", "Worst mistakes", _per_run(content, _mistakes)),
        ("explained", "Worst mistakes, explained", _per_run(content, _explained)),
        ("uncertain", "Least certain predictions", _per_run(content, _uncertain)),
        ("samples", "Training samples", _per_run(content, _samples)),
        ("environment", "Environment", written.environment(runs, content.devices)),
    ]
    there = [section for section in sections if section[2]]
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in there]
    body = [
        element("header", element("h1", title), written.runs_key(runs)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", _notes(content.notes), *(_section(*section) for section in there)),
        element("footer", element("p", f"Made by vision_jax {vision_jax.__version__}, {written.now()}.")),
    ]
    return document(title, report_style(), *body, generator=f"{GENERATOR} {vision_jax.__version__}")


def _notes(notes: Sequence[str]) -> Markup:
    """Returns what is missing in the page."""
    if not notes:
        return Markup()
    items = element("ul", *(element("li", note) for note in notes))
    return element("aside", element("strong", "What is missing or damaged"), items, class_="notes", aria_label="Notes")


def _section(name: str, heading: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "section", element("h2", heading, id=f"{name}-heading"), *parts, id=name, aria_labelledby=f"{name}-heading"
    )


def _per_run(content: Content, make: Callable[[Predicted, str], list[Markup]]) -> list[Markup]:
    """Returns what is known of each run, side by side; nothing if it is nothing."""
    found = []
    for number, (run, predicted_) in enumerate(zip(content.runs, content.predicted, strict=True)):
        if parts := make(predicted_, f"run{number}"):
            heading = [element("h3", run.name)] if len(content.runs) > 1 else []
            found.append(element("div", *heading, *parts))
    return [element("div", *found, class_="columns")] if found else []


def _classes(known: Predicted, name: str) -> list[Markup]:
    if known.evaluation is not None:
        shown = [predicted.summary(known.evaluation), predicted.averages(known.evaluation)]
        return [*shown, *predicted.classes(known.evaluation.classes, name)]
    if known.dense_table is not None:
        where, values = known.dense_table
        return [element("p", "From ", element("code", "tables.jsonl"), f": {where}."), dense.class_table(values)]
    if known.table is not None:
        where, table = known.table
        return [element("p", "From ", element("code", "tables.jsonl"), f": {where}."), *predicted.classes(table, name)]
    return []


def _found(known: Predicted, name: str) -> list[Markup]:
    del name
    return dense.pictures(known.found) if known.found is not None else []


def _calibration(known: Predicted, name: str) -> list[Markup]:
    return predicted.calibration(known.evaluation, name) if known.evaluation else []


def _mistakes(known: Predicted, name: str) -> list[Markup]:
    if known.evaluation is None:
        return []
    about = "The highest confidence in a wrong class; images are what the model saw."
    if known.evaluation.methods:
        about += " Beside each image, what spoke for that class."
    shown = predicted.examples(known.evaluation.mistakes, "Every prediction is correct.", name)
    return [element("p", about, class_="quiet"), shown]


def _explained(known: Predicted, name: str) -> list[Markup]:
    return predicted.explained(known.evaluation, name) if known.evaluation else []


def _uncertain(known: Predicted, name: str) -> list[Markup]:
    del name
    if known.evaluation is None:
        return []
    about = "The lowest confidence in the predicted class, right or wrong."
    shown = predicted.examples(known.evaluation.uncertain, "No example has a prediction.")
    return [element("p", about, class_="quiet"), shown]


def _samples(known: Predicted, name: str) -> list[Markup]:
    del name
    if not known.samples:
        return []
    about = "Examples of the batch of the first step, cropped, augmented and mixed, with the shares of their targets."
    if known.found is not None or known.dense_table is not None:
        about = "Examples of the batch of the first step, augmented, with their boxes or masks."
    return [element("p", about, class_="quiet"), predicted.samples(known.samples)]
