"""Searches over fields of a configuration: a run for each trial.

    python -m vision_jax sweep --config=configs/quickstart.py --workdir=runs/sweep \\
        --set optimizer.learning_rate=log:0.005:0.5 model.drop_rate=uniform:0:0.5 --trials=20

Values are log:LOW:HIGH and uniform:LOW:HIGH (real numbers), int:LOW:HIGH[:STEP], or choice:A,B,C. --space=FILE has the
same as JSON: {"optimizer.learning_rate": "log:0.005:0.5", "optimizer.nesterov": [true, false]}. With --sampler=grid,
real numbers need the number of points, as in log:0.01:1:5. Any other --config.FIELD=VALUE is that of all trials.

Each trial is an ordinary run in WORKDIR/trials/NUMBER. The same command goes on with what was cut off, and several of
it, also on several machines that share the file system, share the search. WORKDIR has sweep.db (optuna's SQLite file),
sweep.csv, sweep.json, and at the end report.html, which `python -m vision_jax report WORKDIR` writes at any time.

Exit status: 0 done, also if some trials failed; 75 saved after SIGTERM, run the same command again; 1 failed, 2 wrong
flags, 130 Ctrl-C.
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vision_jax.commands import common
from vision_jax.errors import STATUS_PREEMPTED, ConfigError, check_no_url
from vision_jax.sweep import PRUNERS, SAMPLERS, SUMMARIES

if TYPE_CHECKING:
    from vision_jax.sweep.plan import Search


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, help="FILE or FILE:VARIANT, which all trials start from")
    add("--workdir", required=True, help="the folder of the search")
    add("--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUES", help="fields and their values")
    add("--space", metavar="FILE", help="the same in JSON")
    add("--metric", help="a key of metrics.jsonl (default: checkpoint.best_metric)")
    add("--direction", choices=("max", "min"), help="which value of it is the best (default: as is known of it)")
    add("--value", choices=SUMMARIES, default="last", help="of a run, which value counts (%(default)s)")
    add("--trials", type=int, help="in all processes together (default: 20; of a grid, all points)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="what chooses values (%(default)s)")
    add("--seed", type=int, default=0, help="of the sampler (%(default)s)")
    add("--pruner", choices=PRUNERS, default="none", help="what ends trials early, by the metric (%(default)s)")
    add("--reduction", type=int, help="asha, hyperband: of so many trials, one goes on at each rung (3)")
    add("--min_evaluations", type=int, help="values of the metric before a trial may be ended (1)")
    add("--program", help="what runs a trial, before its flags (default: python -m vision_jax.main)")
    add("--dry_run", action="store_true", help="show the trials and their commands; begin and write nothing")
    arguments = common.parse(parser, argv)
    return common.run(lambda: sweep(arguments))


def sweep(arguments: argparse.Namespace) -> int:
    """Searches, or says what would be run, and returns the exit status.

    Raises:
        ConfigError: for flags that cannot work, or if no trial can.
        CheckpointError: if the workdir cannot be used, or holds another search.
    """
    check_no_url("--workdir", arguments.workdir)
    workdir = pathlib.Path(arguments.workdir).expanduser()
    _check_numbers(arguments)

    from vision_jax.sweep import plan, program, study

    study.import_optuna()
    search = _search(arguments)
    plan.check(search)
    if arguments.dry_run:
        for line in program.plan(search, workdir):
            print(line)
        return 0
    from vision_jax.report import drawing
    from vision_jax.runtime.preemption import Preemption
    from vision_jax.sweep import claims, page, results

    drawing.check_installed()
    with Preemption() as preemption:
        found = program.Sweep(search, workdir, preemption.noticed).run()
        print(results.as_text_table(found))
        if preemption.noticed():
            return STATUS_PREEMPTED
    with claims.exclusive(workdir / program.LOCK):
        page.write(workdir, workdir / "report.html")
    if (best := found.best()) is not None:
        print(f"The best one is in {best.workdir}:\n{search.shown(best.values, best.workdir)}")
    print(workdir / "report.html")
    return 0


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Checks what needs no configuration.

    Raises:
        ConfigError: for flags that cannot work.
    """
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed is {arguments.seed}: give a number from 0 to {2**32 - 1}.")
    for name, least in (("trials", 1), ("reduction", 2), ("min_evaluations", 1)):
        if (value := getattr(arguments, name)) is not None and value < least:
            raise ConfigError(f"--{name} is {value}: give {least} or more.")
    if arguments.sampler == "grid":
        common.refuse(arguments, ("trials",), "for other samplers: of a grid, all points are trials")
    if arguments.pruner not in ("asha", "hyperband"):
        common.refuse(arguments, ("reduction",), "for --pruner=asha and --pruner=hyperband")
    if arguments.pruner == "none":
        common.refuse(arguments, ("min_evaluations",), "for a --pruner")


def _search(arguments: argparse.Namespace) -> "Search":
    """Returns the search that the flags describe."""
    from vision_jax.config import command_line
    from vision_jax.sweep import plan, space

    config = command_line.load(arguments.config, arguments.overrides)
    metric = arguments.metric or config.checkpoint.best_metric
    numbers = {name: getattr(arguments, name) for name in ("trials", "reduction", "min_evaluations")}
    return plan.Search(
        config=arguments.config,
        overrides=tuple(arguments.overrides),
        space=space.read(arguments.space, arguments.set),
        metric=metric,
        higher=plan.find_direction(config, metric, arguments.direction),
        summary=arguments.value,
        sampler=arguments.sampler,
        seed=arguments.seed,
        pruner=arguments.pruner,
        **{name: number for name, number in numbers.items() if number is not None},
        program=tuple(shlex.split(arguments.program)) if arguments.program else plan.PROGRAM,
    )
