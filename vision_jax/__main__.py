"""The commands beside training: `python -m vision_jax VERB`, or `vision-jax VERB`; without a verb it lists them."""

import importlib
import sys
from collections.abc import Sequence

from vision_jax.commands import VERBS
from vision_jax.errors import suggest
from vision_jax.runtime.streams import finish_output, open_closed_streams, status_of


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
        return finish_output(0)
    if verb not in VERBS:
        print(f"error: there is no command {verb!r}: {suggest(verb, VERBS)}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        name = f"vision_jax.commands.{verb.replace('-', '_')}"
        return status_of(lambda: importlib.import_module(name).main(arguments))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as end:  # after --help, or of wrong flags
        raise SystemExit(finish_output(end.code) if isinstance(end.code, int) else end.code) from None


if __name__ == "__main__":
    sys.exit(main())
