"""Attacks by the suite in two processes, on miniatures of ImageNet; for test_adversarial.py.

`launch/local.py --processes=2 --devices=1 --module=attack_cases -- --directory=DIR` leaves what each process found in
DIR/process_I.json.
"""

import json
import pathlib
import sys
from typing import Any

import evaluation_sets
import jax
import launched

from vision_jax.devices import sharding
from vision_jax.suite.adversarial import Attack, Plan
from vision_jax.suite.find import find_sets
from vision_jax.suite.run import Options, run_suite

TARGETED = Attack("apgd-t", "l2", 1.5)
ATTACKS = (Attack("pgd-3-2", "linf", 13 / 255), TARGETED, Attack("square", "linf", 0.06))


def attacked(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the scores and the lines of all images of the validation set, of which one is damaged."""
    if jax.process_index() == 0:
        files = evaluation_sets.validation_files()
        files["n01440764/ILSVRC2012_val_00000007.JPEG"] = evaluation_sets.png(evaluation_sets.right(0))[:60]
        evaluation_sets.write(directory / "sets" / "val", files)
    sharding.wait_for_all("the sets are written")
    output, found = directory / "suite", find_sets(directory / "sets")
    options = Options(batch_size=4, max_bad=1, plan=Plan(ATTACKS))
    done = run_suite(evaluation_sets.trained(), found, ["adversarial"], output, options)
    results: dict[str, Any] = {"done": done}
    sets = json.loads((output / "suite.json").read_text())["sets"]
    for row, entry in sets.items():
        lines = (output / entry["file"]).read_text().splitlines()
        results[row] = {
            **{name: entry[name] for name in ("clean", "robust", "after", "warnings", "count", "damaged")},
            "images": [json.loads(line) for line in lines],
        }
    return results


def main() -> None:
    arguments = launched.start(cases=False)
    found = attacked(arguments.directory)
    (arguments.directory / f"process_{arguments.process_id}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
