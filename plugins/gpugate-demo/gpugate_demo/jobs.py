"""The job queue of the simulated ComfyUI and its single worker.

Every event goes to `tell(event, data, client)`, client None meaning all clients, in the recorded
order (docs/telegram-comfyui.md#comfyui). History is written after `execution_success`, as really.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from attrs import define, field, frozen

from gpugate.tasks import spawn
from gpugate_demo.file_store import FileStore
from gpugate_demo.graph import Graph, order, signatures
from gpugate_demo.node_runner import Failure, Interrupted, NodeRunner, Tell

MAX_HISTORY = 10_000


@frozen
class FailJob:
    """The next job fails while it runs."""

    text: str = "simulated failure"
    kind: str = "RuntimeError"


@frozen
class HangJob:
    """The next job runs until it is interrupted or `until` is set."""

    until: asyncio.Event = field(factory=asyncio.Event, hash=False)


@frozen
class LoseJob:
    """The next job is accepted and then lost, as after a restart."""


@frozen
class EmptyJob:
    """The next job succeeds and gives nothing."""


@frozen
class VanishJob:
    """The next job succeeds and its files are gone."""


JobFault = FailJob | HangJob | LoseJob | EmptyJob | VanishJob


@define(eq=False)
class ComfyJob:
    """One graph in the queue."""

    number: float
    id: str
    graph: Graph
    extra: dict[str, Any]
    outputs: tuple[str, ...]
    fault: JobFault | None = None
    stop: asyncio.Event = field(factory=asyncio.Event)

    @property
    def client(self) -> str | None:
        """The client id whose socket gets the job's events."""
        client = self.extra.get("client_id")
        return client if isinstance(client, str) else None

    def row(self) -> list[Any]:
        """As in /queue and /history."""
        return [self.number, self.id, self.graph, self.extra, list(self.outputs)]


@define
class JobQueue:
    """Owns queue, history and cache, and runs the worker.

    Attributes:
        faults: handed out one per job, the first first.
        history_lag_s: from `execution_success` to the entry in the history.
    """

    shelf: FileStore
    desk: NodeRunner
    tell: Tell
    history_lag_s: float = 0.002
    history: OrderedDict[str, dict[str, Any]] = field(factory=OrderedDict)
    faults: list[JobFault] = field(factory=list)
    running: ComfyJob | None = None
    _pending: list[ComfyJob] = field(factory=list)
    _counter: int = 0
    _cache: dict[str, dict[str, Any]] = field(factory=dict)
    _worker: asyncio.Task[Any] | None = None

    @property
    def remaining(self) -> int:
        """Jobs that run or wait."""
        return len(self._pending) + (self.running is not None)

    def pending(self) -> list[ComfyJob]:
        """Jobs that wait, in the order in which they are kept."""
        return list(self._pending)

    def submit(
        self,
        job_id: str,
        graph: Graph,
        extra: dict[str, Any],
        outputs: tuple[str, ...],
        front: object,
        number: float | None,
    ) -> float:
        """Queue a job and return its number."""
        place: float = self._counter
        if number is not None:
            place = number
        else:
            place = -place if front else place
            self._counter += 1
        fault = self.faults.pop(0) if self.faults else None
        if not isinstance(fault, LoseJob):
            self._pending.append(ComfyJob(place, job_id, graph, extra, outputs, fault))
            self._tell_status()
            if self._worker is None or self._worker.done():
                self._worker = spawn(self._work(), "simulated ComfyUI")
        return place

    def cancel_pending(self, wanted: Callable[[ComfyJob], bool]) -> None:
        """Remove waiting jobs; the running one goes on."""
        kept = [job for job in self._pending if not wanted(job)]
        if len(kept) != len(self._pending):
            self._pending = kept
            self._tell_status()

    def interrupt(self, job_id: str | None) -> None:
        """Stop what runs, or only if it is this job."""
        if self.running is not None and job_id in (None, self.running.id):
            self.running.stop.set()

    def forget(self) -> None:
        """Lose queue, history and cache, as a restart does."""
        self._pending.clear()
        self.interrupt(None)
        self.history.clear()
        self._cache.clear()

    def clear_cache(self) -> None:
        """Forget what need not be computed again."""
        self._cache.clear()

    async def aclose(self) -> None:
        """End the worker."""
        self._pending.clear()
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    def _tell_status(self) -> None:
        self.tell("status", {"status": {"exec_info": {"queue_remaining": self.remaining}}}, None)

    async def _work(self) -> None:
        while self._pending:
            job = min(self._pending, key=lambda waiting: waiting.number)
            self._pending.remove(job)
            self.running = job
            self._tell_status()
            try:
                entry = await _Run(self, job).go()
            finally:
                self.running = None
            self._remember(job.id, entry)
            self._tell_status()
            if job.client is not None:
                self.tell("executing", {"node": None, "prompt_id": job.id}, job.client)

    def _remember(self, job_id: str, entry: dict[str, Any]) -> None:
        self.history[job_id] = entry
        self.history.move_to_end(job_id)
        while len(self.history) > MAX_HISTORY:
            self.history.popitem(last=False)

    def cached(self, signature: str) -> dict[str, Any] | None:
        """What a node gave the last time, if nothing above it has changed."""
        return self._cache.get(signature)

    def keep_cache(self, results: dict[str, dict[str, Any]]) -> None:
        """Only what the last graph gave is kept."""
        self._cache = results


@define
class _Run:
    """One job from its start to its entry in the history."""

    jobs: JobQueue
    job: ComfyJob
    _messages: list[list[Any]] = field(factory=list)
    _progress: dict[str, dict[str, Any]] = field(factory=dict)
    _outputs: dict[str, Any] = field(factory=dict)
    _executed: list[str] = field(factory=list)
    _results: dict[str, dict[str, Any]] = field(factory=dict)

    async def go(self) -> dict[str, Any]:
        """Run it; whatever happens becomes the entry."""
        self._message("execution_start", {})
        names = order(self.job.graph, self.job.outputs)
        digests = signatures(self.job.graph, names, self.jobs.shelf.input_digest)
        cached = [name for name in names if self.jobs.cached(digests[name]) is not None]
        self._message("execution_cached", {"nodes": cached})
        try:
            for name in names:
                if name == names[-1]:
                    await self._hang(name)
                await self._node(name, digests[name])
        except Interrupted as stopped:
            return self._broken("execution_interrupted", stopped.node, {})
        except Failure as failure:
            return self._broken("execution_error", failure.node, failure.report())
        finally:
            self.jobs.keep_cache(self._results)
        self._message("execution_success", {})
        await asyncio.sleep(self.jobs.history_lag_s)
        return self._entry("success")

    async def _hang(self, name: str) -> None:
        fault = self.job.fault
        if isinstance(fault, HangJob):
            waits = [spawn(event.wait(), "a job that hangs") for event in (fault.until, self.job.stop)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if self.job.stop.is_set():
            raise Interrupted(name)

    async def _node(self, name: str, digest: str) -> None:
        known = self.jobs.cached(digest)
        if known is not None:
            self._results[digest] = known
            if known:
                self._show(name, known)
                self._step(name, 1, 1, "finished")
            return
        if self.job.stop.is_set():
            raise Interrupted(name)
        self._step(name, 0.0, 1.0, "running")
        self._tell("executing", {"node": name, "display_node": name, "prompt_id": self.job.id})
        if isinstance(self.job.fault, FailJob) and name in self.job.outputs:
            raise Failure(name, self.job.fault.kind, self.job.fault.text)
        shown = await self.jobs.desk.run(self.job, name, self._step, self._tell)
        if isinstance(self.job.fault, EmptyJob):
            shown = {}
        if isinstance(self.job.fault, VanishJob):
            for image in shown.get("images", []):
                self.jobs.shelf.remove((image["type"], image["subfolder"], image["filename"]))
        self._results[digest] = shown
        self._executed.append(name)
        if shown:
            self._show(name, shown)
        last = self._progress[name]
        self._step(name, last["max"], last["max"], "finished")

    def _kind(self, name: str) -> str:
        return str(self.job.graph[name]["class_type"])

    def _show(self, name: str, shown: dict[str, Any]) -> None:
        self._outputs[name] = shown
        self._tell(
            "executed", {"node": name, "display_node": name, "output": shown, "prompt_id": self.job.id}
        )

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        if self.job.client is not None:
            self.jobs.tell(event, data, self.job.client)

    def _step(self, name: str, value: float, most: float, state: str) -> None:
        self._progress[name] = {
            "value": value,
            "max": most,
            "state": state,
            "node_id": name,
            "prompt_id": self.job.id,
            "display_node_id": name,
            "parent_node_id": None,
            "real_node_id": name,
        }
        # Without a client this one goes to everybody (recorded).
        self.jobs.tell(
            "progress_state", {"prompt_id": self.job.id, "nodes": dict(self._progress)}, self.job.client
        )

    def _message(self, event: str, data: dict[str, Any]) -> None:
        whole = {**data, "prompt_id": self.job.id, "timestamp": int(time.time() * 1000)}
        self._messages.append([event, whole])
        self._tell(event, whole)

    def _broken(self, event: str, node: str, report: dict[str, Any]) -> dict[str, Any]:
        where = {"node_id": node, "node_type": self._kind(node), "executed": list(self._executed)}
        self._message(event, {**where, **report})
        self._outputs = {}
        return self._entry("error")

    def _entry(self, status: str) -> dict[str, Any]:
        meta = {
            name: {"node_id": name, "display_node": name, "parent_node": None, "real_node_id": name}
            for name in self._outputs
        }
        return {
            "prompt": self.job.row(),
            "outputs": self._outputs,
            "status": {"status_str": status, "completed": status == "success", "messages": self._messages},
            "meta": meta,
        }
