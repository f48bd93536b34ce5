"""The durable queue of shards (DBOS Transact): each shard is a workflow that ends once, whoever is killed meanwhile.

One process is one executor. All executors of an output folder share a database in its work folder; what a dead one had
in hand is put back into the queue.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID, WorkflowStatus
from sqlalchemy.exc import SQLAlchemyError

from gateway.operations.errors import DiskFull
from training.features.errors import FeaturesInvalid
from training.features.record import CODE

_NAME = "pathserve-features"
_QUEUE = "features"
_AT_ONCE = 2
"""Shards that a process has in hand: while one is computed, the next one waits with its first tiles read."""
_POLL_S = 0.25
_LISTEN_S = 0.1
"""How often DBOS looks for messages, which we do not send: it ends no sooner than its next look."""
_END_S = 0.05
_UNFINISHED = ("PENDING", "ENQUEUED")


class ShardQueue:
    """The queue as its coordinator sees it. Made by `queue`."""

    def __init__(self, work: Callable[[str, int], None]) -> None:
        self._body = DBOS.workflow(name="shard", max_recovery_attempts=None)(work)

    def put(self, series: str, first: int) -> None:
        """Put a shard into the queue; one whose workflow has ended, without its part being there, anew."""
        name = f"{series}/{first}"
        found = DBOS.list_workflows(workflow_ids=[name], load_input=False, load_output=False)
        if found and found[0].status in _UNFINISHED:
            return
        if found:
            DBOS.delete_workflow(name)
        with SetWorkflowID(name):
            DBOS.enqueue_workflow(_QUEUE, self._body, series, first)

    def take_back(self, executor: str | None = None) -> None:
        """Put what a dead executor (None: any) had in hand back into the queue."""
        for each in _in_hand(executor):
            DBOS.resume_workflow(each.workflow_id, queue_name=_QUEUE)


def _in_hand(executor: str | None) -> list[WorkflowStatus]:
    return DBOS.list_workflows(status="PENDING", executor_id=executor, load_input=False, load_output=False)


def executor_of(index: int) -> str:
    return f"features-{index}"


@contextmanager
def queue(folder: Path, index: int, work: Callable[[str, int], None]) -> Iterator[ShardQueue]:
    """Take part in the queue whose database lies in `folder`: this process does shards with `work(series, first)`.

    Raises DiskFull, FeaturesInvalid where the database cannot be used.
    """
    database = f"sqlite:///{folder / 'queue.db'}"
    config = DBOSConfig(
        name=_NAME,
        system_database_url=database,
        application_version=CODE,
        executor_id=executor_of(index),
        serializer=DBOSPortableJSONSerializer(),
        enable_otlp=False,
        log_level="ERROR",
        notification_listener_polling_interval_sec=_LISTEN_S,
    )
    DBOS(config=config)
    logging.getLogger("dbos").setLevel(logging.CRITICAL)
    shards = ShardQueue(work)
    try:
        _register(database)
        DBOS.launch()
        yield shards
        while _in_hand(executor_of(index)):
            time.sleep(_END_S)
    except SQLAlchemyError as error:
        if "full" in str(error):
            raise DiskFull("No space is left in the output folder: make room there, then run again.") from None
        raise FeaturesInvalid(
            "The job's queue in the output folder cannot be used. Run again; if that does not help, remove the folder "
            ".features there."
        ) from None
    finally:
        DBOS.destroy(destroy_registry=True)


def _register(database: str) -> None:
    """Put the queue into the database. DBOS looks for queues as it is launched, and then only every second."""
    DBOS.migrate(database)
    client = DBOSClient(system_database_url=database, application_name=_NAME)
    try:
        client.register_queue(_QUEUE, worker_concurrency=_AT_ONCE, polling_interval_sec=_POLL_S)
    finally:
        client.destroy()
