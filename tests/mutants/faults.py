"""Faults that somebody could make one day; each must be caught by tests/core or tests/services."""

from __future__ import annotations

from attrs import frozen


@frozen
class Fault:
    """One seeded fault.

    Attributes:
        file: below `gpugate/`.
        old: text that stands there exactly once.
        new: what it becomes.
        why: what would go wrong in the world.
    """

    file: str
    old: str
    new: str
    why: str


BACKLOG = "core/request_queue.py"
ENGINE = "core/engine.py"
IDLE = "core/idle_policy.py"
LOOKS = "core/inspect_schedule.py"
PAUSES = "core/idle_timer.py"
POLICY = "core/policy.py"
PURSE = "core/budget_gate.py"
SERVING = "core/serving.py"
STARTING = "core/starting.py"
WARMING = "core/warming.py"
STOPS = "core/pending_stops.py"
MACHINE = "core/machine.py"
LIFECYCLE = "lifecycle/lifecycle.py"
COMMANDS = "lifecycle/provider_worker.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        BACKLOG,
        "        if ticket.drained:\n            self.draining -= 1\n",
        "        if ticket.drained and not ticket.returned:\n            self.draining -= 1\n",
        "a request that lost its pod keeps its drain slot for ever",
    ),
    Fault(
        BACKLOG,
        "        insort(self.waiting, ticket)",
        "        self.waiting.append(ticket)",
        "who lost the pod goes back to the end of the queue",
    ),
    Fault(
        BACKLOG,
        "        ticket.deadline = now + self.max_wait_s\n",
        "",
        "who lost the pod has used up its wait",
    ),
    Fault(
        BACKLOG,
        "            if not self.leases:\n                self.quiet_since = self.",
        "            if True:\n                self.quiet_since = self.",
        "the idle clock runs while an answer is still on its way",
    ),
    Fault(
        BACKLOG,
        "        return len(self.waiting) >= self.max_waiting",
        "        return len(self.waiting) > self.max_waiting",
        "one more waits than was allowed",
    ),
    Fault(
        BACKLOG,
        "        ticket = self.waiting.pop(0)",
        "        ticket = self.waiting.pop()",
        "the last in the queue is served first",
    ),
    Fault(
        BACKLOG,
        "if not self.waiting or self.draining >= self.drain_concurrency:",
        "if not self.waiting:",
        "the whole queue falls upon a pod that has just come up",
    ),
    Fault(
        ENGINE,
        "            elif self.closing:\n",
        "            elif False:\n",
        "a gateway that goes down queues requests again",
    ),
    Fault(
        ENGINE,
        "            elif ticket.returned:\n",
        "            elif False:\n",
        "a request that kills its pod kills one pod after the other",
    ),
    Fault(
        ENGINE,
        "        for ticket in self.backlog.expired(now):",
        "        for ticket in []:",
        "nobody is ever told that it waited too long",
    ),
    Fault(
        ENGINE,
        "        if planned and (order := self.stops.orders.get(provider)) is not None:",
        "        if (order := self.stops.orders.get(provider)) is not None:",
        "an old look proves a stop",
    ),
    Fault(
        ENGINE,
        "            self.looks.follow_up(provider, now + pause)",
        "            self.looks.schedule(provider, now + pause)",
        "a look that was asked for while another was out is forgotten",
    ),
    Fault(
        ENGINE,
        "        if provider in self.sessions:  #",
        "        if False:  #",
        "one billed stretch becomes two rows",
    ),
    Fault(
        ENGINE,
        "        if not isinstance(error, RateLimited) or error.retry_after is None:",
        "        if not isinstance(error, RateLimited) or error.retry_after is None or True:",
        "a provider that wants to be left alone is asked every 0.1 s",
    ),
    Fault(
        ENGINE,
        "            case StartAccepted() if event.op != ",
        "            case StartAccepted() if event.op == -1 != ",
        "a pod that came up after a stop by hand is billed and not in the ledger",
    ),
    Fault(
        ENGINE,
        "        if kind is not Left or type(self.state) is not Ready or self._urgent:",
        "        if kind is TimePassed or type(self.state) is not Ready:",
        "held requests wait for the next alarm when a lease ends",
    ),
    Fault(
        LOOKS,
        "min(inf if slot.op is not None else slot.due for slot in self.slots)",
        "min(slot.due for slot in self.slots)",
        "the alarm goes off without end while a look is out",
    ),
    Fault(
        LOOKS,
        "if slot.due <= now and slot.op is None]",
        "if slot.due <= now]",
        "two looks are out at once",
    ),
    Fault(
        POLICY,
        "min(self.stop_retry_s * 2 ** min(sent - 1, 30), self.longest_stop_retry_s)",
        "self.stop_retry_s * 2 ** min(sent - 1, 30)",
        "a stop is sent again after days",
    ),
    Fault(
        POLICY,
        "        return max(min(eager, self.health_interval_s), self.providers[provider].min_probe_s)",
        "        return max(eager, self.providers[provider].min_probe_s)",
        "health is asked ever more slowly",
    ),
    Fault(
        SERVING,
        "        if self.backlog.busy and not event.force:",
        "        if self.backlog.leases and not event.force:",
        "a stop by hand throws out who waits",
    ),
    Fault(
        WARMING,
        "        if not self.backlog.leases:\n            return self._stop(was.provider, cause, now)",
        "        if True:\n            return self._stop(was.provider, cause, now)",
        "the session's limit stops the pod under running answers",
    ),
    Fault(
        SERVING,
        "        return was if self.closing or not self._demanded else self._begin(now)",
        "        return was",
        "a request that comes while a stop fails waits for ever",
    ),
    Fault(
        SERVING,
        "            served=True,\n",
        "",
        "a pod lost under requests counts as a start that failed",
    ),
    Fault(
        SERVING,
        "        if event.op != was.doubt:\n            return was\n",
        "",
        "an old health check throws a good pod back to warming",
    ),
    Fault(
        ENGINE,
        "        return event.report.phase in ON_ITS_WAY\n",
        "        return False\n",
        "a second pod runs and is paid beside the one that serves",
    ),
    Fault(
        SERVING,
        '                self._order_stop(provider, "shutdown", now, firm=False)',
        "                pass",
        "the gateway goes down and leaves a pod that it had not looked at",
    ),
    Fault(
        STARTING,
        "        if self.closing:\n            return self._leave_found(was, event, now)\n",
        "",
        "a gateway that goes down adopts a pod and never ends",
    ),
    Fault(
        STARTING,
        "            if provider in alive[1:] or",
        "            if",
        "found at two providers, both run on",
    ),
    Fault(
        STARTING,
        "        if not self._demanded:\n            return self._abandon(was, now)\n"
        "        if not was.unsure:",
        "        if not was.unsure:",
        "pods are started for clients that hung up",
    ),
    Fault(
        STARTING,
        "            unsure=True,\n",
        "            unsure=False,\n",
        "a start whose answer was lost is asked again unseen",
    ),
    Fault(
        STARTING,
        "            attempt=was.attempt + 1,\n",
        "            attempt=was.attempt,\n",
        "attempts never end",
    ),
    Fault(
        STARTING,
        "        return attempt == 1 and provider not in self.sessions and provider not in self.stops.doubts",
        "        return attempt == 1 and provider not in self.sessions",
        "a stop that was never proved is forgotten when a later start is refused",
    ),
    Fault(
        STARTING,
        "firm=queued or not (clean and refused))",
        "firm=not (clean and refused))",
        "a start that is queued at the provider fires when everybody has gone",
    ),
    Fault(
        WARMING,
        "        if now >= was.began_at + self.policy.warmup_timeout_s:",
        "        if now > was.began_at + self.policy.warmup_timeout_s + 60:",
        "a pod that never becomes healthy is paid for longer",
    ),
    Fault(
        WARMING,
        "            return evolve(was, accepted_at=now)  #",
        "            return was  #",
        "a queued start is given up although its wait is not over",
    ),
    Fault(
        WARMING,
        "        if not was.served and self._may_move_on(was):",
        "        if self._may_move_on(was):",
        "answers are cut because a pod that fell ill came back on its CPU",
    ),
    Fault(
        WARMING,
        "        return self._demanded and self._next_free(was.provider + 1) is not None",
        "        return self._next_free(was.provider + 1) is not None",
        "a slow pod is stopped and another one started for nobody",
    ),
    Fault(
        WARMING,
        "        return self._demanded and self._next_free(was.provider + 1) is not None",
        "        return self._demanded",
        "a pod without a GPU is left although there is no other provider",
    ),
    Fault(
        STARTING,
        "        return self._start_from(was.provider + 1, now)",
        "        return self._give_up(now)",
        "no failover",
    ),
    Fault(
        WARMING,
        "        if not self.backlog.leases:\n            self.backlog.quiet_since = now\n",
        "",
        "an adopted pod that nobody uses never stops",
    ),
    Fault(
        WARMING,
        "        if event.op != was.probe:\n            return was\n",
        "",
        "an old health check makes a sick pod ready",
    ),
    Fault(
        WARMING,
        "            self._open_session(was.provider, was.run, self.start_cause, report, up_s, now)\n"
        "        if",
        "            pass\n        if",
        "a start that was queued is billed and not in the ledger",
    ),
    Fault(
        STOPS,
        "                order.send_at = now + self._pause_s(order, error)\n",
        "                order.send_at = order.since + self._pause_s(order, error)\n",
        "a provider that answers slowly is told to stop over and over, and never looked at",
    ),
    Fault(
        STOPS,
        "            settled = isinstance(seen, NotFound) or not (order.firm or later)",
        "            settled = True",
        "a look that failed counts as proof",
    ),
    Fault(
        STOPS,
        "            order.firm = order.firm or seen.phase not in PROOF\n",
        "",
        "a pod that was seen running after a refusal is left alone when looks fail",
    ),
    Fault(
        STARTING,
        "return order is not None and order.sent >= 2 and",
        "return order is not None and order.sent >= 1 and",
        "a provider that stops well is passed over for a dearer one",
    ),
    Fault(
        MACHINE,
        "            case Warming(began_at=began):\n"
        "                return min(began + self.policy.warmup_timeout_s, self.session_ends)\n",
        "",
        "a health check that never answers holds the warm-up for ever",
    ),
    Fault(
        ENGINE,
        "        if self.purse.judged.spent:\n            return False\n",
        "",
        "a wish by hand is tried again and again although the budget is spent",
    ),
    Fault(
        ENGINE,
        "        elif isinstance(self.state, COLD) and not self._demanded:\n",
        "        elif isinstance(self.state, Stopped) and not self._demanded:\n",
        "who waits for a start that there will not be is left waiting",
    ),
    Fault(
        ENGINE,
        "        self.start_wanted = False\n        for ticket",
        "        for ticket",
        "a start that was wished for begins by itself when the month turns",
    ),
    Fault(
        STARTING,
        "        if not self._demanded:\n            return was\n        self._pass_at",
        "        self._pass_at",
        "an arrival starts the pod although the budget is spent",
    ),
    Fault(
        STARTING,
        "        if not self.pauses.take_window(now) or self.purse.judged.spent:",
        "        if not self.pauses.take_window(now):",
        "a pod is warmed ahead although the budget is spent",
    ),
    Fault(
        WARMING,
        "        if began < was.since:\n            return self._stop(",
        "        if True:\n            return self._stop(",
        "a session's limit shorter than a start: starts without end, each paid for",
    ),
    Fault(
        PURSE,
        "        return any(ticket.user not in self.judged.overdrawn for ticket in tickets)\n",
        "        return any(True for _ in tickets)\n",
        "a user whose share is spent has pods started again",
    ),
    Fault(
        SERVING,
        "        self._effects.append(Reply(None if self._demanded else refusal))\n",
        "        self._effects.append(Reply(refusal))\n",
        "a start by hand is refused although the pod is on its way",
    ),
    Fault(
        PAUSES,
        "            return quiet_since + self.idle.keep_s\n",
        "            return quiet_since + self.idle_timeout_s\n",
        "what the idle policy says is never done",
    ),
    Fault(
        PAUSES,
        "        return window is not None and now < since + window.closes_s",
        "        return window is not None",
        "a pod is warmed for somebody who was expected hours ago",
    ),
    Fault(
        PAUSES,
        "            return min(wanted + window.closes_s, quiet_since + self.idle_timeout_s)\n",
        "            return quiet_since + self.idle_timeout_s\n",
        "a pod that was warmed in vain is kept as if somebody had used it",
    ),
    Fault(
        SERVING,
        "        self.pauses.unasked_run = 0  # it is asked for now\n",
        "",
        "a pod that was started by hand is stopped under the eyes of who waits for it",
    ),
    Fault(
        SERVING,
        "        self.pauses.expect_nobody()\n",
        "",
        "a pod that was stopped by hand comes back by itself",
    ),
    Fault(
        IDLE,
        "len(self._pauses) >= FEW_PAUSES and self._credit_s > 0 else",
        "len(self._pauses) >= FEW_PAUSES else",
        "habits that mislead are believed for ever, at any price",
    ),
    Fault(
        IDLE,
        "if cost < least and sums.served(window) >= A_HABIT:",
        "if cost < least:",
        "a pod is warmed ahead because of one coincidence",
    ),
    Fault(
        "lifecycle/diagnosis.py",
        "        self._looked = self._looked or looked\n",
        "        self._looked = True\n",
        "a broken request is judged before anybody looked",
    ),
    Fault(
        "lifecycle/chronicle.py",
        "            except Exception as error:\n",
        "            except TypeError as error:\n",
        "a listener's bug ends the pod's life",
    ),
    Fault(
        COMMANDS,
        '            return Ambiguous("the plugin cancelled its own call")\n',
        "            raise\n",
        "a plugin that cancels itself ends the lifecycle, and nobody hears of it",
    ),
    Fault(
        COMMANDS,
        "        except Exception as error:  # a plugin's bug must not end the lifecycle",
        "        except OSError as error:  # a plugin's bug must not end the lifecycle",
        "a plugin's bug ends the lifecycle",
    ),
    Fault(
        COMMANDS,
        "            async with limit:\n                report = await method()",
        "            if True:\n                report = await method()",
        "a plugin that hangs holds everything for ever",
    ),
    Fault(
        SERVING,
        '        self._check_rest("hand", now)\n',
        "",
        "a stop by hand believes that nothing runs, while a console start bills",
    ),
    Fault(
        SERVING,
        "            self._look_around(None, now)\n",
        "            pass\n",
        "a clean exit leaves a console start that no look has shown",
    ),
    Fault(
        STOPS,
        "            if order.is_check:\n                order.send_at = -inf\n",
        "",
        "what the last look finds is never told to stop",
    ),
)
