"""The page of a search: one HTML file with its trials, the importance of fields, and curves."""

import collections
import pathlib
from collections.abc import Sequence

import vision_jax
from vision_jax.report import drawing, program, written
from vision_jax.report.markup import NOTHING, Markup, document, element, number, report_style, table
from vision_jax.report.page import GENERATOR
from vision_jax.runtime.writers import write_atomically
from vision_jax.sweep import figures
from vision_jax.sweep import study as studies
from vision_jax.sweep.plan import as_text
from vision_jax.sweep.results import Results, Row, collect, first_sentence


def write(workdir: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the page of the search that a workdir holds.

    Args:
        workdir: of the search; it may be going on.
        output: the file; a report that is there is replaced.

    Raises:
        ConfigError: if the output cannot be such a file, or optuna or matplotlib is not installed.
        CheckpointError: if the workdir holds no search, or the page cannot be written.
    """
    program.check_replaceable(output)
    drawing.check_installed()
    study, search = studies.load_study(workdir)
    write_atomically(output, render(collect(workdir, study, search)))


def render(results: Results) -> str:
    """Returns the page; see `markup.document`."""
    title = f"Search: {results.workdir.resolve().name}"
    sections = [
        ("search", "Search", _about(results)),
        ("trials", "Trials", [_trials(results)]),
        ("importance", "Importance", _importance(results)),
        ("curves", "Curves", _curves(results)),
        ("fields", "By field", _fields(results)),
    ]
    links = [element("li", element("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    parts = [
        element(
            "section", element("h2", heading, id=f"{name}-heading"), *shown, id=name, aria_labelledby=f"{name}-heading"
        )
        for name, heading, shown in sections
    ]
    body = [
        element("header", element("h1", title), element("p", element("code", results.workdir))),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *parts),
        element("footer", element("p", f"Made by vision_jax {vision_jax.__version__}, {written.now()}.")),
    ]
    return document(title, report_style(), *body, generator=f"{GENERATOR} {vision_jax.__version__}")


def _about(results: Results) -> list[Markup]:
    """Returns how was searched, and for what."""
    search = results.search
    endings = collections.Counter(row.ending for row in results.rows)
    known = [row.seconds for row in results.rows if row.seconds is not None]
    rules = {"asha": ("reduction", "min_evaluations"), "hyperband": ("reduction", "min_evaluations")}
    names = {"median": ("min_evaluations",), **rules}.get(search["pruner"], ())
    pruner = ", ".join([search["pruner"], *(f"{name}={search[name]}" for name in names)])
    rows: list[list[object]] = [
        ["metric", results.metric],
        ["the best one is", "the highest" if search["higher"] else "the lowest"],
        ["value of a run", f"its {search['summary']} one"],
        ["model", search["config"]["model"]["name"]],
        ["sampler", f"{search['sampler']}, seed={search['seed']}"],
        ["pruner", pruner],
        ["trials", ", ".join(f"{count} {ending}" for ending, count in endings.items()) or "none"],
        ["time of all runs", number(sum(known), f"{sum(known):,.0f} s")],
    ]
    space = [[element("code", field), element("code", text)] for field, text in search["space"].items()]
    shown = [table("How was searched", ["", ""], rows, class_="facts"), table("Space", ["field", "values"], space)]
    best = results.best()
    if best is None:
        return [element("div", *shown, class_="beside"), element("p", "No trial is complete.")]
    flags = " ".join(f"--config.{field}={as_text(value)}" for field, value in best.values.items())
    text = ["The best one is trial ", str(best.number), ", with ", written.form(results.metric, best.value or 0.0)]
    return [element("div", *shown, class_="beside"), element("p", *text, ": ", element("code", flags))]


def _trials(results: Results) -> Markup:
    """Returns the table of trials, the best first."""
    reasons = any(row.reason for row in results.rows)
    heading = ["trial", results.metric, "step", "ending", *results.fields, "seconds", *(["reason"] if reasons else [])]
    rows = [_cells(results, row, reasons) for row in results.ranked()]
    if not rows:
        return element("p", "No trial has begun.")
    caption = "All trials, the best first. The value of one that was ended early is its last."
    return table(caption, heading, rows)


def _cells(results: Results, row: Row, reasons: bool) -> list[object]:
    """Returns the cells of a trial; `reasons`: also why it failed."""
    values: list[object] = []
    for field in results.fields:
        value = row.values.get(field, NOTHING)
        values.append(number(value, f"{value:.5g}") if isinstance(value, int | float) else value)
    return [
        element("code", row.workdir.relative_to(results.workdir)),
        NOTHING if row.value is None else written.form(results.metric, row.value),
        NOTHING if row.step is None else row.step,
        row.ending,
        *values,
        NOTHING if row.seconds is None else number(row.seconds, f"{row.seconds:.1f}"),
        *([first_sentence(row.reason)] if reasons else []),
    ]


def _importance(results: Results) -> list[Markup]:
    if not results.importance:
        return [element("p", "There are too few trials that are complete, or all have the same value.")]
    shares = ", ".join(f"{field} {share:.0%}" for field, share in results.importance.items())
    drawn = drawing.svg(figures.importance(results), "importance", f"Share of the variance: {shares}.")
    about = (
        "Which share of the variance of the metric over the whole space each field explains alone, by fANOVA (Hutter "
        "et al. 2014), from the trials that are complete; the rest is due to several fields together. Trials that were "
        "ended early do not count, so that fields whose bad values are pruned seem less important than they are."
    )
    rows = [[element("code", field), number(share, f"{share:.1%}")] for field, share in results.importance.items()]
    figure = element("figure", drawn, class_="drawing large", tabindex=0)
    return [
        element("p", about, class_="quiet"),
        element("div", element("div", figure), table("Importance", ["field", "share"], rows), class_="beside"),
    ]


def _curves(results: Results) -> list[Markup]:
    rows = results.rows
    drawn = [
        drawing.svg(figures.by_step(results), "by-step", figures.alt(results, "by step", rows)),
        drawing.svg(figures.by_trial(results), "by-trial", figures.alt(results, "by trial", rows)),
    ]
    return [element("div", *_figures(drawn), class_="columns")]


def _fields(results: Results) -> list[Markup]:
    drawn = [
        drawing.svg(
            figures.by_value(results, field), f"field{count}", figures.alt(results, f"by {field}", results.rows)
        )
        for count, field in enumerate(results.fields)
    ]
    return [element("div", *_figures(drawn), class_="figures")]


def _figures(drawn: Sequence[Markup]) -> list[Markup]:
    return [element("figure", one, class_="drawing") for one in drawn]
