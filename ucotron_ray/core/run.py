"""One invocation: its recipe and place, its store, its tracking, and Ray from the moment that a stage needs it."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

from ucotron_ray.core import cluster
from ucotron_ray.core import destination as destinations
from ucotron_ray.core import spool as spools
from ucotron_ray.core import wandb as wandb_mirror
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request, Store
from ucotron_ray.core.config import Config
from ucotron_ray.core.errors import ConfigError, Stopped
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.core.sending import Sender

Entered = TypeVar("Entered")

log = logging.getLogger(__name__)


class Run:
    """Open it with `with`. On the way out Ray is left, and tracking gets a bounded time to send what is pending."""

    def __init__(
        self, config: Config, *, verb: str, name: str, replace: bool = False, accept_rejected: bool = False
    ) -> None:
        self.config = config
        self.name = name
        self.replace = replace
        self.accept_rejected = accept_rejected
        self.store = Store(_store_root(config.place.store))
        if joined := cluster.address_of(config.place):
            cluster.check_text(joined)
        self.destination = destinations.destination(config.place, self.store.root)
        # The same recipe gives the same key, so that a run that goes on after a kill is one run in MLflow.
        key = f"{verb}-{name}-{canonical_hash(config.recipe.whole())[:12]}"
        self.spool = spools.Spool(spools.spool_directory(self.store.root), key)
        self.hub_needed = False
        """Whether a model hub may be asked: only if a recipe names a hub model. Set before `connect`."""
        self.commits: dict[str, str] = {}
        """What the hub said of `org/name@branch`: asked once, so that a whole run is of one commit."""
        self.log_file = str(self.store.root / "tracking" / "logs" / f"{key}.log")
        self._verb = verb
        self._stack = ExitStack()
        self._began = False
        self._sending = False
        self.connected = False

    def __enter__(self) -> "Run":
        self._stack.__enter__()
        if spools.has_pending(self.spool.directory):
            # What an earlier run could not send goes out now, even if this one has nothing to add.
            self._stack.enter_context(Sender(self.spool.directory, self.destination))
            self._sending = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._began:
            stopped = isinstance(error, (Stopped, KeyboardInterrupt))
            self.spool.end("FINISHED" if error is None else "KILLED" if stopped else "FAILED")
            wandb_mirror.mirror(self.config.place.tracking, self.spool)
        self._stack.__exit__(None, None, None)

    def connect(self, *, workers: bool = True) -> None:
        """Connect to Ray unless this run already did; with `workers`, check that the cluster can hold them."""
        from ucotron_ray.core import session  # noqa: PLC0415 - 1.5 s; a run that reuses everything needs no Ray

        if not self.connected:
            self._stack.enter_context(session.connected(self.config.place, hub=self.hub_needed))
            self.connected = True
        if workers:
            place = self.config.place
            if place.ray.wait_for_nodes:
                session.wait_for_nodes(place.workers, place.ray.wait_for_nodes)
            session.check_resources(place.workers)

    def enter(self, context: AbstractContextManager[Entered]) -> Entered:
        """Enter a context that lasts as long as this run."""
        return self._stack.enter_context(context)

    def make(self, stage: str, request: Request, build: Callable[[Build], BuildResult]) -> Artifact:
        """The requested artifact: reused if it is there, else built (or built further) and published."""
        with self.store.building(request, replace=self.replace) as work:
            if work.artifact is not None:
                log.info("%s: reuse %s '%s'", stage, request.kind, request.name)
                return work.artifact
            log.info("%s: %s %s '%s'", stage, "go on with" if work.resumed else "make", request.kind, request.name)
            self._begin()
            spool = self.spool.child(stage)
            spool.start(name=stage, parent=self.spool.run, tags={"ucotron.artifact": f"{request.kind}/{request.name}"})
            spool.params(request.fields)
            try:
                result = build(work)
            except BaseException as error:
                spool.end("KILLED" if isinstance(error, (Stopped, KeyboardInterrupt)) else "FAILED")
                raise
            artifact = work.publish(result)
            spool.metrics({**result.metrics, **{f"count_{key}": float(value) for key, value in result.counts.items()}})
            spool.tags({"ucotron.content": artifact.manifest.content, "ucotron.path": str(artifact.path)})
            if request.kind in ("adapter", "bundle", "model", "projection"):
                spool.model(artifact, "output")
            spool.end("FINISHED")
            log.info("%s: done in %.0f s: %s", stage, artifact.manifest.provenance["seconds"], artifact.path)
            return artifact

    def mlflow_run(self) -> str | None:
        """The id of this run in MLflow, if it was sent by now."""
        return spools.run_id(self.spool.directory, self.spool.run)

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            if not self._sending:
                self._stack.enter_context(Sender(self.spool.directory, self.destination))
            self.spool.start(name=f"{self._verb} {self.name}", tags={"ucotron.store": str(self.store.root)})
            recipe = self.config.recipe
            used = {"tier": recipe.tier, "graph": recipe.graph, "sft": recipe.sft, "evaluation": recipe.evaluation}
            self.spool.params(
                {key: value if isinstance(value, str) else value.model_dump() for key, value in used.items()}
            )


def _store_root(setting: str) -> Path:
    """The store's directory. Raises ConfigError where a relative one would be lost."""
    root = Path(setting).expanduser()
    # Ray unpacks a job's working directory below this name and deletes it after the job.
    if not root.is_absolute() and "_ray_pkg_" in str(Path.cwd()):
        raise ConfigError(
            "the store must be an absolute path in a submitted job",
            where="store",
            expected="an absolute path that all nodes share",
            found=setting,
            next_step="add --set store=/absolute/path, or put it into the place file",
        )
    return root
