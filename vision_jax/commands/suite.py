"""Measures a classifier on ImageNet's evaluation sets: `python -m vision_jax suite --workdir=W --data=D --output=O`.

--data has the sets as they are downloaded, unpacked or as archives, which are read in place: the validation set,
real.json, ImageNet-V2, -A, -R, -Sketch, -C and ObjectNet. docs/evaluation.md says how they are called and scored. The
results are in suite.csv and suite.json of --output, after each set; run again, the command goes on with the others.
`--explain=gradcam` also writes, in mistakes/SET of --output, what the model looked at in its most confident mistakes.
Exit status: 0 done; 1 failed, or a set did, as the others did not; 2 wrong flags, 130 Ctrl-C.
"""

import argparse
import pathlib
from collections.abc import Sequence

from vision_jax.commands import common
from vision_jax.errors import ConfigError, check_no_url


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the flags say and returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vision_jax suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="the folder with the sets, up to three folders below it")
    parser.add_argument("--output", required=True, help="a folder for suite.csv and suite.json")
    parser.add_argument("--sets", help="of val,real,v2,a,r,sketch,c,objectnet; default: all that are there")
    parser.add_argument("--batch_size", type=int, default=128, help="images computed at once (default: %(default)s)")
    parser.add_argument("--max_bad", type=int, default=0, help="damaged images of a set that are left out (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --output")
    parser.add_argument(
        "--explain", help="explain the most confident mistakes: methods of `python -m vision_jax explain`, with commas"
    )
    parser.add_argument("--mistakes", type=int, default=16, help="explained, of each set (default: %(default)s)")
    common.add_model_arguments(parser)
    common.add_process_arguments(parser)
    arguments = common.parse(parser, argv)
    return common.run_in_processes(arguments, lambda: suite(arguments))


def suite(arguments: argparse.Namespace) -> int:
    """Measures the model on the sets; see `suite.run.run_suite`."""
    common.check_model_arguments(arguments)
    if arguments.batch_size < 1 or arguments.max_bad < 0:
        raise ConfigError(
            f"--batch_size is {arguments.batch_size} and --max_bad {arguments.max_bad}: not below 1 and 0."
        )
    if arguments.mistakes < 1:
        raise ConfigError(f"--mistakes is {arguments.mistakes}: give 1 or more.")
    check_no_url("--data", arguments.data)

    from vision_jax.suite import run
    from vision_jax.suite.find import find_sets
    from vision_jax.suite.results import prepare_output

    output = prepare_output(arguments.output)
    found = find_sets(pathlib.Path(arguments.data).expanduser())
    wanted = found.choose(None if arguments.sets is None else [name.strip() for name in arguments.sets.split(",")])
    trained = common.load_model(arguments)
    explained = {"explain": arguments.explain, "mistakes": arguments.mistakes}
    options = run.Options(
        arguments.batch_size, arguments.max_bad, arguments.overwrite, arguments.pretrained, **explained
    )
    return 0 if run.run_suite(trained, found, wanted, output, options) else 1
