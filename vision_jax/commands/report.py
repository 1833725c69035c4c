"""Shows what was trained in one HTML file: `python -m vision_jax report WORKDIR... --output=report.html`.

It opens without a network, and holds the curves of all runs, where their time went, their configurations and what
differs in them, and of each run the confusion matrix, the scores of classes, the reliability diagram, the worst
mistakes and least certain predictions with their images, and samples of the augmented batch that it was trained on.
The worst mistakes are explained by Grad-CAM, or by what `--explain` names.

For these a checkpoint is evaluated on the validation split, with the moving average (EMA) of the weights if there is
one. `--no-evaluate` uses nothing but the files of the workdirs. Of the workdir of a search (`python -m vision_jax
sweep`), the page shows the trials. Exit status: 0 done, 1 failed, 2 wrong flags.
"""

import argparse
import pathlib
from collections.abc import Sequence

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url
from vision_jax.sweep import DATABASE


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", metavar="WORKDIR", nargs="+", help="of a run; several are compared")
    parser.add_argument("--output", default="report.html", help="the file to write, or to replace (%(default)s)")
    parser.add_argument(
        "--step", help="of the checkpoint, a number or `best`; default: the best if one is known, or else the latest"
    )
    parser.add_argument("--no-evaluate", action="store_true", help="use the files of the workdirs alone")
    parser.add_argument(
        "--explain",
        help="what explains the worst mistakes: methods of `python -m vision_jax explain`, with commas, or `none` "
        "(default: gradcam)",
    )
    common.add_config_argument(parser)
    flags = parser.parse_args(argv)
    if flags.step is not None and flags.step != "best" and not flags.step.isdigit():
        parser.error(f"--step is {flags.step!r}: give a number or best")
    if flags.step is not None and flags.no_evaluate:
        parser.error("--step is the checkpoint that is evaluated: leave it out with --no-evaluate")
    if flags.explain is not None and flags.no_evaluate:
        parser.error("--explain is for the checkpoint that is evaluated: leave it out with --no-evaluate")
    return common.run(lambda: report(flags))


def report(flags: argparse.Namespace) -> int:
    """Writes what the flags say; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        CheckpointError: if a workdir holds no run, or the page cannot be written.
    """
    if any((pathlib.Path(workdir).expanduser() / DATABASE).is_file() for workdir in flags.workdirs):
        return report_search(flags)
    from vision_jax.report import program  # imports JAX, which takes seconds that --help should not

    common.read_config(flags)
    if not flags.no_evaluate:
        common.keep_compiled()
    explain = {None: "gradcam", "none": None}.get(flags.explain, flags.explain)
    options = {"step": flags.step, "evaluate": not flags.no_evaluate, "explain": explain}
    program.write_report(flags.workdirs, flags.output, **options)
    print(flags.output)
    return 0


def report_search(flags: argparse.Namespace) -> int:
    """Writes the page of a search; returns the exit status.

    Raises:
        ConfigError: for flags that cannot work.
        CheckpointError: if the page cannot be written.
    """
    if len(flags.workdirs) > 1:
        raise ConfigError(
            f"There are {len(flags.workdirs)} workdirs, and one of them is that of a search, of which a report shows "
            "one: name it alone, or runs of it, such as WORKDIR/trials/0000."
        )
    common.refuse(flags, ("step", "explain"), "for runs, not for a search: name one of its runs")
    from vision_jax.sweep import page

    check_no_url("--output", flags.output)
    page.write(pathlib.Path(flags.workdirs[0]).expanduser(), pathlib.Path(flags.output).expanduser())
    print(flags.output)
    return 0
