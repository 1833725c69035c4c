"""Wrong flags of `python -m vision_jax.main`: unknown, misspelt, of the wrong type, or not for each other."""

from bad_inputs.case import CONFIG, Case, directory, text, training

_DRY = ("main", CONFIG, "--mode=dry_run")

CASES = (
    training("a misspelt flag", "--wrkdir=x", value="wrkdir", remedy="Did you mean: workdir", status=2),
    training("an unknown flag", "--gpus=8", value="gpus", remedy="--help", status=2),
    training("an argument that is no flag", "resnet50", value="resnet50", remedy="not flags", status=2),
    training("an unknown mode", "--mode=test", value="test", remedy="train.*eval.*dry_run", status=2),
    training(
        "a process number that is a word", "--process_id=first", value="first", remedy="takes an integer", status=2
    ),
    training("a switch that is a number", "--allow_config_change=7", value="7", remedy="true or false", status=2),
    Case("a field without a config file", ("main", "--config.batch_size=8"), "batch_size", "--config=FILE", status=2),
    Case("neither configuration nor workdir", ("main",), "Neither --config nor --workdir", "--config=quickstart"),
    Case("a training without a configuration", ("main", "--workdir=w"), "--config is missing", "--config=quickstart"),
    training("a step that is a word", "--mode=eval", "--step=last", value="'last'", remedy="a number or best"),
    training("a negative step", "--mode=eval", "--step=-1", value="'-1'", remedy="a number or best"),
    training("a step in a training", "--step=best", value="'best'", remedy="--mode=eval"),
    training("a topology in a training", "--topology=v5e:2x2", value="'v5e:2x2'", remedy="--mode=dry_run"),
    training("JSON of a training", "--json=x.json", value="'x.json'", remedy="--mode=dry_run"),
    training("an empty workdir", "--workdir=", value="--workdir is empty", remedy="name a folder"),
    training("a workdir in a bucket", "--workdir=gs://b/run", value="'gs://b/run'", remedy="mount"),
    Case("JSON into a folder", (*_DRY, "--json=there"), "there", "give a file", before=(directory("there"),)),
    Case("JSON below no folder", (*_DRY, "--json=nowhere/x.json"), "nowhere/x.json", "no folder nowhere"),
    Case("JSON below a file", (*_DRY, "--json=file/x"), "file/x", "no folder", before=(text("file", "mine"),)),
    Case("an empty file for JSON", (*_DRY, "--json="), "--json", "give a file"),
    Case("an unknown topology", (*_DRY, "--topology=v9:2x2"), "v9", "v5e|generations"),
    Case("a topology without a shape", (*_DRY, "--topology=v5e"), "'v5e'", "v5e:4x4|such as"),
    Case("a shape of another dimension", (*_DRY, "--topology=v4:4"), "v4:4", "give 3"),
    training("one flag of three", "--num_processes=2", value="2", remedy="--coordinator_address.*--process_id"),
    training(
        *("an address without a port", "--coordinator_address=here", "--num_processes=2", "--process_id=0"),
        **{"value": "'here'", "remedy": "HOST:PORT"},
    ),
    training(
        *("a process beyond the last", "--coordinator_address=a:1", "--num_processes=2", "--process_id=2"),
        **{"value": "--process_id is 2", "remedy": "from 0"},
    ),
    training(
        *("a negative process", "--coordinator_address=a:1", "--num_processes=2", "--process_id=-1"),
        **{"value": "--process_id is -1", "remedy": "from 0"},
    ),
)
