"""Makes a report: checks its input, reads the runs, evaluates their checkpoints, and writes the page."""

import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax

from vision_jax.devices import backend
from vision_jax.errors import CheckpointError, ConfigError, VisionJaxError, check_no_url, check_output, reason
from vision_jax.explain import Method
from vision_jax.explanations import explainer
from vision_jax.report import dense, drawing, evaluation, page, samples
from vision_jax.report.classes import ClassTable
from vision_jax.report.runs import Run, read_runs
from vision_jax.runtime.writers import write_atomically

log = logging.getLogger(__name__)

Chosen = tuple[list[int], str] | None  # checkpoints, and why the first one; see `evaluation.choose`


def write_report(
    workdirs: Sequence[str | pathlib.Path],
    output: str | pathlib.Path = "report.html",
    *,
    step: int | str | None = None,
    evaluate: bool = True,
    explain: str | None = explainer.DEFAULT,
) -> list[str]:
    """Writes a report on one or several runs as one HTML file.

    Args:
        workdirs: of the runs.
        output: the file; a report that is there is replaced.
        step: of the checkpoints that are evaluated, or "best"; None: the best if one is known, or else the latest.
        evaluate: False uses nothing but what the runs have written: neither data nor devices.
        explain: the methods by which the worst mistakes are explained, such as "gradcam,ig"; see
            `explain.parse_method`. None: they are not.

    Returns:
        what is missing in it, a sentence each; they are also in the page, and logged as warnings.

    Raises:
        ConfigError: if the output cannot be such a file, a workdir is none, or a method of explanation is unknown.
        CheckpointError: if a run has no metrics, there is no such checkpoint, or the page cannot be written.
    """
    check_no_url("--output", str(output))
    output = pathlib.Path(output).expanduser()
    check_replaceable(output)
    drawing.check_installed()
    methods = explainer.parse_methods(explain) if evaluate and explain is not None else {}
    runs = read_runs(workdirs)
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    devices = None
    if evaluate:
        backend.start()
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    chosen: list[Chosen] = [evaluation.choose(run, step) if evaluate and (run.steps or step) else None for run in runs]
    predicted = [_predict(run, choice, evaluate, methods, notes) for run, choice in zip(runs, chosen, strict=True)]
    for note in notes:
        log.warning("Missing in the report: %s", note)
    write_atomically(output, page.render(page.Content(runs, predicted, notes, devices)))
    return notes


def check_replaceable(output: pathlib.Path) -> None:
    """Checks that a report can be written to a file, and that what is there is a report, too, if anything.

    Raises:
        ConfigError: if it cannot, or something else is there.
        CheckpointError: if what is there cannot be read.
    """
    check_output("--output", output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output is {output}: a report is HTML, so its name must end with .html.")
    try:
        with output.open("rb") as file:
            start = file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"--output is {output}, which cannot be read: {reason(error)}.") from error
    if start and f'content="{page.GENERATOR} '.encode() not in start:
        raise ConfigError(f"--output is {output}, which is there already and is no report: give another name.")


def _predict(
    run: Run, chosen: Chosen, evaluate: bool, methods: Mapping[str, Method], notes: list[str]
) -> page.Predicted:
    """Returns what is known of a run beside what it has written, and notes what is missing and why."""
    found, table, shown = None, None, []
    found_in_images, dense_table = None, None

    def note(what: str, error: VisionJaxError | str) -> None:
        notes.append(f"{run.name}: {what}: {' '.join(str(error).split())}")  # a list of problems has lines

    if evaluate:
        try:
            if chosen is None:
                raise CheckpointError(f"There is no checkpoint in {run.workdir / 'checkpoints'}.")
            if dense.finds(run):
                found_in_images = dense.show_run(run, *chosen)
            else:
                found = evaluation.evaluate_run(run, *chosen, methods=methods)
            if found is not None and found.unexplained is not None:
                note("Mistakes are not explained", found.unexplained)
        except VisionJaxError as error:
            note("What it predicts is not shown", error)
        try:
            shown = samples.first_batch(run)
        except VisionJaxError as error:
            note("Training samples are not shown", error)
    if found is None and (written := run.class_table()) is not None:
        try:
            if dense.finds(run):
                dense_table = written[0], dense.check_table(written[1])
            else:
                table = written[0], ClassTable.from_json(written[1])
        except VisionJaxError as error:
            note("The classes are not shown", error)
    return page.Predicted(found, table, shown, found_in_images, dense_table)
