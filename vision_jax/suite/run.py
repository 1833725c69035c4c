"""Measures a model on evaluation sets: one compiled step for all, and what has been measured already is kept."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vision_jax.build import TrainedModel, compute_dtype
from vision_jax.data.sources import digest_of
from vision_jax.data.transforms import EvalTransform
from vision_jax.devices import distributed, sharding
from vision_jax.errors import ConfigError, DataError, DistributedError, reason
from vision_jax.evaluators.base import Context, Step, collect
from vision_jax.evaluators.logits import LogitsEvaluator
from vision_jax.evaluators.suites import IMAGENET_A_CLASSES, IMAGENET_R_CLASSES, confidence, top_classes
from vision_jax.explanations import parse_methods
from vision_jax.runtime import writers
from vision_jax.suite import adversarial, published, selection, tables
from vision_jax.suite.adversarial import Attack, Attacker, Plan
from vision_jax.suite.attack_programs import Logits
from vision_jax.suite.classes import class_columns, own_classes
from vision_jax.suite.find import Found
from vision_jax.suite.images import FIELDS, Images
from vision_jax.suite.mistakes import Mistakes
from vision_jax.suite.results import Results
from vision_jax.suite.selection import Some
from vision_jax.suite.sets import Opener, Outputs, Pass, Row, corruption_openers, openers

log = logging.getLogger(__name__)

_PACKAGES = ("vision_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "simplejpeg")
_NAMED = 10  # damaged images in a message


@dataclasses.dataclass(frozen=True)
class Options:
    """How a suite is run.

    Attributes:
        batch_size: images that are computed at once, over all devices.
        max_bad: damaged images of a set that may be left out.
        overwrite: replace results in the output folder, of whatever model.
        weights: the file of published weights that the model was read from; None: it is from a run.
        plan: of the attacks, where they are wanted.
        explain: the methods by which the most confident mistakes are explained, such as "gradcam,ig"; None: they are
            not.
        mistakes: how many of each set.
    """

    batch_size: int = 128
    max_bad: int = 0
    overwrite: bool = False
    weights: str | None = None
    plan: Plan = dataclasses.field(default_factory=Plan)
    explain: str | None = None
    mistakes: int = 16


def run_suite(
    trained: TrainedModel, found: Found, wanted: Sequence[str], output: pathlib.Path, options: Options
) -> bool:
    """Measures a model on sets, and keeps the results in `output` as they come; all processes call it.

    A set that fails is told, and the others go on. What `output` has already of this model and the same images is not
    measured again.

    Args:
        trained: the model.
        found: the sets.
        wanted: which of them; see `Found.choose`.
        output: a folder; see `results.Results`.
        options: see there.

    Returns:
        whether no set failed.

    Raises:
        ConfigError: if the model has other classes, but for corruptions alone, or `output` has results of another one.
        CheckpointError: if the results cannot be written, or another run is writing to `output`.
        DistributedError: if one of several processes cannot read its images, or they see others.
    """
    own = own_classes(trained, wanted, own_data=options.plan.split is not None)
    with contextlib.ExitStack() as lock:
        return _Suite(trained, output, options, own, lock).run(found, wanted)


class _Suite:
    """A suite of one model. Every process computes all scores; process 0 keeps them, in `_results`."""

    _results: Results

    def __init__(
        self,
        trained: TrainedModel,
        output: pathlib.Path,
        options: Options,
        own_classes: Sequence[str] | None,
        lock: contextlib.ExitStack,
    ):
        self._trained, self._options, self._own_classes = trained, options, own_classes
        self._attacked = output / adversarial.FOLDER
        self._columns = class_columns(trained) if own_classes is None else None
        self._preprocessing = trained.preprocessing
        self._transform = dataclasses.replace(self._preprocessing.transform, copied=FIELDS)
        self._variables = {"": dict(trained.variables)}
        shards = sharding.batch_shards(trained.mesh)
        self._batch_size = -(-options.batch_size // shards) * shards
        self._step: Step | None = None
        self._failed = False
        about, known = self._about(), self._published()
        self._mistakes: Mistakes | None = None
        if options.explain is not None:
            methods = parse_methods(options.explain)
            self._mistakes = Mistakes(trained, about["model"], output, methods, options.mistakes, self._columns)
        self._known = bool(known)

        def open_results() -> None:
            with _storage(output):
                output.mkdir(exist_ok=True)
            lock.enter_context(writers.open_workdir(output, flag="--output"))
            self._results = Results.open(output, about, known, options.overwrite)

        distributed.from_first(open_results)

    def run(self, found: Found, wanted: Sequence[str]) -> bool:
        """Does what `run_suite` says."""
        parts_of_c = [path.name for path in found.corruptions]
        distributed.check_agreement({"--sets": list(wanted), "what there is of ImageNet-C": parts_of_c})
        if set(wanted) - {"adversarial"}:
            self._say(tables.heading(beside=self._known))
        for opener in openers(found, wanted):
            self._measure(opener)
        done: set[str] = set()
        for path in found.corruptions if "c" in wanted else ():
            parts: list[Opener] = []
            with self._failures_told("c"):
                parts = _together(functools.partial(corruption_openers, path, self._own_classes))
            for opener in parts:
                if opener.name in done:
                    log.info("%s is there several times: that in %s is not used.", opener.name, path)
                else:
                    done.add(opener.name)
                    self._measure(opener)
        if "adversarial" in wanted:
            self._attack_all(found)
        distributed.from_first(lambda: print("\n" + tables.as_text(self._results.sets), flush=True))
        return not self._failed

    def _measure(self, opener: Opener) -> None:
        """Measures what is not known yet of the rows that a pass gives."""
        with self._failures_told(opener.name):
            one = _together(opener.open)
            distributed.check_agreement({}, {f"images of {one.name}": one.images})
            transform = one.adapt(self._transform)
            fingerprint = one.images.fingerprint()
            identities = {name: digest_of(row.identity, fingerprint, transform) for name, row in one.rows.items()}
            missing, explain = distributed.from_first(
                lambda: (self._not_measured(identities), self._is_to_be_explained(one))
            )
            if not missing and not explain:
                return
            outputs, seconds = self._compute(one, transform)
            damaged = self._count_damaged(one, outputs.index)
            for name in missing:
                with self._failures_told(name):
                    entry = _entry(one, one.rows[name], outputs, damaged)
                    if entry is not None:
                        self._keep(name, {**entry, "seconds": seconds, "identity": identities[name]})
            if explain and self._mistakes is not None:
                self._keep_mistakes(one.name, self._mistakes.write(one, transform, outputs))

    def _attack_all(self, found: Found) -> None:
        """Measures the robust accuracy under all attacks of the plan."""
        plan = self._options.plan
        with self._failures_told("adversarial"):
            some = _together(lambda: adversarial.open_images(self._trained, found, plan, self._own_classes))
            distributed.check_agreement({"the attacks": plan.facts()}, {"attacked images": some})
            attacker = self._make_attacker(some)
            for reading in dict.fromkeys(one.reading for one in plan.attacks if one.reading):
                self._say(f"eps: {reading}")
            for one in plan.attacks:
                with self._failures_told(one.row):
                    self._attack(attacker, some, one)
            for text in distributed.from_first(lambda: adversarial.compared(self._results.sets)):
                log.warning("%s", text)

    def _make_attacker(self, some: Some) -> Attacker:
        transform = dataclasses.replace(self._transform, copied=selection.FIELDS)
        shards = sharding.batch_shards(self._trained.mesh)
        context = self._context(some.images, transform, min(self._batch_size, -(-len(some) // shards) * shards))
        columns = None if self._columns is None else tuple(self._columns.tolist())
        flip = self._trained.config.eval.flip
        logits = Logits(self._trained.model, self._preprocessing.mean, self._preprocessing.std, flip, columns)
        classes = self._trained.num_classes if columns is None else len(columns)
        return Attacker(context, logits, self._variables[""], classes, self._options.plan.seed)

    def _attack(self, attacker: Attacker, some: Some, one: Attack) -> None:
        """Measures the robust accuracy under an attack, unless it is known."""
        identity = attacker.identity(some, one)
        if not distributed.from_first(lambda: self._not_measured({one.row: identity})):
            return
        start = time.perf_counter()
        with _loss_told(one.row):
            found = attacker.attack(some, one, self._attacked)
        damaged = self._count_damaged(some, found.known.index)
        entry = adversarial.entry(some, one, found, damaged, own=self._own_classes is not None)
        seconds = time.perf_counter() - start
        self._keep(one.row, {**entry, "seed": self._options.plan.seed, "seconds": seconds, "identity": identity})

    def _not_measured(self, identities: Mapping[str, str]) -> list[str]:
        """Returns the rows that are not known, of which older results are dropped; the others are shown."""
        missing = []
        for name, identity in identities.items():
            if self._results.has(name, identity, self._options.max_bad):
                print(f"{tables.row_text(name, self._results.sets[name])}   measured before", flush=True)
            else:
                self._results.drop(name)
                missing.append(name)
        return missing

    def _is_to_be_explained(self, one: Pass) -> bool:
        """Returns whether the mistakes on a set are wanted, and not there."""
        if self._mistakes is None or one.name not in one.rows:
            return False
        return not self._mistakes.are_in(self._results.sets.get(one.name, {}))

    def _compute(self, one: Pass, transform: EvalTransform) -> tuple[Outputs, float]:
        """Returns what the model says of the images of a pass, without the damaged ones, and the seconds that took."""
        context = self._context(one.images, transform, self._batch_size)
        if self._step is None:
            self._step = context.compile(self._make_step(context), self._variables)
        start = time.perf_counter()
        with _loss_told(one.name):
            rows = collect(context, self._step, self._variables, everywhere=True, description=one.name)
        assert rows is not None  # they are everywhere
        return Outputs(**rows), time.perf_counter() - start

    def _context(self, images: Images, transform: EvalTransform, batch_size: int) -> Context:
        data = self._trained.config.data
        return Context(
            mesh=self._trained.mesh,
            source=images,
            transform=transform,
            batch_size=batch_size,
            mean=self._preprocessing.mean,
            std=self._preprocessing.std,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            max_bad_records=len(images),  # all are found, and judged by what all processes have left out
        )

    def _make_step(self, context: Context) -> Step:
        """Returns (variables by prefix, batch) -> fields of `Outputs`: one for all sets."""
        measured = LogitsEvaluator(context=context, flip=self._trained.config.eval.flip)

        def step(variables: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
            logits = measured.logits(self._trained.objective, variables, batch)[""]
            if self._columns is not None:
                logits = logits[:, self._columns]
            copied = {name: batch[name] for name, _ in FIELDS}
            competing = {"": None, "_a": IMAGENET_A_CLASSES, "_r": IMAGENET_R_CLASSES}
            if self._own_classes is not None:
                competing = dict.fromkeys(competing)
            best = {f"best{end}": top_classes(logits, among=classes) for end, classes in competing.items()}
            sure = {f"confidence{end}": confidence(logits, among=classes) for end, classes in competing.items()}
            return {**copied, **best, **sure}

        return step

    def _count_damaged(self, one: Pass | Some, there: np.ndarray) -> int:
        """Returns how many images are damaged: those that are not among the numbers in `there`.

        Raises:
            DataError: if they are more than may be left out; it names the first ones.
        """
        rows = one.rows if isinstance(one, Some) else np.arange(len(one.images))
        damaged = np.setdiff1d(rows, there).tolist()
        if len(damaged) > self._options.max_bad:
            names = ", ".join(one.images.describe(index) for index in damaged[:_NAMED])
            more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
            raise DataError(
                f"{len(damaged)} of {len(rows)} images are damaged: {names}{more}. Copy or download them again, "
                f"or leave them out by --max_bad={len(damaged)}."
            )
        return len(damaged)

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        def put() -> None:
            self._results.put(name, entry)
            print(tables.row_text(name, self._results.sets[name]), flush=True)

        distributed.from_first(put)

    def _keep_mistakes(self, name: str, found: dict[str, Any]) -> None:
        def put() -> None:
            self._results.add(name, {"mistakes": found})
            if found["page"] is not None:
                print(f"{'':24}most confident mistakes: {self._results.directory / found['page']}", flush=True)

        distributed.from_first(put)

    @contextlib.contextmanager
    def _failures_told(self, name: str) -> Iterator[None]:
        """Tells an error with data, which all processes have alike, and goes on."""
        try:
            yield
        except DataError as error:
            problem = str(error)
            self._failed = True

            def tell() -> None:
                self._results.fail(name, problem)
                print(f"error: {name}: {problem}", file=sys.stderr, flush=True)

            distributed.from_first(tell)

    def _say(self, text: str) -> None:
        if jax.process_index() == 0:
            print(text, flush=True)

    def _about(self) -> dict[str, Any]:
        """Returns what suite.json says besides the results."""
        trained, transform = self._trained, self._transform
        computed = {"dtype": np.dtype(compute_dtype(trained.config)).name, "flip": trained.config.eval.flip}
        columns = "in ImageNet's order" if self._columns is None else "chosen by WordNet id"
        columns = columns if self._own_classes is None else "its own"
        model = {
            "name": trained.name,
            "origin": trained.origin,
            "digest": trained.digest,
            **computed,
            "classes": f"{trained.num_classes}, {columns}",
            "preprocessing": {
                **{"size": transform.size, "resize": transform.resize, "filter": transform.filter},
                **{"mean": list(self._preprocessing.mean), "std": list(self._preprocessing.std)},
            },
            "identity": digest_of(trained.digest, computed, trained.class_names),
        }
        return {"model": model, "versions": versions(), "published": published.weights_name(self._options.weights)}

    def _published(self) -> published.Values:
        """Returns what is published of the weights, and says so if that is with another preprocessing."""
        name = published.weights_name(self._options.weights)
        if name is None:
            return {}
        known = published.values(name, self._transform)
        if not known:
            others = "; ".join(setting.flags() for setting in published.settings(name))
            log.warning("Nothing published stands beside these results: what there is of %s is for %s.", name, others)
        return known


def _entry(one: Pass, row: Row, outputs: Outputs, damaged: int) -> dict[str, Any] | None:
    """Returns a row of the table for JSON; None: no image counts in it."""
    score = row.score(outputs)
    if score is None:
        log.info("No image of %s counts here: %s", one.name, row.rule)
        return None
    lacks = list(score.lacks)
    if score.count < row.expected:
        lacks.insert(0, f"{score.count:,} of {row.expected:,} images")
    elif score.count > row.expected:
        lacks.insert(0, f"{score.count:,} images, more than {row.expected:,}")
    if damaged:
        lacks.append(f"{damaged} left out, as damaged")
    if one.images.left_out:
        lacks.append(one.images.left_out)
    return {
        **{"top1": score.top1, "top5": score.top5, "count": score.count, "expected": row.expected},
        **{"incomplete": lacks, "damaged": damaged, "rule": row.rule},
        **({"own_classes": True} if row.own_classes else {}),
    }


def _together(compute: Callable[[], Any]) -> Any:
    """Returns what every process computes for itself.

    Raises:
        DataError: in all processes, if one of them raises it.
    """
    value, problem = None, None
    try:
        value = compute()
    except DataError as error:
        problem = str(error)
    problems = [each for each in distributed.gather(problem) if each is not None]
    if problems:
        raise DataError(problems[0])
    return value


@contextlib.contextmanager
def _loss_told(name: str) -> Iterator[None]:
    """Ends all processes if one of several cannot read its images: the others wait for it."""
    try:
        yield
    except DataError as error:
        if jax.process_count() == 1:
            raise
        raise DistributedError(f"{name}: {error}") from error


@contextlib.contextmanager
def _storage(directory: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--output is {directory}, which cannot be made: {reason(error)}. Give another.") from error


def versions() -> dict[str, str | None]:
    """Returns what computes results: packages, devices, Python, and the state of this code."""
    device = jax.local_devices()[0].device_kind
    return {
        **{name: _version(name) for name in _PACKAGES},
        "device": f"{jax.device_count()} x {device}",
        "python": platform.python_version(),
        "code": distributed.code_version(),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
