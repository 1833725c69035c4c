"""A run in Weights & Biases and in MLflow, by their own libraries, which are imported when a run is opened.

Where runs go is up to each library: its environment variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...;
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...), its settings files and its login. Both work without a network.
"""

import dataclasses
import enum
import io
import json
import logging
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import PIL.Image

from vision_jax.errors import STATUS_PREEMPTED, CheckpointError, ConfigError
from vision_jax.runtime.writers import write_atomically

log = logging.getLogger(__name__)

# The project of W&B and the experiment of MLflow, unless the environment names another.
PROJECT = "vision_jax"
_MLFLOW_BATCH = 100  # parameters that MLflow takes at once


class Ending(enum.Enum):
    """How a run ended: by itself, with an error, by Ctrl-C, or by SIGTERM with its state saved."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"

    @property
    def told_to_stop(self) -> bool:
        """Whether something waits for the process to end, and may kill it."""
        return self in (Ending.INTERRUPTED, Ending.PREEMPTED)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a tracker is told of a run.

    Attributes:
        workdir: of the run, whose name is the run's.
        config: the configuration, as nested dicts.
        fields: the same by path, such as `data.image_size`.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    fields: Mapping[str, object]

    @property
    def name(self) -> str:
        return self.workdir.resolve().name


class RunIds:
    """The ids of a run in the trackers, by tracker: a JSON file in the workdir, so that a resumed run goes on in them.

    Args:
        path: of the file.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._lock = path, threading.Lock()
        self._ids: dict[str, str] = {}
        try:
            values = json.loads(path.read_text())
            self._ids = {str(name): str(run_id) for name, run_id in values.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError) as error:
            log.warning("%s cannot be read (%s): the trackers get a new run.", path, error)

    def get(self, name: str) -> str | None:
        """Returns the id of the run in a tracker; None: there is none yet."""
        return self._ids.get(name)

    def keep(self, name: str, run_id: str) -> None:
        """Stores an id. Failing storage only causes a warning."""
        with self._lock:
            if self._ids.get(name) == run_id:
                return
            self._ids[name] = run_id
            try:
                write_atomically(self._path, json.dumps(self._ids, indent=2, sort_keys=True) + "\n")
            except CheckpointError as error:
                log.warning("%s If this run is resumed, it will be a new one in %s.", error, name)


class Service(Protocol):
    """A run in a tracker. One thread calls its methods; each may raise anything, and may hang.

    The first is `open`, until it succeeds, and the last `close`.
    """

    def open(self) -> str:
        """Starts the run or, if it has an id, continues it; returns where it is to be seen."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line of metrics.jsonl. A step may be smaller than one before it."""

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Adds images, PNG by name."""

    def close(self, ending: Ending) -> None:
        """Sends what is left, and ends the run."""


class WandbRun:
    """A run in Weights & Biases; offline, in WORKDIR/wandb/ until `wandb sync` uploads it.

    W&B's own step only increases. Lines therefore have `step` as a metric, which is the x axis of all others.

    Args:
        description: of the run.
        ids: has or gets the run's id.
        finish_seconds: how long `close` may take to upload what is left; see W&B's finish_timeout.
    """

    library: ClassVar[str] = "wandb"

    def __init__(self, description: Description, ids: RunIds, finish_seconds: float):
        self._description, self._ids, self._finish_seconds = description, ids, finish_seconds
        self._run: Any = None

    def open(self) -> str:
        import wandb

        # Silent: what it prints, such as a spinner while it waits, would break a progress bar.
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        if settings.mode not in ("offline", "dryrun", "disabled") and not wandb.login(prompt=False):
            raise ConfigError("there is no API key: run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline")
        run_id = self._ids.get("wandb")
        self._run = wandb.init(
            project=settings.project or PROJECT,
            id=run_id or settings.run_id,
            # A resumed run may have been given another name on the web.
            name=None if run_id else settings.run_name or self._description.name,
            resume="allow",
            dir=settings.root_dir if "WANDB_DIR" in os.environ else str(self._description.workdir),
            config=dict(self._description.config),
            allow_val_change=True,  # logging may be configured in another way when a run resumes
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",  # it would replace the streams of a process in which another thread is writing
                finish_timeout=settings.finish_timeout or self._finish_seconds,
                finish_timeout_raises=True,
            ),
        )
        if settings.mode == "disabled":
            return "disabled by WANDB_MODE"
        self._ids.keep("wandb", self._run.id)
        self._run.define_metric("*", step_metric="step")
        return self._run.url or f"`wandb sync {self._run.settings.sync_dir}` uploads it"

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        import wandb

        self._run.log({**{name: wandb.Image(_decode(png)) for name, png in images.items()}, "step": step})

    def close(self, ending: Ending) -> None:
        if ending is Ending.PREEMPTED:
            self._run.mark_preempting()  # together with a status that is not 0, it makes the run's state `preempted`
        statuses = {Ending.FINISHED: 0, Ending.FAILED: 1, Ending.PREEMPTED: STATUS_PREEMPTED}
        try:
            self._run.finish(exit_code=statuses.get(ending, 255))  # 255 is W&B's own for Ctrl-C
        except TimeoutError as error:
            where = self._run.settings.sync_dir
            raise TimeoutError(f"the network is too slow to finish the run; `wandb sync {where}` does it") from error


class MlflowRun:
    """A run in MLflow, whose client is used without its global state, such as the active run.

    MLflow's parameters cannot change: a field that has another value when the run resumes becomes a tag
    `changed.FIELD`.

    Args:
        description: of the run.
        ids: has or gets the run's id.
        finish_seconds: not used: MLflow sends at once.
    """

    library: ClassVar[str] = "mlflow"

    def __init__(self, description: Description, ids: RunIds, finish_seconds: float):
        self._description, self._ids = description, ids
        self._client: Any = None
        self._run_id = ""

    def open(self) -> str:
        import mlflow

        # It would warn of each of the seven times that the client tries again, for every line; `Feed` does so once.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._client = mlflow.MlflowClient()
        run = self._find()
        if run is None:
            run = self._client.create_run(self._experiment(), run_name=self._description.name)
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run_id = run.info.run_id
        self._ids.keep("mlflow", self._run_id)
        self._write_fields(run.data.params)
        where = self._client.tracking_uri
        if where.startswith("http"):
            return f"{where.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{self._run_id}"
        return f"run {self._run_id} of {where}"

    def _find(self) -> Any:
        """Returns the run of the stored id, or else that which the environment names; None: there is none here."""
        from mlflow.exceptions import MlflowException

        run_id = self._ids.get("mlflow") or os.environ.get("MLFLOW_RUN_ID")
        if not run_id:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            log.warning("%s has no run %s, or has deleted it: a new one is created.", self._client.tracking_uri, run_id)
            return None
        return run

    def _experiment(self) -> str:
        """Returns the id of the experiment that the environment names, or else of the default, created if need be."""
        if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return experiment_id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if experiment is None else experiment.experiment_id

    def _write_fields(self, there: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        fields = {path: str(value) for path, value in self._description.fields.items()}
        new = [Param(path, value) for path, value in fields.items() if path not in there]
        for start in range(0, len(new), _MLFLOW_BATCH):
            self._client.log_batch(self._run_id, params=new[start : start + _MLFLOW_BATCH])
        # MLflow may have cut what it keeps of a long value.
        changed = [path for path, value in there.items() if path in fields and not fields[path].startswith(value)]
        tags = [RunTag(f"changed.{path}", fields[path]) for path in changed]
        for start in range(0, len(tags), _MLFLOW_BATCH):
            self._client.log_batch(self._run_id, tags=tags[start : start + _MLFLOW_BATCH])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        self._client.log_batch(self._run_id, metrics=[Metric(name, v, now, step) for name, v in metrics.items()])

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        for name, png in images.items():
            self._client.log_image(self._run_id, _decode(png), key=name, step=step, synchronous=True)

    def close(self, ending: Ending) -> None:
        statuses = {Ending.FINISHED: "FINISHED", Ending.FAILED: "FAILED"}
        self._client.set_terminated(self._run_id, statuses.get(ending, "KILLED"))


def _decode(png: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(png))
