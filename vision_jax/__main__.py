"""The commands beside training: `python -m vision_jax VERB`, or `vision-jax VERB`; without a verb it lists them."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from vision_jax.commands import VERBS
from vision_jax.errors import suggest
from vision_jax.runtime.streams import open_closed_streams


def usage() -> str:
    """Returns all verbs, one per line."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "usage: python -m vision_jax VERB [ARGUMENTS]        (VERB --help says more)",
            "",
            *(f"  {verb:{width}}  {what}" for verb, what in VERBS.items()),
            "",
            "Training and evaluation: python -m vision_jax.main --config=FILE --workdir=DIR   (--help says more,",
            "and --config=list what recipes there are)",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status.

    Args:
        argv: the verb and its arguments; None: those of the command line.
    """
    open_closed_streams()
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or ("--help",)
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    if verb not in VERBS:
        print(f"error: there is no command {verb!r}: {suggest(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"vision_jax.commands.{verb.replace('-', '_')}").main(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it flushes at the end
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(main())
