"""Many goals on one machine, in virtual time: what `decide` says is done in a world that is made up, from a seed.

The coordinator here does what the real one does, without waiting: it looks, decides, records a step as begun, does it,
and records its end; a heavy step is interrupted when its goal is to end; heavy work is done by whose turn it is. It may
be killed between any two of these: then the rows, and the world, are as they were, and all else is gone. Whatever must
never happen is looked for as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol

from modelops.api.goals import GoalLimits, Objective
from modelops.goals import decide as deciding
from modelops.goals import turns
from modelops.goals.decide import changed_by, decide, ended_by, models_of
from modelops.goals.memory import Kept, Memory
from modelops.goals.turning import Changing, Claim, Turning
from modelops.goals.values import Act, Action, Decision, End, ModelSeen, Pursued, Seen, Step, Wait

#: Nothing that is pursued here takes so long.
FOREVER = 40 * 86_400.0
#: Clearing away takes no longer, with all that is tried again.
CLEARING_S = 300.0
#: The least that is waited; the real coordinator looks more often.
_LOOK_S = 5.0


class Killed(Exception):
    """The coordinator was killed."""


class Refused(Exception):
    """An action could not be done."""


@dataclass
class Model:
    """A model of the made-up machine, as anybody sees it."""

    name: str
    active: str = "v1"
    registered: bool = True
    status: str = "loaded"
    message: str = ""
    failures: int = 0
    memory_mb: int = 100

    def seen(self) -> ModelSeen:
        if not self.registered:
            return ModelSeen(self.name, registered=False)
        serving = self.active if self.status == "loaded" else ""
        return ModelSeen(
            self.name, True, self.active, self.status, serving, self.message, self.failures, self.memory_mb
        )


class World(Protocol):
    """What goals of one type do, and see. What is begun twice under one key is done once."""

    def facts(self, goal: Pursued, now: float) -> Any:
        """What is seen, and nothing changed."""

    def refusal(self, goal: Pursued, now: float) -> str:
        """Why what the goal would take next does not fit now."""

    def begin(self, goal: Pursued, step: Step, now: float) -> float:
        """Begin the step, of which some is done at once, and say how long it takes."""

    def result(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        """Do the rest of it; what came of it. Raises Refused."""

    def heavy(self, now: float) -> Sequence[str]:
        """The goals for which something heavy is under way, beside the steps themselves."""

    def left(self, goal: Pursued, end: End, now: float) -> Sequence[str]:
        """What it has left behind, and should not have, now that it has ended."""


@dataclass
class Row:
    """What the coordinator has written of a goal."""

    goal: Pursued
    age: int
    kind: str
    target_s: float | None = None  # of the wall clock
    cancel_s: float | None = None  # when somebody cancels it
    arrives_s: float = 0.0
    memory: Memory = field(default_factory=Memory)
    elapsed_s: float = 0.0
    end: End | None = None
    ended_s: float = 0.0
    first_cancelled: bool = False  # it was cancelled before anything else ended it
    passed: int = 0  # most that it was passed over in one wait for its turn


@dataclass
class Working:
    """What is known of a goal that is worked on, and gone when the coordinator is killed."""

    due: float
    doing: float | None = None  # until when the step that was begun is done
    used: bool = False  # its turn, for something heavy that has ended
    noted: float = 0.0  # when its time was noted last


class Simulation:
    """The machine, its models, the rows of the goals, and who works on them."""

    def __init__(self, seed: int, worlds: Mapping[str, World], models: Mapping[str, Model], kills: float = 0.0) -> None:
        self.random = Random(seed)
        self.worlds, self.models, self.kills = worlds, models, kills
        self.rows: dict[str, Row] = {}
        self.now = 0.0
        self.killed = self.decided = 0
        self.performed: dict[tuple[str, int], Action] = {}
        self.happens: list[tuple[float, Callable[[], None]]] = []  # what others do, and when
        self.begun: Callable[[Row, Step], None] = lambda row, step: None  # is told of each step that is begun
        self.way: Callable[[Pursued], deciding.Way] = deciding.way
        self._start()

    def add(self, kind: str, objective: Objective, **known: Any) -> Row:
        """A goal, to be pursued."""
        limits, priority = known.pop("limits", GoalLimits()), known.pop("priority", 1)
        number = len(self.rows)
        row = Row(Pursued(f"g{number:03}", objective, limits, priority), number, kind, **known)
        self.rows[row.goal.goal_id] = row
        return row

    @property
    def open(self) -> list[Row]:
        return [row for row in self.rows.values() if row.end is None]

    def run(self, until: float = FOREVER) -> None:
        """Until all have ended."""
        self.happens.sort(key=lambda each: each[0])
        while self.open:
            for row in self.open:
                if row.goal.goal_id not in self.working and row.arrives_s <= self.now:
                    self._claim(row)
            due = min((work.due, goal_id) for goal_id, work in self.working.items()) if self.working else None
            comes = min((row.arrives_s for row in self.open if row.goal.goal_id not in self.working), default=None)
            if due is None or (comes is not None and comes < due[0]):
                assert comes is not None
                self.now = max(self.now, comes)
                continue
            if self.happens and self.happens[0][0] <= due[0]:
                at, what = self.happens.pop(0)
                self.now = max(self.now, at)
                what()
                continue
            self.now = max(self.now, due[0])
            assert self.now < until, f"not ended: {[row.goal.goal_id for row in self.open]}"
            try:
                self._go_on(self.rows[due[1]])
            except Killed:
                self.killed += 1
                self.now += self.random.uniform(0, 30)
                self._start()

    def _start(self) -> None:
        """A coordinator that knows nothing but the rows."""
        self.working: dict[str, Working] = {}
        self.turning, self.changing = Turning(), Changing()
        self.waiting: tuple[turns.Waiting, ...] = ()  # as they should be
        self.places: dict[str, turns.Waiting] = {}  # of those that have come before, and have not worked since
        self.came = 0

    def _claim(self, row: Row) -> None:
        goal = row.goal
        self.working[goal.goal_id] = Working(self.now, noted=self.now)
        self.changing.come(Claim(goal.goal_id, changed_by(goal), goal.priority, row.age, begun=bool(goal.steps)))
        if any(kept.heavy for kept in row.memory.kept):
            self.turning.expect(goal.goal_id)

    # --- one goal, one thing ---
    def _go_on(self, row: Row) -> None:
        """What the coordinator does for this goal at this moment."""
        work, under_way = self.working[row.goal.goal_id], row.memory.under_way
        self._note(row, work)
        if under_way is not None:
            return self._perform(row, work, under_way)
        decision = self._decide(row, work)
        self._may_be_killed()
        if isinstance(decision, Act):
            self._check_act(row, decision)
            if decision.ending:
                row.memory = row.memory.ending_with(decision.ending)
                self._may_be_killed()
            number = row.memory.next_number
            step = Step(number, decision.action, decision.why, row.elapsed_s)
            kept = Kept(step, self.now, heavy=decision.heavy)
            self._write(row, replace(row.memory, kept=(*row.memory.kept, kept)))
            work.due = self.now
            return self._may_be_killed()
        if isinstance(decision, End):
            return self._end(row, decision)
        return self._wait(row, work, decision)

    def _decide(self, row: Row, work: Working) -> Decision:
        goal_id = row.goal.goal_id
        if ending := self._to_end(row):
            if row.memory.ending is None:
                row.first_cancelled = ending.status == "cancelled"
            row.memory = row.memory.ending_with(ending)
            self._may_be_killed()
        world = self.worlds[row.kind]
        seen = replace(
            self._look(row),
            turn=self.turning.has(goal_id) and not (work.used and self.turning.wanted),
            taken=self.turning.taken(goal_id),
            holder=self.changing.holder(goal_id),
            facts=world.facts(row.goal, self.now),
            refusal=world.refusal(row.goal, self.now),
        )
        decision = decide(row.goal, seen, self.way(row.goal))
        self.decided += 1
        if self.decided % 20 == 0:
            assert decision == decide(row.goal, seen, self.way(row.goal)), f"{goal_id}: decided twice, it is another"
        if isinstance(decision, Wait) and decision.turn and self.turning.has(goal_id):
            work.used = False
            if self._hands_on(row):
                decision = decide(row.goal, replace(seen, turn=True), self.way(row.goal))
        if isinstance(decision, Act):
            self.changing.begin(goal_id)
        elif not (isinstance(decision, Wait) and (decision.working or decision.turn)):
            work.used = False
            self._give_back(goal_id)
        return decision

    def _wait(self, row: Row, work: Working, wait: Wait) -> None:
        asked = (wait.turn or wait.working) and self._asks(row, working=wait.working)
        work.due = (
            self.now if asked and wait.turn else self._until(row, 600.0 if wait.turn else max(wait.seconds, _LOOK_S))
        )

    def _perform(self, row: Row, work: Working, kept: Kept) -> None:
        step, clears = kept.step, row.memory.clears(kept.step)
        ending = self._to_end(row) if kept.heavy and not clears else None
        if work.doing is None:
            if kept.heavy and not self._asks(row, working=True) and not ending:
                work.due = self._until(row, 600.0)
                return None
            work.used = work.used or kept.heavy
            if ending:
                return self._finish(row, work, replace(step, error=f"interrupted: {ending.why}"))
            self._check_done_once(row, step)
            work.doing = self.now + self.worlds[row.kind].begin(row.goal, step, self.now)
            self.begun(row, step)
            work.due = self._until(row, work.doing - self.now)
            return self._may_be_killed()
        if self.now < work.doing:
            if not ending:
                work.due = self._until(row, work.doing - self.now)
                return None
            return self._finish(row, work, replace(step, error=f"interrupted: {ending.why}"))
        try:
            ended = replace(step, result=dict(self.worlds[row.kind].result(row.goal, step, self.now)))
        except Refused as refused:
            ended = replace(step, error=str(refused))
        self._may_be_killed()
        return self._finish(row, work, ended)

    def _finish(self, row: Row, work: Working, step: Step) -> None:
        self._write(row, row.memory.ended(replace(step, ended_s=row.elapsed_s), self.now))
        work.doing, work.due = None, self.now
        self._may_be_killed()

    def _end(self, row: Row, end: End) -> None:
        goal_id = row.goal.goal_id
        row.end, row.ended_s = end, self.now
        self._give_back(goal_id)
        self.places.pop(goal_id, None)
        self.turning.gone(goal_id)
        self.changing.gone(goal_id)
        del self.working[goal_id]
        if row.first_cancelled:
            assert end.status == "cancelled", f"{goal_id} was cancelled, and is {end.status}"
        most = row.goal.limits.max_seconds
        assert most is None or row.elapsed_s <= most + CLEARING_S, f"{goal_id} took {row.elapsed_s} s of {most}"
        left = self.worlds[row.kind].left(row.goal, end, self.now)
        assert not left, f"{goal_id} has ended ({end.status}: {end.why}), and left: {', '.join(left)}"

    def _write(self, row: Row, memory: Memory) -> None:
        row.memory, row.goal = memory, replace(row.goal, steps=memory.steps)

    # --- what is seen ---
    def _look(self, row: Row) -> Seen:
        return Seen(
            elapsed_s=row.elapsed_s,
            overdue=row.target_s is not None and self.now > row.target_s,
            cancelled="not needed" if row.cancel_s is not None and self.now >= row.cancel_s else None,
            ending=row.memory.ending,
            models={name: self.models[name].seen() for name in models_of(row.goal)},
        )

    def _to_end(self, row: Row) -> Any:
        return ended_by(row.goal, self._look(row))

    def _until(self, row: Row, seconds: float) -> float:
        """When it is to go on; at once when it is to end, as a look each second sees it."""
        if row.memory.ending:
            return self.now + seconds
        ends = [at for at in (row.cancel_s, row.target_s) if at is not None]
        if row.goal.limits.max_seconds is not None:
            ends.append(self.now + row.goal.limits.max_seconds - row.elapsed_s)
        return min([self.now + seconds, *(max(at, self.now) + 0.1 for at in ends)])

    def _note(self, row: Row, work: Working) -> None:
        """What has passed since it was noted last; a crash costs what was not."""
        row.elapsed_s += self.now - work.noted
        work.noted = self.now

    # --- turns ---
    def _hands_on(self, row: Row) -> bool:
        """It has worked, and is to work again: whether it goes first all the same."""
        self._comes(row)
        return self.turning.hand_on(row.goal.goal_id, row.goal.priority, lambda: self._its_turn(row.goal.goal_id))

    def _comes(self, row: Row) -> None:
        goal_id = row.goal.goal_id
        self.came += 1
        place = self.places.pop(goal_id, turns.Waiting(goal_id, row.goal.priority, self.came))
        self.waiting = (*self.waiting, place)

    def _asks(self, row: Row, *, working: bool = False) -> bool:
        goal_id = row.goal.goal_id
        if not working and not self.turning.has(goal_id) and all(each.goal_id != goal_id for each in self.waiting):
            self._comes(row)
        has = self.turning.ask(goal_id, row.goal.priority, lambda: self._its_turn(goal_id), working=working)
        if has and working and (place := self.places.pop(goal_id, None)):
            self.waiting = turns.given(self.waiting, place)
            for each in self.waiting:
                self.rows[each.goal_id].passed = max(self.rows[each.goal_id].passed, each.passed)
        return has

    def _its_turn(self, goal_id: str) -> None:
        """It has the turn: it is who should have it, and nobody else does what is heavy."""
        chosen = turns.first(self.waiting)
        assert chosen is not None and chosen.goal_id == goal_id, f"it was the turn of {chosen}, and {goal_id} has it"
        busy = {one for world in self.worlds.values() for one in world.heavy(self.now)} - {goal_id}
        assert not busy, f"it is the turn of {goal_id}, and heavy work is under way for {busy}"
        self._leave(goal_id)
        self.working[goal_id].due = self.now

    def _give_back(self, goal_id: str) -> None:
        self._leave(goal_id)
        self.turning.give_back(goal_id)

    def _leave(self, goal_id: str) -> None:
        self.places.update({each.goal_id: each for each in self.waiting if each.goal_id == goal_id})
        self.waiting = tuple(each for each in self.waiting if each.goal_id != goal_id)

    # --- what must not be ---
    def _may_be_killed(self) -> None:
        if self.random.random() < self.kills:
            raise Killed

    def _check_done_once(self, row: Row, step: Step) -> None:
        key = row.goal.goal_id, step.number
        before = self.performed.setdefault(key, step.action)
        assert before == step.action, f"{key}: {before.kind} was done, and now {step.action.kind}"

    def _check_act(self, row: Row, act: Act) -> None:
        goal_id, model = row.goal.goal_id, changed_by(row.goal)
        others = [each for each in self.open if each is not row and model and changed_by(each.goal) == model]
        begun = [each.goal.goal_id for each in others if each.goal.steps]
        assert not begun, f"{goal_id} changes {model}, which {begun} had begun to change"
        if act.heavy:
            assert self.turning.has(goal_id), f"{goal_id} does what is heavy, and it is not its turn"
            refusal = self.worlds[row.kind].refusal(row.goal, self.now)
            assert not refusal, f"{goal_id} begins what does not fit: {act.action.kind}: {refusal}"
