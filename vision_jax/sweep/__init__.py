"""Searches over fields of a configuration: `python -m vision_jax sweep`.

`space` says what is searched, `plan` how and by which metric. `claims` sees to it that of several processes only one
has a trial, `follow` reads what its run writes, `trial` runs it, `study` keeps the search in optuna's SQLite file, and
`program` does it all. `results`, `figures` and `page` show what came out.
"""

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "asha", "hyperband")
DATABASE = "sweep.db"  # in the workdir of a search
SUMMARIES = ("last", "best")  # of the values of a run
