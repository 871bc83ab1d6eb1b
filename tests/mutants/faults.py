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
        "        if ticket.holds_admit_slot:\n            self.admit_slots_used -= 1\n",
        (
            "        if ticket.holds_admit_slot and not ticket.requeued:\n            self."
            "admit_slots_used -= 1\n"
        ),
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
        "            if not self.leases:\n                self.idle_since = self.",
        "            if True:\n                self.idle_since = self.",
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
        "if not self.waiting or self.admit_slots_used >= self.drain_concurrency:",
        "if not self.waiting:",
        "the whole queue falls upon a pod that has just come up",
    ),
    Fault(
        ENGINE,
        "            elif self.shutting_down:\n",
        "            elif False:\n",
        "a gateway that goes down queues requests again",
    ),
    Fault(
        ENGINE,
        "            elif ticket.requeued:\n",
        "            elif False:\n",
        "a request that kills its pod kills one pod after the other",
    ),
    Fault(
        ENGINE,
        "        for ticket in self.queue.expired(now):",
        "        for ticket in []:",
        "nobody is ever told that it waited too long",
    ),
    Fault(
        ENGINE,
        "        if planned and (order := self.pending_stops.by_provider.get(provider)) is not None:",
        "        if (order := self.pending_stops.by_provider.get(provider)) is not None:",
        "an old look proves a stop",
    ),
    Fault(
        ENGINE,
        "            self.inspect_schedule.schedule_no_later_than(provider, now + pause)",
        "            self.inspect_schedule.schedule(provider, now + pause)",
        "a look that was asked for while another was out is forgotten",
    ),
    Fault(
        ENGINE,
        "        if provider in self.open_sessions:  #",
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
        "        if kind is not RequestFinished or type(self.state) is not Ready or self.has_due_work:",
        "        if kind is DeadlineReached or type(self.state) is not Ready:",
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
        "min(self.stop_retry * 2 ** min(sent - 1, 30), self.max_stop_retry_s)",
        "self.stop_retry * 2 ** min(sent - 1, 30)",
        "a stop is sent again after days",
    ),
    Fault(
        POLICY,
        "        return max(min(eager, self.health_interval), self.providers[provider].min_probe_s)",
        "        return max(eager, self.providers[provider].min_probe_s)",
        "health is asked ever more slowly",
    ),
    Fault(
        SERVING,
        "        if self.queue.busy and not event.force:",
        "        if self.queue.leases and not event.force:",
        "a stop by hand throws out who waits",
    ),
    Fault(
        WARMING,
        "        if not self.queue.leases:\n            return self.stop_pod(was.provider, cause, now)",
        "        if True:\n            return self.stop_pod(was.provider, cause, now)",
        "the session's limit stops the pod under running answers",
    ),
    Fault(
        SERVING,
        (
            "        return was if self.shutting_down or not self.has_payable_demand else self."
            "begin_start("
            "now)"
        ),
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
        "        if event.op != was.probe_op:\n            return was\n",
        "",
        "an old health check throws a good pod back to warming",
    ),
    Fault(
        ENGINE,
        "        return event.report.phase in ACTIVE_PHASES\n",
        "        return False\n",
        "a second pod runs and is paid beside the one that serves",
    ),
    Fault(
        SERVING,
        '                self.order_stop(provider, "shutdown", now, firm=False)',
        "                pass",
        "the gateway goes down and leaves a pod that it had not looked at",
    ),
    Fault(
        STARTING,
        "        if self.shutting_down:\n            return self.leave_found_pod(was, event, now)\n",
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
        (
            "        if not self.has_payable_demand:\n            return self.abandon_start(was, now)\n"
            "        if not was."
            "must_inspect:"
        ),
        "        if not was.must_inspect:",
        "pods are started for clients that hung up",
    ),
    Fault(
        STARTING,
        "            must_inspect=True,\n",
        "            must_inspect=False,\n",
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
        "            and provider not in self.pending_stops.abandoned_providers\n",
        "",
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
        "        if now >= was.began_at + self.policy.warmup_timeout:",
        "        if now > was.began_at + self.policy.warmup_timeout + 60:",
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
        "        if not was.served and self.may_fail_over(was):",
        "        if self.may_fail_over(was):",
        "answers are cut because a pod that fell ill came back on its CPU",
    ),
    Fault(
        WARMING,
        ("        return self.has_payable_demand and self.next_free_provider(was.provider + 1) is not None"),
        "        return self.next_free_provider(was.provider + 1) is not None",
        "a slow pod is stopped and another one started for nobody",
    ),
    Fault(
        WARMING,
        ("        return self.has_payable_demand and self.next_free_provider(was.provider + 1) is not None"),
        "        return self.has_payable_demand",
        "a pod without a GPU is left although there is no other provider",
    ),
    Fault(
        STARTING,
        "        return self.start_from(was.provider + 1, now)",
        "        return self.give_up_start(now)",
        "no failover",
    ),
    Fault(
        WARMING,
        "        if not self.queue.leases:\n            self.queue.idle_since = now\n",
        "",
        "an adopted pod that nobody uses never stops",
    ),
    Fault(
        WARMING,
        "        if event.op != was.probe_op:\n            return was\n",
        "",
        "an old health check makes a sick pod ready",
    ),
    Fault(
        WARMING,
        (
            "            self.open_session(was.provider, was.run_id, self.start_cause, report, up_s, "
            "now)\n        "
            "if"
        ),
        "            pass\n        if",
        "a start that was queued is billed and not in the ledger",
    ),
    Fault(
        STOPS,
        "                order.send_at = now + self._resend_pause_s(order, error)\n",
        "                order.send_at = order.since + self._resend_pause_s(order, error)\n",
        "a provider that answers slowly is told to stop over and over, and never looked at",
    ),
    Fault(
        STOPS,
        "            settled = isinstance(seen, NotFound) or not (order.until_seen_stopped or later)",
        "            settled = True",
        "a look that failed counts as proof",
    ),
    Fault(
        STOPS,
        (
            "            order.until_seen_stopped = order.until_seen_stopped or seen.phase not in "
            "STOPPED_PHASES\n"
        ),
        "",
        "a pod that was seen running after a refusal is left alone when looks fail",
    ),
    Fault(
        STARTING,
        "return order is not None and order.sent_count >= 2 and",
        "return order is not None and order.sent_count >= 1 and",
        "a provider that stops well is passed over for a dearer one",
    ),
    Fault(
        MACHINE,
        (
            "            case Warming(began_at=began):\n                return min(began + self."
            "policy.warmup_timeout, self.session_deadline_at)\n"
        ),
        "",
        "a health check that never answers holds the warm-up for ever",
    ),
    Fault(
        ENGINE,
        "        if self.budget_gate.verdict.exhausted_reason:\n            return False\n",
        "",
        "a wish by hand is tried again and again although the budget is spent",
    ),
    Fault(
        ENGINE,
        "        elif isinstance(self.state, NEEDS_NEW_START) and not self.has_payable_demand:\n",
        "        elif isinstance(self.state, Stopped) and not self.has_payable_demand:\n",
        "who waits for a start that there will not be is left waiting",
    ),
    Fault(
        ENGINE,
        "        self.start_requested = False\n        for ticket",
        "        for ticket",
        "a start that was wished for begins by itself when the month turns",
    ),
    Fault(
        STARTING,
        ("        if not self.has_payable_demand:\n            return was\n        self.resume_at_provider"),
        "        self.resume_at_provider",
        "an arrival starts the pod although the budget is spent",
    ),
    Fault(
        STARTING,
        ("        if not self.idle_timer.consume_window(now) or self.budget_gate.verdict.exhausted_reason:"),
        "        if not self.idle_timer.consume_window(now):",
        "a pod is warmed ahead although the budget is spent",
    ),
    Fault(
        WARMING,
        "        if began < was.since:\n            return self.stop_pod(",
        "        if True:\n            return self.stop_pod(",
        "a session's limit shorter than a start: starts without end, each paid for",
    ),
    Fault(
        PURSE,
        "        return any(ticket.user not in self.verdict.users_over_share for ticket in tickets)\n",
        "        return any(True for _ in tickets)\n",
        "a user whose share is spent has pods started again",
    ),
    Fault(
        SERVING,
        (
            "        self.commands.append(ResolveManualRequest(None if self.has_payable_demand else "
            "refusal))\n"
        ),
        "        self.commands.append(ResolveManualRequest(refusal))\n",
        "a start by hand is refused although the pod is on its way",
    ),
    Fault(
        PAUSES,
        "            return quiet_since + self.policy.effective_timeout_s\n",
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
        "        self.idle_timer.prewarmed_run_id = 0  # it is asked for now\n",
        "",
        "a pod that was started by hand is stopped under the eyes of who waits for it",
    ),
    Fault(
        SERVING,
        "        self.idle_timer.suppress_prewarm()\n",
        "",
        "a pod that was stopped by hand comes back by itself",
    ),
    Fault(
        IDLE,
        "len(self._gaps_s) >= MIN_SAMPLES and self._regret_budget_s > 0 else",
        "len(self._gaps_s) >= MIN_SAMPLES else",
        "habits that mislead are believed for ever, at any price",
    ),
    Fault(
        IDLE,
        "if cost < least and sums.served(window) >= MIN_HITS:",
        "if cost < least:",
        "a pod is warmed ahead because of one coincidence",
    ),
    Fault(
        "lifecycle/diagnosis.py",
        "        self._inspected = self._inspected or looked\n",
        "        self._inspected = True\n",
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
        '        self.inspect_idle_providers("hand", now)\n',
        "",
        "a stop by hand believes that nothing runs, while a console start bills",
    ),
    Fault(
        SERVING,
        "            self.inspect_before_exit(None, now)\n",
        "            pass\n",
        "a clean exit leaves a console start that no look has shown",
    ),
    Fault(
        STOPS,
        "            if order.is_inspect_only:\n                order.send_at = -inf\n",
        "",
        "what the last look finds is never told to stop",
    ),
)
