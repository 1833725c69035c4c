"""Robust accuracy as a set of the suite: attacks on the images of a split, pass after pass over those that are left.

A pass is an attack, or an attack towards one of its targets. Images are read anew in each, in batches that are divided
over all devices and processes, so that memory does not grow with the set. What is known of each image is written as it
comes, to `adversarial/ATTACK-….jsonl` of the output folder, and the same command goes on where one was ended.
"""

import collections
import dataclasses
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vision_jax import attacks, features
from vision_jax.attacks import names, signs
from vision_jax.attacks.signs import CALLS, NOTHING, Look
from vision_jax.attacks.stages import Stage
from vision_jax.build import TrainedModel
from vision_jax.data.sources import digest_of
from vision_jax.devices import distributed, sharding
from vision_jax.errors import DataError
from vision_jax.evaluators.base import Context
from vision_jax.suite import find
from vision_jax.suite.attack_programs import Logits, Programs
from vision_jax.suite.attacked import Known, Store
from vision_jax.suite.images import of_source, open_validation
from vision_jax.suite.selection import Records, Selection, Some
from vision_jax.suite.sets import EXPECTED

log = logging.getLogger(__name__)

FOLDER = "adversarial"
_VERSION = 1  # of what attacks find: what another one has found is measured anew
_COMPARED = re.compile(r"(apgd|pgd)-.*")  # attacks that should find no less than Square does
_SHRINK = 4  # by which factor batches become smaller
_TOLD = 0.2  # in percent, by how much Square may be below them


@dataclasses.dataclass(frozen=True)
class Attack:
    """An attack with its radius: a row of the table.

    Attributes:
        name: see `attacks.find_stages`.
        norm: linf or l2.
        eps: the radius, of images in [0, 1].
        reading: how the radius was read, for a person.
    """

    name: str
    norm: str
    eps: float
    reading: str = dataclasses.field(default="", compare=False, repr=False)  # repr: `identity` goes without

    @property
    def title(self) -> str:
        """For a person, such as `pgd-20 linf 4/255`."""
        levels = 255 * self.eps
        usual = self.norm == "linf" and levels < 32.5 and abs(levels - round(levels)) < 1e-6
        return f"{self.name} {self.norm} {f'{levels:.0f}/255' if usual else f'{self.eps:.6g}'}"

    @property
    def row(self) -> str:
        """Of the table."""
        return f"{FOLDER}/{self.title}"

    @property
    def rule(self) -> str:
        """How it is scored."""
        return (
            f"The share of all images that are right, and stay so under {self.name}, in {self.norm} of radius "
            f"{self.eps:.6g} of pixels in [0, 1]; the attacked function normalizes."
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is attacked, and how.

    Attributes:
        attacks: each is a row.
        selection: which images.
        seed: of the attacks' random numbers.
        split: of the data that the model's configuration names; None: the images are in the suite's folder.
    """

    attacks: tuple[Attack, ...] = ()
    selection: Selection = dataclasses.field(default_factory=Selection)
    seed: int = 0
    split: str | None = None

    def facts(self) -> dict[str, Any]:
        """Returns what must be the same in all processes, besides the images."""
        return {"attacks": [one.row for one in self.attacks], "seed": self.seed, "split": self.split}


def open_images(trained: TrainedModel, found: find.Found, plan: Plan, own_classes: Sequence[str] | None) -> Some:
    """Returns the images that are attacked.

    Args:
        trained: the model.
        found: the suite's folder, which is not used if the plan has a split.
        plan: of the attacks.
        own_classes: the model's, which the images are of; None: they are of ImageNet's.

    Raises:
        DataError: if they cannot be read, or have other classes.
        ConfigError: if there are fewer than wanted.
    """
    if plan.split is not None:
        assert own_classes is not None
        source = features.Images.of_split(trained.config, plan.split)
        images = of_source(source.source, source.description, own_classes)
    elif own_classes is None:
        if found.validation is None:
            raise DataError(f"{found.root} has no validation set of ImageNet, of whose classes the model is.")
        images = open_validation(found.validation)
    else:
        if found.labeled is None:
            raise DataError(f"{found.root} has neither a prepared data set nor val/ or test/ with images.")
        images = open_validation(found.labeled, own_classes)
    return plan.selection.of(images)


@dataclasses.dataclass(frozen=True)
class Found:
    """What an attack has found.

    Attributes:
        known: of the images that are not damaged.
        stages: the attacks that it consists of.
        warnings: why its accuracy may be too high.
        path: of the file with a line for each image.
    """

    known: Known
    stages: Sequence[Stage]
    warnings: Sequence[str]
    path: pathlib.Path

    def scores(self) -> dict[str, Any]:
        """Returns the accuracies in percent: clean, robust, and after each attack and those before it."""
        fooled_by = self.known.fooled_by
        after = {name: 100 * value for name, value in signs.accuracies(self.stages, fooled_by).items()}
        return {
            "clean": 100 * float(np.mean(fooled_by != signs.CLEAN)),
            "robust": 100 * float(np.mean(fooled_by == NOTHING)),
            "after": after,
        }


def entry(some: Some, one: Attack, found: Found, damaged: int, *, own: bool) -> dict[str, Any]:
    """Returns a row of the table for JSON; `own`: the classes are the model's own."""
    count = len(found.known.index)
    whole = len(some) if own or some.which else EXPECTED["val"]
    lacks = [] if count == whole else [f"{count:,} of {whole:,} images"]
    if damaged:
        lacks.append(f"{damaged} left out, as damaged")
    if some.images.left_out:
        lacks.append(some.images.left_out)
    return {
        **{"attack": one.name, "norm": one.norm, "eps": one.eps, **found.scores()},
        **{"warnings": list(found.warnings), "count": count, "expected": whole, "incomplete": lacks},
        **{"damaged": damaged, "rule": one.rule, "which": some.which, "images": some.fingerprint()},
        **({"own_classes": True} if own else {}),
        "file": f"{FOLDER}/{found.path.name}",
    }


class Attacker:
    """Attacks a model on images; all processes do the same.

    Args:
        context: with the mesh, the loader's options, and a transform that copies `selection.FIELDS`. Its source, and
            the number of damaged images that it leaves out, are not used.
        logits: of the model.
        variables: of the model, on the devices.
        classes: how many logits there are.
        seed: of random numbers.
    """

    def __init__(self, context: Context, logits: Logits, variables: Any, classes: int, seed: int):
        self._context, self._classes, self._seed = context, classes, seed
        self._programs = Programs(context.mesh, logits, variables, seed)
        self._seen: tuple[str, Known, Look, list[np.ndarray]] | None = None

    def identity(self, some: Some, one: Attack) -> str:
        """Returns what tells a result from others of this model."""
        return digest_of(_VERSION, one, some.fingerprint(), self._context.transform, self._seed)

    def attack(self, some: Some, one: Attack, directory: pathlib.Path) -> Found:
        """Attacks images, and keeps what is known of them in a folder.

        Args:
            some: the images.
            one: the attack.
            directory: of its file; it is made.

        Raises:
            DataError: if an image cannot be read, or all are damaged; those that are damaged are left out.
            CheckpointError: if the file cannot be written.
        """
        stages = attacks.find_stages(one.name, self._classes)
        known, seen, calls = self._look(some)
        stem = re.sub(r"[^\w.-]", "_", one.title.replace(" ", "-"))
        path = directory / f"{stem}-{self.identity(some, one)[:8]}.jsonl"
        store = Store(path, [stage.name for stage in stages])
        for name, values in (distributed.from_first(lambda: _begin(store, known)) or {}).items():
            getattr(known, name)[:] = values
        keep = _keeper(some, store, known)
        passes = [(number, rank) for number, stage in enumerate(stages) for rank in range(stage.passes)]
        for count, (number, rank) in enumerate(passes):
            stage = stages[number]
            target = np.asarray(seen.others)[:, rank] if stage.targets else np.zeros_like(known.index)
            run = self._programs.attack(stage, one.norm, one.eps, number, rank)
            title = f"{stage.name}, target {rank + 1} of {stage.targets}" if stage.targets else stage.name
            left = known.left(count)
            records = Records(some.images, known.index[left], target[left])
            for _, rows in self._batches(records, run, title, self._batch_size(len(left))):
                entries = np.searchsorted(known.index, rows["index"])
                known.note(entries, number, count, rows["fooled"], rows["predicted"], rows["distance"])
                keep(False)
            if rank == stage.passes - 1:
                right = np.mean(known.fooled_by == NOTHING)
                log.info("%s: %.2f %% of %d images are right.", stage.name, 100 * right, len(known.index))
        distributed.from_first(lambda: keep(True))
        warnings = [
            *names.lacks(one.name, self._classes),
            *signs.of_model(seen, calls, random=names.is_random(one.name)),
            *signs.of_attacks(stages, known.fooled_by),
        ]
        return Found(known, stages, warnings, path)

    def _look(self, some: Some) -> tuple[Known, Look, list[np.ndarray]]:
        """Returns what clean images tell of those that are not damaged, and `best` of some of them in several calls."""
        identity = some.fingerprint()
        if self._seen is None or self._seen[0] != identity:
            found: list[Mapping[str, np.ndarray]] = []
            calls: list[np.ndarray] = []
            records = Records(some.images, some.rows, np.zeros(len(some.rows), np.int32))
            size = self._context.batch_size
            for batch, rows in self._batches(records, self._programs.look, "clean images", size):
                found.append(rows)
                if not calls:
                    again = [jax.device_get(self._programs.look(batch)) for _ in range(CALLS - 1)]
                    calls = [rows["best"], *(one["best"][one["mask"] > 0] for one in again)]
            joined = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
            if not len(joined["index"]):
                raise DataError(
                    f"All {len(some)} images are damaged, such as {some.images.describe(int(some.rows[0]))}."
                )
            seen = Look(*(joined[name] for name in Look._fields))
            self._seen = identity, Known.of(joined["index"], joined["label"], seen), seen, calls
        _, known, seen, calls = self._seen
        return Known(*(values.copy() for values in vars(known).values())), seen, calls

    def _batch_size(self, count: int) -> int:
        """Returns the batch size for so many images: the whole one, or its quarter and so on, if they fit into that.

        Programs are compiled again for it, which costs less than thousands of queries for padding.
        """
        shards = sharding.batch_shards(self._context.mesh)
        size = self._context.batch_size
        while (less := -(-size // (_SHRINK * shards)) * shards) < size and count <= less:
            size = less
        return size

    def _batches(
        self, records: Records, run: Callable[[Any], Mapping[str, jax.Array]], title: str, batch_size: int
    ) -> Iterator[tuple[Mapping[str, jax.Array], dict[str, np.ndarray]]]:
        """Yields batches, and what a program says of their images, without padding and what is damaged."""
        context = dataclasses.replace(
            self._context, source=records, batch_size=batch_size, max_bad_records=len(records)
        )
        pending: collections.deque[tuple[Any, Any]] = collections.deque()

        def take() -> tuple[Any, Any]:
            batch, found = pending.popleft()
            rows = jax.device_get(found)
            return batch, {name: values[rows["mask"] > 0] for name, values in rows.items()}

        for batch in context.batches(title) if len(records) else ():
            pending.append((batch, run(batch)))
            if len(pending) > 1:
                yield take()
        while pending:
            yield take()


def _begin(store: Store, known: Known) -> dict[str, list[Any]] | None:
    """Returns what is known already. What the same attack has found of other images took its time, and is kept."""
    others = store.path.parent.glob(f"{store.path.stem[:-8]}????????.jsonl")
    for path in sorted(others):
        if path != store.path:
            log.info("%s is of other images, or of another seed: it is kept, and not used.", path)
    there = store.read(known.index.tolist())
    if there is not None:
        done = sum(passes > 0 for passes in there["passes"])
        log.info("%s: the attack goes on; %d images have been attacked.", store.path, done)
    return there


def _keeper(some: Some, store: Store, known: Known) -> Callable[[bool], None]:
    """Returns what writes the file, in process 0: unless its argument is true, only now and then."""
    if jax.process_index():
        return lambda now: None
    files = [some.images.name(int(index)) for index in known.index]
    return lambda now: store.write(known, files, now=now)


def compared(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns in sentences where Square, which uses no gradients, has found more than attacks that do.

    Args:
        sets: the entries by row; see `results.Results`.
    """
    found = []
    for row, entry in sets.items():
        if entry.get("attack") != "square":
            continue
        for other, beside in sets.items():
            same = all(entry[name] == beside.get(name) for name in ("norm", "eps", "images"))
            if same and _COMPARED.fullmatch(beside["attack"]) and beside["robust"] - entry["robust"] > _TOLD:
                found.append(
                    f"{row} leaves {entry['robust']:.2f} % and {other} {beside['robust']:.2f} %: Square uses no "
                    "gradients, so these may be masked, and the robust accuracy too high."
                )
    return found
