"""One goal, from a claim on: observe → decide → record → perform → record, until it has ended.

What is done next is written down before it is done. After a crash a step without an end is performed again, under its
number: whoever performs it sees to it that it is done once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from modelops.api.errors import ModelOpsError
from modelops.api.goals import GoalEventKind, GoalType
from modelops.durable import work
from modelops.durable.work import Ended, Lost
from modelops.goals import memory
from modelops.goals.decide import Way, changed_by, decide, ended_by, models_of, way
from modelops.goals.doing import Doer
from modelops.goals.folders import Folders
from modelops.goals.memory import Kept
from modelops.goals.recording import Record
from modelops.goals.turning import Changing, Claim, Turning
from modelops.goals.values import Act, Decision, End, Ending, ModelSeen, Pursued, Seen, Wait
from modelops.metrics import Metrics
from modelops.metrics.families import GOAL_ACTIONS
from modelops.store.goals import GoalQueries, GoalRow
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: How often it is looked at whether the goal is to end, whatever it does or waits for.
_LOOK_S = 1.0
#: How long at most a goal that waits for its turn looks at nothing else; it is woken when it has it.
_TURN_S = 10.0
#: However soon it is to be looked again, others have their turn on the event loop.
_LEAST_S = 0.01
#: How long a goal goes on though it cannot see what its decisions are made from.
_BLIND_S = 60.0
_FAULT = "a fault of the server; its log has the reason"


@dataclass(frozen=True)
class Works:
    """What goals are worked on with. `models` looks at models; `changed` is called with the id of a goal about which
    there is something new; `clock` is one that nobody sets, `now` is the time of day."""

    queries: GoalQueries
    doers: Mapping[GoalType, Doer]
    folders: Folders
    models: Callable[[Iterable[str]], Mapping[str, ModelSeen]]
    turning: Turning
    changing: Changing
    metrics: Metrics
    changed: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    way: Callable[[Pursued], Way] = way


class Work(work.Work):
    """The work on one goal."""

    def __init__(self, works: Works, row: GoalRow) -> None:
        super().__init__()
        self._works = works
        self._row = row
        self._record = Record(works.queries, row, works.changed, works.clock)
        self._doer = works.doers[row.goal_type]  # type: ignore[index] # only valid ones are written
        self._folder = works.folders.goal(row.id)
        self._tasks = Tasks(f"goal {row.id}")
        self._woken = asyncio.Event()
        self._used = False  # its turn, for something heavy that has ended
        self._blind_since: float | None = None  # what its decisions see could not be had
        self.cancel_reason = row.cancel_reason
        works.changing.come(claim_of(row, self.goal))
        if self._record.memory.heavy:
            works.turning.expect(row.id)

    @property
    def goal(self) -> Pursued:
        """The goal as it stands."""
        return self._record.goal

    @property
    def job_ids(self) -> tuple[str, ...]:
        """The learning jobs that were begun for it."""
        return memory.jobs_of(self.goal.steps)

    def asked_to_end(self, reason: str) -> bool:
        """It clears away what it has begun, and ends by itself."""
        self.cancel_reason = reason
        self.wake()
        return False

    def wake(self) -> None:
        """There is something new for it: it looks at once."""
        self._woken.set()

    async def run(self) -> Ended:
        """Do what is left. Raises Lost."""
        try:
            await self._begin()
            while True:
                if under_way := self._record.memory.under_way:
                    await self._perform(under_way)
                    continue
                decision = await self._decided()
                if isinstance(decision, End):
                    return Ended(decision.status, dict(decision.result), decision.why)
                if isinstance(decision, Act):
                    if decision.ending:
                        await self._record.will_end(decision.ending)
                    await self._record.begin(decision)
                else:
                    await self._wait(decision)
        finally:
            self._works.turning.gone(self._row.id)

    async def _begin(self) -> None:
        again = self._row.attempts > 1
        await self._record.tell("log" if again else "state", "it goes on where it was" if again else "active")
        digests = self._row.request["digests"]
        if altered := await asyncio.to_thread(self._works.folders.altered, self._row.id, digests):
            await self._record.will_end(Ending("failed", altered))

    # --- deciding ---
    def _look(self) -> Seen:
        """What can be seen without waiting for anything."""
        works, target = self._works, self._row.target_completion
        return Seen(
            elapsed_s=self._record.elapsed_s,
            overdue=target is not None and works.now() > target,
            cancelled=self.cancel_reason,
            ending=self._record.memory.ending,
            models=works.models(models_of(self.goal)),
        )

    def _to_end(self) -> Ending | None:
        return ended_by(self.goal, self._look())

    async def _decided(self) -> Decision:
        """What follows; a fault of ours ends the goal, and what it was at is cleared away."""
        try:
            return await self._decide()
        except (Lost, SQLAlchemyError):
            raise
        except Exception:
            if self._record.memory.ending:
                raise
            log.exception("what follows for goal %s cannot be decided", self._row.id, extra={"goal": self._row.id})
            await self._record.will_end(Ending("failed", _FAULT))
            return await self._decide()

    async def _decide(self) -> Decision:
        """What follows."""
        goal, turning = self.goal, self._works.turning
        if ending := self._to_end():
            await self._record.will_end(ending)
        try:
            facts = await self._doer.facts(goal, self._folder)
            refusal = await self._doer.refusal(goal, self._folder)
        except ModelOpsError as error:
            facts, refusal = None, error.message
            if await self._is_blind(error) and ending is None:
                return await self._decide()
        else:
            self._blind_since = None
        # From here on nothing is waited for: what is seen of other goals holds when it is decided.
        turn = turning.has(goal.goal_id) and not (self._used and turning.wanted)
        holder = self._works.changing.holder(goal.goal_id)
        taken = turning.taken(goal.goal_id)
        seen = replace(self._look(), turn=turn, taken=taken, holder=holder, facts=facts, refusal=refusal)
        if seen.ending is None and ended_by(goal, seen):
            return await self._decide()  # it is to end since: that is written first
        decision = decide(goal, seen, self._works.way(goal))
        if isinstance(decision, Wait) and decision.turn and turning.has(goal.goal_id):
            self._used = False
            if turning.hand_on(goal.goal_id, self._row.priority, self.wake):
                decision = decide(goal, replace(seen, turn=True), self._works.way(goal))
        if isinstance(decision, Act):
            self._works.changing.begin(goal.goal_id)
        elif not (isinstance(decision, Wait) and (decision.working or decision.turn)):
            self._used = False
            turning.give_back(goal.goal_id)
        return decision

    async def _is_blind(self, error: ModelOpsError) -> bool:
        """Whether too little was seen for so long that the goal is to end."""
        now = self._record.elapsed_s
        if self._blind_since is None:
            self._blind_since = now
        if now - self._blind_since < _BLIND_S:
            return False
        await self._record.will_end(Ending("failed", f"what follows could not be found out: {error.message}"))
        return True

    async def _wait(self, wait: Wait) -> None:
        """Wait as long as was decided, until there is something new, or until the goal is to end."""
        await self._record.waits(wait)
        if (wait.turn or wait.working) and self._asks(working=wait.working) and wait.turn:
            return
        until = self._works.clock() + (_TURN_S if wait.turn else max(wait.seconds, _LEAST_S))
        while (left := until - self._works.clock()) > 0:
            if await self._doze(min(left, _LOOK_S)) or (not self._record.memory.ending and self._to_end()):
                return

    def _asks(self, *, working: bool) -> bool:
        """Whether the goal has its turn; else it waits for that."""
        return self._works.turning.ask(self._row.id, self._row.priority, self.wake, working=working)

    async def _doze(self, seconds: float) -> bool:
        """Whether there is something new before the time is up."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        await self._record.goes_on()
        return woken

    # --- doing ---
    async def _perform(self, kept: Kept) -> None:
        """Do the step that was written down, and write down what came of it."""
        step, clears = kept.step, self._record.memory.clears(kept.step)
        while kept.heavy and not self._asks(working=True):  # after a crash it has to wait for its turn again
            if not clears and self._to_end():
                break
            await self._doze(_LOOK_S)
        self._used = self._used or kept.heavy
        result: Mapping[str, Any] = {}
        error, fault = "", False
        try:
            # The rest, such as a swap, would go on by itself, or be half undone: it is waited for.
            result = await self._done(kept, interrupted=kept.heavy and not clears)
        except _Interrupted as interrupted:
            error = f"interrupted: {interrupted}"
        except ModelOpsError as failed:
            error = failed.message
        except (Lost, SQLAlchemyError):
            raise
        except Exception:  # noqa: BLE001 - the task's owner has logged it; what is half done is cleared away
            error, fault = _FAULT, True
        await self._record.end(replace(step, ended_s=self._record.elapsed_s, result=dict(result), error=error))
        self._works.metrics.count(GOAL_ACTIONS, self._row.goal_type, step.action.kind)
        if fault:
            await self._record.will_end(Ending("failed", f"{step.action.kind}: {error}"))

    async def _done(self, kept: Kept, *, interrupted: bool) -> Mapping[str, Any]:
        """The step's result. It is `interrupted` as soon as the goal is to end; raises _Interrupted then."""
        if interrupted and (ending := self._to_end()):
            raise _Interrupted(ending.why)
        doing = self._doer.perform(self.goal, kept.step, self._folder, self._tell)
        acting = self._tasks.start(kept.step.action.kind, doing, expected=(ModelOpsError, Lost, SQLAlchemyError))
        acting.add_done_callback(lambda _: self.wake())
        why = ""
        try:
            while not acting.done():
                await self._doze(_LOOK_S)
                if interrupted and not acting.done() and (ending := self._to_end()):
                    why = ending.why
                    break
        finally:
            if not acting.done():
                acting.cancel()
                await asyncio.wait({acting})
        if acting.cancelled():
            raise _Interrupted(why or "what does it was stopped")
        result: Mapping[str, Any] = acting.result()
        return result

    async def _tell(self, kind: GoalEventKind, message: str, metrics: Mapping[str, Any] | None = None) -> None:
        if metrics:
            await self._record.count(metrics)
        await self._record.tell(kind, message, metrics)


class _Interrupted(Exception):
    """What was done was stopped, because the goal is to end."""


def claim_of(row: GoalRow, goal: Pursued) -> Claim:
    """The goal among those that change the same model."""
    return Claim(row.id, changed_by(goal), row.priority, row.number, begun=bool(goal.steps))
