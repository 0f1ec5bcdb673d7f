"""Goals as callers see them: checked when they are created, listed, watched, cancelled.

Decides nothing about how they are pursued: that is the work's, whose runner is told that there is something new.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from modelops.api.errors import Conflict, InvalidRequest, ModelOpsError, NotFound, Overloaded
from modelops.api.goals import (
    AvailabilityObjective,
    CreateGoalRequest,
    Goal,
    GoalEvent,
    GoalLimits,
    GoalStatus,
    GoalType,
    Objective,
    objective_of,
)
from modelops.durable import watching
from modelops.durable.asked import digest
from modelops.durable.bell import Bell
from modelops.goals.doing import REQUESTS, Checked, Doer
from modelops.goals.folders import Folders
from modelops.goals.telling import told
from modelops.goals.values import CANCELLED
from modelops.learning.jobs import PRIORITIES
from modelops.metrics import Metrics
from modelops.metrics.families import GOALS
from modelops.settings import Settings
from modelops.store.goals import GoalQueries, GoalRow
from modelops.tasks import Tasks

#: Rows of an objective stand in files of their own, and are not told again.
_ROWS = ("train_dataset", "eval_dataset", "regression_dataset", "text_dataset")
#: So many goals are in a list that what each has done cannot be told in full.
_STEPS_IN_A_LIST = 10


class Running(Protocol):
    """Whoever works on goals."""

    @property
    def running(self) -> int:
        """Goals that are being worked on."""

    def wake(self) -> None:
        """There is something new in the queue."""

    def look(self, goal_id: str) -> None:
        """Somebody wants the goal to end."""


@dataclass(frozen=True)
class _Asked:
    """A request that was checked."""

    request: CreateGoalRequest
    checked: Checked
    limits: GoalLimits

    @property
    def changes(self) -> str:
        """The model that the goal would change; empty: none."""
        objective = self.checked.objective
        return "" if isinstance(objective, AvailabilityObjective) else objective.model_name


class Goals:
    """All goals."""

    def __init__(
        self,
        settings: Settings,
        queries: GoalQueries,
        doers: Mapping[GoalType, Doer],
        folders: Folders,
        metrics: Metrics,
        bell: Bell,
        runner: Running,
    ) -> None:
        self._settings = settings
        self._queries = queries
        self._doers = doers
        self._folders = folders
        self._metrics = metrics
        self._bell = bell
        self._runner = runner
        self._tasks = Tasks("goals")
        self._adding = asyncio.Lock()

    @property
    def active(self) -> int:
        """Goals that are pursued now."""
        return self._runner.running

    async def close(self) -> None:
        """Finish what is being created; whoever watches is told that the time is up."""
        self._bell.close()
        await self._tasks.finish()

    async def preview(self, request: CreateGoalRequest) -> Goal:
        """How the goal would be pursued, and what that takes (`plan`); nothing is created, its id is empty. Raises as
        `create`."""
        asked = await self._checked(request)
        await self._not_contradicting(asked)
        return told(_row("", asked, "", None)).model_copy(update={"plan": asked.checked.plan})

    async def create(self, request: CreateGoalRequest, *, caller: str, key: str | None) -> Goal:
        """The goal, waiting to be pursued; or the one that this caller made before under the same idempotency key.

        Raises InvalidRequest for what is wrong with the request or a row, NotFound for a model or a file, Conflict
        where another goal is for the same already, Overloaded where too many wait.
        """
        if key is not None and (made := await self._queries.of_key(caller, key)):
            return _repeated(made, request)
        most = self._settings.goals.max_pending
        if await self._queries.count("pending") >= most:
            raise Overloaded(
                f"{most} goals wait already (goals.max_pending); cancel some, or try again when some have ended",
                retry_after_s=60.0,
            )
        asked = await self._checked(request)
        row = _row(secrets.token_hex(6), asked, caller, key)
        # Whoever asked may be gone meanwhile: rows and row belong together.
        added = await self._tasks.whole(f"create {row.id}", self._create(row, asked), expected=(ModelOpsError,))
        if added.id != row.id:
            return _repeated(added, request)
        return told(added).model_copy(update={"plan": asked.checked.plan})

    async def list(self, status: GoalStatus | str | None = None) -> list[Goal]:
        """Goals of that status, the newest first; None: those that have not ended; "all": all of them. Each has
        only its newest steps."""
        begun = status in ("pending", "active")  # one that waits to be gone on with is active to whoever asks
        rows = await self._queries.all(None if begun else status)
        goals = await asyncio.to_thread(lambda: [told(row, _STEPS_IN_A_LIST) for row in rows])
        return [goal for goal in goals if not begun or goal.status == status]

    async def trained(self) -> set[str]:
        """The models that goals which have not ended train."""
        rows = await self._queries.all(None)
        return {str(row.request["objective"]["model_name"]) for row in rows if row.goal_type == "quality"}

    async def get(self, goal_id: str) -> Goal:
        """One goal as it stands. Raises NotFound."""
        return told(await self._of(goal_id))

    async def watch(self, goal_id: str, after: int, deadline: float) -> AsyncGenerator[GoalEvent]:
        """What has happened to the goal after the event `after`, and what happens until it has ended, or the deadline,
        on the loop's clock, has passed. The last event is `done` and has the goal. Raises NotFound before the first."""
        watched = watching.watch(self._queries, self._bell, goal_id, after, deadline, self._of)
        async with contextlib.aclosing(watched) as events:
            async for event, row in events:
                last = {"done": True, "goal": told(row)} if row else {}
                yield watching.told(event, GoalEvent, **last)

    async def cancel(self, goal_id: str, reason: str) -> Goal:
        """The goal, which ends as soon as what it was at is cleared away, if it has not yet. Raises NotFound."""
        await self._of(goal_id)
        row = await self._queries.ask_cancel(goal_id, reason or CANCELLED, time.time())
        if row is None:
            raise _unknown(goal_id)
        if row.status == "cancelled" and not row.attempts:
            await asyncio.to_thread(self._folders.remove, goal_id)
        self._runner.look(goal_id)
        self._bell.ring(goal_id)
        return told(row)

    # --- helpers ---
    async def _checked(self, request: CreateGoalRequest) -> _Asked:
        objective = objective_of(request.objective)
        try:
            limits = GoalLimits.parse(request.limits)
        except InvalidRequest as error:
            raise InvalidRequest(f"limits: {error.message}") from None
        if limits.max_jobs is not None and objective.type != "quality":
            raise InvalidRequest(
                f"limits: max_jobs: a goal of the type {objective.type} trains nothing; only goals of quality have it"
            )
        if request.target_completion and request.target_completion.timestamp() <= time.time():
            raise InvalidRequest("target_completion has passed already; give a later one, or none")
        until = objective.until if isinstance(objective, AvailabilityObjective) else None
        if request.target_completion and until and request.target_completion < until:
            raise InvalidRequest(
                "target_completion is before objective.until, before which the goal is not completed; give one that is "
                "later than that, or none"
            )
        checked = await self._doers[objective.type].check(objective, limits)
        warnings = (*checked.warnings, *_hopeless(objective, limits, due=request.target_completion is not None))
        return _Asked(request, replace(checked, warnings=warnings), limits)

    async def _create(self, row: GoalRow, asked: _Asked) -> GoalRow:
        new = False
        try:
            await asyncio.to_thread(self._folders.write, row.id, asked.checked.files)
            async with self._adding:  # of two that contradict each other, one is the first
                known = row.idempotency_key and await self._queries.of_key(row.caller, row.idempotency_key)
                if not known:
                    await self._not_contradicting(asked)
                added, new = await self._queries.add(row)
        finally:
            if not new:
                await asyncio.to_thread(self._folders.remove, row.id)
        if new:
            self._metrics.count(GOALS)
            for warning in asked.checked.warnings:
                await self._queries.tell(row.id, time.time(), "warning", message=warning)
            self._runner.wake()
        return added

    async def _not_contradicting(self, asked: _Asked) -> None:
        """Raises Conflict where a goal that has not ended wants the same of the same model, in its own way."""
        if not asked.changes:
            return
        kind = asked.checked.objective.type
        for row in reversed(await self._queries.all(None)):
            if row.goal_type == kind and row.request["objective"]["model_name"] == asked.changes:
                raise Conflict(
                    f"the goal {row.id} ('{row.title}') is for the {kind} of '{asked.changes}' already; cancel it, or "
                    "wait until it has ended",
                    details={"goal_id": row.id},
                )

    async def _of(self, goal_id: str) -> GoalRow:
        row = await self._queries.get(goal_id)
        if row is None:
            raise _unknown(goal_id)
        return row


def _hopeless(objective: Objective, limits: GoalLimits, *, due: bool) -> Iterator[str]:
    """Warnings of what a goal with these limits, and a date by which it is `due` or not, will not come to."""
    most = limits.max_seconds
    if isinstance(objective, AvailabilityObjective):
        if objective.until is None and (due or most is not None):
            ends = "target_completion" if due else "limits.max_seconds"
            yield f"without objective.until it is never completed: at {ends} it will have failed, however well it went"
    elif most is not None and most <= objective.watch_seconds:
        yield (
            f"limits.max_seconds ({most:g}) leave no time for the {objective.watch_seconds:g} s for which a change is "
            "watched (objective.watch_seconds): whatever is changed will be taken back"
        )


def _row(goal_id: str, asked: _Asked, caller: str, key: str | None) -> GoalRow:
    request, checked = asked.request, asked.checked
    return GoalRow(
        goal_id,
        created_at=time.time(),
        title=request.title,
        goal_type=checked.objective.type,
        priority=PRIORITIES[request.priority],
        caller=caller,
        idempotency_key=key,
        target_completion=request.target_completion.timestamp() if request.target_completion else None,
        request={
            "description": request.description,
            "objective": checked.objective.model_dump(mode="json", exclude={*_ROWS}),
            "limits": asked.limits.model_dump(mode="json", exclude_none=True),
            "metadata": request.metadata,
            "warnings": list(checked.warnings),
            "digests": {name: rows.digest for name, rows in checked.files.items()},
            "requests": len(checked.files[REQUESTS].rows) if REQUESTS in checked.files else 0,
            "asked": digest(request),
        },
    )


def _repeated(row: GoalRow, request: CreateGoalRequest) -> Goal:
    """The goal that was created under the same key. Raises Conflict where something else was asked for."""
    if row.request.get("asked") != digest(request):
        raise Conflict("another goal was created under this idempotency key; give each goal a key of its own")
    return told(row)


def _unknown(goal_id: str) -> NotFound:
    return NotFound(f"there is no goal '{goal_id[:64]}'; the listing of goals tells those that there are")
