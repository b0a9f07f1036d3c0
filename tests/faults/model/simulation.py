"""Simulated time: tasks that take turns, one at a time, in an order that a seed decides."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

__all__ = ["Signal", "SimulatedBackground", "Simulation", "Task", "Violation"]


class Violation(Exception):
    """Something that must never be."""


class Task:
    """One thread of a simulated process.

    :ivar process: the task that the process ends with; itself, when it is that one
    :ivar event: what an adapter is at work on in this task
    :ivar argv: what the process was started with; its call was made at ``began``, and judged at ``judged``
    :ivar dead: it was killed: what is left of it changes nothing any more
    """

    def __init__(self, name: str, work: Callable[[], object], process: Task | None, host: Any) -> None:
        self.name = name
        self.process = process or self
        self.host = host
        self.greenlet = greenlet(work)
        self.pid = self.wake = 0
        self.done = self.dead = False
        self.ended = Signal()
        self.event: Any = None
        self.children: list[Task] = []
        self.argv: list[str] = []
        self.began = self.judged = 0.0


class Signal:
    """Something that tasks wait for."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Task, int]] = []


class Simulation:
    """The clock, and the tasks that are due.

    :ivar now: seconds
    :ivar random: decides the order and how long things take
    :ivar trace: takes a line about each step; None to say nothing
    """

    def __init__(self, seed: str, trace: list[str] | None = None) -> None:
        self.now = 1000.0
        self.random = Random(seed)
        self.trace = trace
        self.current: Task | None = None
        self.error: BaseException | None = None
        self._due: list[tuple[float, float, int, Task, int]] = []
        self._number = 0
        self._tasks: list[Task] = []
        self._hub = getcurrent()

    def say(self, text: str) -> None:
        if self.trace is not None:
            who = self.current.name if self.current else "-"
            self.trace.append(f"{self.now - 1000:8.3f} {who:<24} {text}")

    def spawn(
        self,
        work: Callable[[], object],
        name: str,
        delay: float = 0.0,
        process: Task | None = None,
        host: Any = None,
    ) -> Task:
        """Start a task after ``delay`` seconds: a process of its own, or a thread of ``process``."""

        def run() -> None:
            try:
                work()
            except GreenletExit:
                pass
            except BaseException as error:
                self.error = self.error or error
            finally:
                task.done = True
                for child in task.children:
                    self.kill(child)
                self.notify(task.ended)

        task = Task(name, run, process, host or (process.host if process else None))
        if process:
            process.children.append(task)
        self._tasks.append(task)
        task.pid = len(self._tasks)
        self._push(self.now + delay, task)
        return task

    def kill(self, task: Task) -> None:
        """End a task where it stands, as SIGKILL does, and its threads with it."""
        if task.done or task.dead:
            return
        task.dead = True
        for child in task.children:
            self.kill(child)
        if task.greenlet:  # it has begun
            before, self.current = self.current, task
            task.greenlet.parent = getcurrent()
            task.greenlet.throw(GreenletExit)
            self.current = before
        task.done = True
        self.notify(task.ended)

    def sleep(self, seconds: float) -> None:
        self.wait(self.now + max(0.0, seconds))

    def pause(self, least: float, most: float) -> None:
        """Take a time that the seed decides."""
        self.wait(self.now + least + (most - least) * self.random.random())

    def wait(self, until: float, *signals: Signal) -> None:
        """Let others, until a time or until one of ``signals`` comes."""
        task = self.current
        assert task
        if task.dead:
            raise GreenletExit
        for signal in signals:
            signal.waiting.append((task, task.wake))
        if until != float("inf"):
            self._push(until, task)
        self._hub.switch()
        if task.dead:
            raise GreenletExit

    def notify(self, signal: Signal) -> None:
        if signal.waiting:
            for task, wake in signal.waiting:
                if task.wake == wake and not task.done:
                    self._number += 1
                    heapq.heappush(self._due, (self.now, self.random.random(), self._number, task, wake))
            signal.waiting.clear()

    def run(self, until: float) -> None:
        """Let the tasks run until a time.

        :raises Violation: one of them found one, or anything else that a task raised
        """
        self._hub = getcurrent()
        due = self._due
        while due and due[0][0] <= until:
            at, _, _, task, wake = heapq.heappop(due)
            if task.done or task.wake != wake:
                continue
            task.wake += 1
            self.now = at
            self.current = task
            task.greenlet.parent = self._hub
            task.greenlet.switch()
            self.current = None
            if self.error:
                raise self.error
        self.now = max(self.now, until)

    def end(self) -> None:
        """End all tasks."""
        for task in self._tasks:
            self.kill(task)

    def _push(self, at: float, task: Task) -> None:
        self._number += 1
        heapq.heappush(self._due, (at, self.random.random(), self._number, task, task.wake))


class SimulatedBackground:
    """`efm_lb.background.Background` on simulated time. Set `simulation` first."""

    simulation: Simulation

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        mother = self.simulation.current
        assert mother
        name = "/".join([mother.process.name, *(each.name for each in arguments if hasattr(each, "name"))])
        self._task = self.simulation.spawn(lambda: function(*arguments), name, process=mother.process)
        self._task.event = mother.event

    def wait(self, until: float = float("inf")) -> None:
        while not self._task.done and self.simulation.now < until:
            self.simulation.wait(until, self._task.ended)

    @property
    def is_running(self) -> bool:
        return not self._task.done
