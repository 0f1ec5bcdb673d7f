"""What is done for goals of the type `quality`: learning jobs are begun and ended, versions promoted and taken back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    DiskFull,
    InsufficientMemory,
    InvalidRequest,
    ModelOpsError,
    NotFound,
    Overloaded,
)
from modelops.api.goals import GoalLimits, QualityObjective
from modelops.api.learning import CreateJobRequest, JobPlan
from modelops.goals import asked
from modelops.goals.asked import Files
from modelops.goals.attempts import JobSeen, QualityFacts
from modelops.goals.doing import HELD_OUT, REGRESSION, TRAIN, Checked, Tell, Tools
from modelops.goals.removing import remove
from modelops.goals.values import Pursued, Step
from modelops.goals.watching import Counted, Watch
from modelops.serving.catalog import Version
from modelops.serving.placement import MB, Bill
from modelops.tasks import Tasks

_CALLER = "goal"
#: Engines are started and emptied meanwhile.
_SWAP_S = 600.0
_RETRY_S = 5.0
#: How long is waited for what was interrupted, and goes on.
_LAST_S = 10.0

T = TypeVar("T")


class QualityDoer:
    """Does what goals of quality need."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._watch = Watch(tools.pool)
        self._tasks = Tasks("goals of quality")
        self._jobs: dict[str, dict[str, JobSeen]] = {}  # of each goal, those that have ended
        self._needed: dict[str, tuple[tuple[object, ...], JobPlan]] = {}  # by goal: what a training of it takes

    async def close(self) -> None:
        """End what goes on beside what was asked for."""
        await self._watch.close()
        await self._tasks.close()

    # --- before there is a goal ---
    async def check(self, objective: QualityObjective, limits: GoalLimits) -> Checked:
        """See Doer."""
        tools = self._tools
        version = await tools.catalog.find(tools.catalog.resolve(objective.model_name))
        name = version.model_name
        if version.base:
            raise InvalidRequest(f"objective: '{name}' is an adapter; name the model that it was made for")
        files = await asyncio.to_thread(asked.read, objective, tools.settings)
        job = await tools.jobs.preview(asked.training(name, objective, objective.parameters), files)
        _, served = await tools.pool.preview(version, tools.pool.wish(name) or tools.catalog.wish(name))
        if isinstance(served, Bill) and served.never:
            raise InsufficientMemory(served.sentence(name), details=served.details())
        most = tools.settings.goals.max_trainings if limits.max_jobs is None else limits.max_jobs
        bare = {"train_dataset": None, "eval_dataset": None, "regression_dataset": None, "model_name": name}
        return Checked(
            objective=objective.model_copy(update=bare),
            plan=asked.plan(objective, name, job.plan or JobPlan(), most),
            warnings=(*job.warnings, *asked.warnings(files), *self._adapters(version)),
            files=files,
        )

    def _adapters(self, version: Version) -> Iterator[str]:
        """What becomes of the adapters that answer beside the version, where there are any."""
        adapters = self._tools.pool.adapters.active(version)
        if found := ", ".join(f"'{adapter.model_name}'" for adapter in adapters):
            yield (
                f"what is promoted is another base: adapters that were made for the present version ({found}) are "
                "refused until that answers again"
            )

    # --- looking ---
    async def facts(self, goal: Pursued, folder: Path) -> QualityFacts:
        """See Doer."""
        settings, objective = self._tools.settings, _objective(goal)
        jobs = {job_id: await self._seen(goal, job_id) for job_id in await self._job_ids(goal)}
        counted = self._probed(goal)
        most = goal.limits.max_jobs
        return QualityFacts(
            jobs=jobs,
            made=frozenset(version.label for version in self._made(goal, jobs)),
            answered=counted.answered,
            unanswered=counted.unanswered,
            max_jobs=settings.goals.max_trainings if most is None else most,
            regression=await asyncio.to_thread((folder / REGRESSION).is_file)
            or bool(objective.regression_dataset_path),
            damaged=await asyncio.to_thread(_damaged, self._versions(goal)),
        )

    async def refusal(self, goal: Pursued, folder: Path) -> str:
        """See Doer: the memory of a training, where one may be next."""
        judged = goal.last("baseline", "train", "promote")
        if judged is None or not judged.done or judged.error or judged.action.kind == "promote":
            return ""
        if not (await self._seen(goal, str(judged.result["job_id"]))).ended:
            return ""
        try:
            plan = await self._plan(goal, folder)
        except DiskFull as error:
            return error.message
        except ModelOpsError:  # it is tried, and fails with the reason
            return ""
        size, cuda = plan.memory_mb * MB, plan.device == "cuda"
        found = self._tools.pool.preview_loan("training", 0 if cuda else size, size if cuda else 0)
        return found.sentence("training") if isinstance(found, Bill) else ""

    async def _plan(self, goal: Pursued, folder: Path) -> JobPlan:
        """What a training takes: reckoned once for each version and rank."""
        objective, last = _objective(goal), goal.last("train")
        parameters = last.action.arguments["parameters"] if last else objective.parameters
        key = (self._tools.catalog.active(objective.model_name).number, parameters.get("rank"))
        if goal.goal_id not in self._needed or self._needed[goal.goal_id][0] != key:
            files = await asyncio.to_thread(asked.kept, folder, (TRAIN, HELD_OUT, REGRESSION))
            job = await self._tools.jobs.preview(asked.training(objective.model_name, objective, parameters), files)
            self._needed[goal.goal_id] = key, job.plan or JobPlan()
        return self._needed[goal.goal_id][1]

    async def _seen(self, goal: Pursued, job_id: str) -> JobSeen:
        known = self._jobs.setdefault(goal.goal_id, {})
        if job_id in known:
            return known[job_id]
        try:
            seen = asked.seen(await self._tools.jobs.get(job_id))
        except NotFound:
            return JobSeen("failed", error=f"the learning job {job_id} is gone")
        if seen.ended:
            known[job_id] = seen
        return seen

    async def _job_ids(self, goal: Pursued) -> list[str]:
        """The jobs that were begun for the goal."""
        found = []
        for step in goal.all("baseline", "train", "confirm"):
            if step.error:  # it may have been interrupted when there was a job already
                job = await self._tools.jobs.of_key(_CALLER, _key(goal, step))
                found += [job.job_id] if job else []
            elif step.done:
                found.append(str(step.result["job_id"]))
        return found

    def _made(self, goal: Pursued, jobs: Collection[str]) -> list[Version]:
        """The versions that the goal's jobs have published."""
        return [version for version in self._versions(goal) if version.lineage.get("job_id") in jobs]

    def _versions(self, goal: Pursued) -> list[Version]:
        """All versions of the goal's model."""
        catalog, name = self._tools.catalog, _objective(goal).model_name
        return catalog.versions(name) if catalog.knows(name) else []

    def _probed(self, goal: Pursued) -> Counted:
        """What has become of the probes of the version that is watched, if any."""
        name, promote = _objective(goal).model_name, goal.last("promote", "roll_back")
        if promote and promote.done and not promote.error and promote.action.kind == "promote":
            label = str(promote.action.arguments["version"])
            if self._tools.catalog.knows(name) and self._tools.catalog.active(name).label == label:
                return self._watch.look(goal.goal_id, promote.number, name, label)
        self._watch.end(goal.goal_id)
        return Counted()

    # --- doing ---
    async def perform(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """See Doer."""
        arguments, name = step.action.arguments, _objective(goal).model_name
        match step.action.kind:
            case "baseline" | "confirm":
                return await self._judge(goal, step, folder, tell)
            case "train":
                return await self._train(goal, step, folder, tell)
            case "promote":
                return await self._promote(name, str(arguments["version"]), str(arguments["from_version"]))
            case "roll_back":
                return await self._roll_back(name, arguments)
            case "discard":
                return await self._discard(goal, list(arguments["versions"]))
            case "cancel_job":
                with contextlib.suppress(NotFound):
                    await self._tools.jobs.cancel(str(arguments["job_id"]), step.why[:500])
                return {}
        raise Conflict(f"this release knows no action '{step.action.kind}' for goals of quality")

    async def ended(self, goal: Pursued) -> None:
        """See Doer."""
        self._watch.end(goal.goal_id)
        self._jobs.pop(goal.goal_id, None)
        self._needed.pop(goal.goal_id, None)

    async def _judge(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """Judge what is served by the held-out rows."""
        objective = _objective(goal)
        rows = await asyncio.to_thread(asked.kept, folder, (HELD_OUT,))
        request = asked.evaluation(objective, goal.priority)
        return await self._begun(goal, step, request, {TRAIN: rows[HELD_OUT]}, tell)

    async def _train(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        objective = _objective(goal)
        rows = await asyncio.to_thread(asked.kept, folder, (TRAIN, HELD_OUT, REGRESSION))
        request = asked.training(objective.model_name, objective, step.action.arguments["parameters"], goal.priority)
        return await self._begun(goal, step, request, rows, tell)

    async def _begun(
        self, goal: Pursued, step: Step, request: CreateJobRequest, rows: Files, tell: Tell
    ) -> Mapping[str, Any]:
        """The job of the step, which is created once, however often this is called."""
        key = _key(goal, step)
        while True:
            creating = self._tools.jobs.create(request, caller=_CALLER, key=key, rows=rows)
            try:
                # What was created unseen would not be cancelled with the goal; its rows bound how long it takes.
                job = await self._whole(f"create {key}", creating, at_most_s=None)
            except Overloaded as error:  # too many jobs wait
                await tell("log", f"it waits: {error.message}")
                await asyncio.sleep(_RETRY_S)
            else:
                return {"job_id": job.job_id}

    async def _promote(self, name: str, label: str, before: str) -> Mapping[str, Any]:
        catalog, pool = self._tools.catalog, self._tools.pool
        loaded = pool.resident(name)
        self._refuse_other(name, label, before)
        if catalog.active(name).label != label:
            version = await asyncio.to_thread(catalog.version, name, label)
            await self._whole(f"promote {name} {label}", self._swap(version, before))
        return {"version": label, "loaded": loaded, "failures": pool.view(name).breaker.failures}

    async def _whole(self, name: str, work: Coroutine[Any, Any, T], at_most_s: float | None = _LAST_S) -> T:
        """The result of what goes on though nobody waits for it any more: whoever interrupts it waits so long, with
        None to its end, until it can be seen what has become of it."""
        doing = self._tasks.start(name, work, expected=(ModelOpsError,))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait({doing}, timeout=at_most_s)
            raise

    async def _swap(self, version: Version, before: str) -> None:
        """Let it answer instead of `before`, without a failed request; where both do not fit, that one ends first.
        Raises Conflict where another answers by then."""
        name, pool, deadline = version.model_name, self._tools.pool, asyncio.get_running_loop().time() + _SWAP_S
        with contextlib.suppress(TimeoutError):  # while it is on its way, nothing can take its place
            async with asyncio.timeout_at(deadline):
                while not pool.at_rest(name):
                    await pool.turned()
        undisputed = partial(self._refuse_other, name, version.label, before)  # somebody may choose another meanwhile
        try:
            await pool.activate(version, drain_first=False, deadline=deadline, confirm=undisputed)
        except InsufficientMemory:
            await pool.activate(version, drain_first=True, deadline=deadline, confirm=undisputed)

    def _refuse_other(self, name: str, label: str, before: str) -> None:
        active = self._tools.catalog.active(name).label
        if active not in (label, before):
            raise Conflict(f"{active} is active now, and {label} was compared with {before}")

    async def _roll_back(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Let the version before it answer again, whatever has become of the engine of the one that was promoted."""
        catalog, pool = self._tools.catalog, self._tools.pool
        label, before = str(arguments["version"]), str(arguments["from_version"])
        with contextlib.suppress(TimeoutError):  # where the promotion was interrupted, its swap goes on by itself
            async with asyncio.timeout(_SWAP_S):
                while pool.view(name).status == "loaded" and not pool.at_rest(name):
                    await pool.turned()
        active = catalog.active(name).label
        if active not in (label, before):  # somebody has chosen another
            return {"version": active}
        version = await asyncio.to_thread(catalog.version, name, before)
        loaded = bool(arguments.get("loaded")) or pool.resident(name)
        if pool.view(name).status == "loaded":
            # It may have just failed, or others have taken the room of the one before: then it ends first.
            with contextlib.suppress(Conflict, InsufficientMemory):
                await self._swap(version, label)
        if catalog.active(name).label == label:
            # By force: for those that wait it would be loaded again.
            with contextlib.suppress(Conflict):  # nothing runs any more
                await pool.unload(name, force=True, deadline=asyncio.get_running_loop().time() + _SWAP_S)
            await self._swap(version, label)
        if (active := catalog.active(name).label) != before:
            return {"version": active}
        if loaded and not pool.resident(name):
            # Without room it is undone all the same: a request loads it, when there is some.
            with contextlib.suppress(AlreadyLoaded, InsufficientMemory):
                wish = pool.wish(name) or catalog.wish(name)
                await pool.load(version, wish, asyncio.get_running_loop().time() + _SWAP_S)
        return {"version": before}

    async def _discard(self, goal: Pursued, labels: Sequence[str]) -> Mapping[str, Any]:
        """Forget versions that this goal has made; none that answers, is needed still, or is no work of its."""
        made = self._made(goal, await self._job_ids(goal))
        return {"removed": await remove(self._tools, [version for version in made if version.label in labels])}


def _objective(goal: Pursued) -> QualityObjective:
    assert isinstance(goal.objective, QualityObjective)
    return goal.objective


def _damaged(versions: Iterable[Version]) -> frozenset[str]:
    return frozenset(version.label for version in versions if version.published and not version.unchanged())


def _key(goal: Pursued, step: Step) -> str:
    """The idempotency key of the step's job."""
    return f"{goal.goal_id}-{step.number}"
