"""Plausible mistakes in the code; each must be caught by tests/core, tests/lifecycle or tests/billing."""

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


QUEUE = "core/request_queue.py"
RECORDER = "billing/recorder.py"
BOOT = "core/transitions/boot.py"
IDLE = "core/idle_policy.py"
MACHINE = "core/machine.py"
MANUAL = "core/transitions/manual.py"
PLAN = "core/start_plan.py"
POLICY = "core/policy.py"
SERVE = "core/transitions/serve.py"
START = "core/transitions/start.py"
STOPS = "core/pending_stops.py"
WARMUP = "core/transitions/warmup.py"
LIFECYCLE = "lifecycle/lifecycle.py"
COMMANDS = "lifecycle/provider_worker.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        QUEUE,
        "        if ticket.holds_admit_slot:\n            self.admit_slots_used -= 1\n",
        (
            "        if ticket.holds_admit_slot and not ticket.requeued:\n            self."
            "admit_slots_used -= 1\n"
        ),
        "a request that lost its pod keeps its drain slot for ever",
    ),
    Fault(
        QUEUE,
        "        insort(self.waiting, ticket)",
        "        self.waiting.append(ticket)",
        "who lost the pod goes back to the end of the queue",
    ),
    Fault(
        QUEUE,
        "        ticket.deadline = now + self.max_wait_s\n",
        "",
        "who lost the pod has used up its wait",
    ),
    Fault(
        QUEUE,
        "            if not self.leases:\n                self.idle_since = self.",
        "            if True:\n                self.idle_since = self.",
        "the idle clock runs while an answer is still on its way",
    ),
    Fault(
        QUEUE,
        "        if len(self.waiting) >= self.max_waiting:",
        "        if len(self.waiting) > self.max_waiting:",
        "one more waits than was allowed",
    ),
    Fault(
        QUEUE,
        "        ticket = self.waiting.pop(0)",
        "        ticket = self.waiting.pop()",
        "the last in the queue is served first",
    ),
    Fault(
        QUEUE,
        "if not self.waiting or self.admit_slots_used >= self.drain_concurrency:",
        "if not self.waiting:",
        "the whole queue falls upon a pod that has just come up",
    ),
    Fault(
        QUEUE,
        "            elif shutting_down is not None:",
        "            elif False:",
        "a gateway that goes down queues requests again",
    ),
    Fault(
        QUEUE,
        "            elif ticket.requeued:",
        "            elif False:",
        "a request that kills its pod kills one pod after the other",
    ),
    Fault(
        MACHINE,
        "        for ticket in self.queue.expired(now):",
        "        for ticket in []:",
        "nobody is ever told that it waited too long",
    ),
    Fault(
        MACHINE,
        "        if scheduled and (stop := self.pending_stops.by_provider.get(provider)) is not None:",
        "        if (stop := self.pending_stops.by_provider.get(provider)) is not None:",
        "an old look proves a stop",
    ),
    Fault(
        MACHINE,
        "            self.inspect_schedule.schedule_no_later_than(provider, now + delay)",
        "            self.inspect_schedule.schedule(provider, now + delay)",
        "a look that was asked for while another was out is forgotten",
    ),
    Fault(
        STOPS,
        "            if None in (session.pod_id, report.pod_id) or session.pod_id == report.pod_id:\n",
        "            if session.pod_id is not None and session.pod_id == report.pod_id:\n",
        "one billed stretch becomes two rows",
    ),
    Fault(
        STOPS,
        "        if isinstance(error, RateLimited) and error.retry_after is not None:",
        "        if False:",
        "a provider that wants to be left alone is asked every 0.1 s",
    ),
    Fault(
        "core/replicas.py",
        "sum(at + self.policy.idle_timeout > now for",
        "sum(at > now for",
        "replicas come and go with each request",
    ),
    Fault(
        "core/replicas.py",
        "        return min(self._high, self._priced.affordable(rate)) if rate else self._high",
        "        return self._high",
        "replicas cost more than pod.max_hourly_rate",
    ),
    Fault(
        "core/hand_over.py",
        "            self._end_leaving(leaving, now)\n        self.end_unused(now)",
        "            self.leaving.until = inf\n        self.end_unused(now)",
        "a pod that was handed over runs past its limit",
    ),
    Fault(
        "core/start_plan.py",
        "            if provider == self.leaving_provider:",
        "            if False:",
        "a start is asked for where the pod that was handed over still answers",
    ),
    Fault(
        MACHINE,
        "            case StartAccepted() if event.op != ",
        "            case StartAccepted() if event.op == -1 != ",
        "a pod that came up after a stop by hand is billed and not in the ledger",
    ),
    Fault(
        MACHINE,
        ("        if kind is not RequestFinished or type(self.state) is not Ready or self._has_due_work:"),
        "        if kind is DeadlineReached or type(self.state) is not Ready:",
        "held requests wait for the next alarm when a lease ends",
    ),
    Fault(
        STOPS,
        "min(inf if slot.op is not None else slot.due for slot in self.slots)",
        "min(slot.due for slot in self.slots)",
        "the alarm goes off without end while a look is out",
    ),
    Fault(
        STOPS,
        "if slot.due <= now and slot.op is None]",
        "if slot.due <= now]",
        "two looks are out at once",
    ),
    Fault(
        POLICY,
        "min(self.stop_retry * 2 ** min(sent_count - 1, 30), self.max_stop_retry_s)",
        "self.stop_retry * 2 ** min(sent_count - 1, 30)",
        "a stop is sent again after days",
    ),
    Fault(
        POLICY,
        "        return max(min(interval, self.health_interval), self.providers[provider].min_probe_s)",
        "        return max(interval, self.providers[provider].min_probe_s)",
        "health is asked ever more slowly",
    ),
    Fault(
        MANUAL,
        "    if pod.queue.busy and not event.force:",
        "    if pod.queue.leases and not event.force:",
        "a stop by hand throws out who waits",
    ),
    Fault(
        WARMUP,
        "    if not pod.queue.leases:\n        return stop_pod(pod, was.provider, cause, now)",
        "    if True:\n        return stop_pod(pod, was.provider, cause, now)",
        "the session's limit stops the pod under running answers",
    ),
    Fault(
        SERVE,
        "    return was if pod.shutting_down or not pod.has_payable_demand else begin_start(pod, now)",
        "    return was",
        "a request that comes while a stop fails waits for ever",
    ),
    Fault(
        SERVE,
        "        served=True,\n",
        "",
        "a pod lost under requests counts as a start that failed",
    ),
    Fault(
        SERVE,
        "    if event.op != was.probe_op:\n        return was\n",
        "",
        "an old health check throws a good pod back to warming",
    ),
    Fault(
        MACHINE,
        "        return event.report.phase in ACTIVE_PHASES\n",
        "        return False\n",
        "a second pod runs and is paid beside the one that serves",
    ),
    Fault(
        MANUAL,
        "            pod.order_stop(provider, StopCause.SHUTDOWN, now, until_seen_stopped=may_run)",
        "            pass",
        "the gateway goes down and leaves a pod that it had not looked at",
    ),
    Fault(
        BOOT,
        "    if pod.shutting_down:\n",
        "    if False:\n",
        "a gateway that goes down adopts a pod and never ends",
    ),
    Fault(
        BOOT,
        "        if provider in active[1:] or",
        "        if",
        "found at two providers, both run on",
    ),
    Fault(
        START,
        (
            "    if not pod.has_payable_demand:\n        return abandon_start(pod, was, now)\n    if "
            "not was."
            "must_inspect:"
        ),
        "    if not was.must_inspect:",
        "pods are started for clients that hung up",
    ),
    Fault(
        START,
        "        must_inspect=True,\n",
        "        must_inspect=False,\n",
        "a start whose answer was lost is asked again unseen",
    ),
    Fault(
        START,
        "number=attempt.number + 1",
        "number=attempt.number",
        "attempts never end",
    ),
    Fault(
        START,
        "        and provider not in pod.pending_stops.abandoned_providers\n",
        "",
        "a stop that was never proved is forgotten when a later start is refused",
    ),
    Fault(
        START,
        "must_be_seen = queued or accepted or not (clean and refused)",
        "must_be_seen = accepted or not (clean and refused)",
        "a start that is queued at the provider fires when everybody has gone",
    ),
    Fault(
        WARMUP,
        "    if now >= was.began_at + pod.policy.warmup_timeout:",
        "    if now > was.began_at + pod.policy.warmup_timeout + 60:",
        "a pod that never becomes healthy is paid for longer",
    ),
    Fault(
        START,
        "        return evolve(was, accepted_at=now)\n",
        "        return was\n",
        "a queued start is given up although its wait is not over",
    ),
    Fault(
        WARMUP,
        "    if not was.served and may_fail_over(pod, was):",
        "    if may_fail_over(pod, was):",
        "answers are cut because a pod that fell ill came back on its CPU",
    ),
    Fault(
        START,
        ("    return pod.has_payable_demand and pod.plan.next_free_provider(was.provider + 1) is not None"),
        "    return pod.plan.next_free_provider(was.provider + 1) is not None",
        "a slow pod is stopped and another one started for nobody",
    ),
    Fault(
        START,
        ("    return pod.has_payable_demand and pod.plan.next_free_provider(was.provider + 1) is not None"),
        "    return pod.has_payable_demand",
        "a pod without a GPU is left although there is no other provider",
    ),
    Fault(
        START,
        "    return start_from(pod, attempt.provider + 1, now)",
        "    return start_from(pod, len(pod.policy.providers), now)",
        "no failover",
    ),
    Fault(
        WARMUP,
        "    if not pod.queue.leases:\n        pod.queue.idle_since = now\n",
        "",
        "an adopted pod that nobody uses never stops",
    ),
    Fault(
        WARMUP,
        "    if event.op != was.probe_op:\n        return was\n",
        "",
        "an old health check makes a sick pod ready",
    ),
    Fault(
        START,
        ("        pod.open_session(was.provider, was.run_id, pod.start_cause, report, up_s, now)\n    if"),
        "        pass\n    if",
        "a start that was queued is billed and not in the ledger",
    ),
    Fault(
        STOPS,
        "stop.send_at = stop.resend_at = now + self._resend_pause_s(stop, error)",
        "stop.send_at = stop.resend_at = stop.since + self._resend_pause_s(stop, error)",
        "a provider that answers slowly is told to stop over and over, and never looked at",
    ),
    Fault(
        STOPS,
        "            over = isinstance(seen, NotFound) or not (stop.until_seen_stopped or put_off)",
        "            over = True",
        "a look that failed counts as proof",
    ),
    Fault(
        STOPS,
        "        stop.until_seen_stopped = stop.until_seen_stopped or phase not in STOPPED_PHASES\n",
        "",
        "a pod that was seen running after a refusal is left alone when looks fail",
    ),
    Fault(
        PLAN,
        "return stop is not None and stop.sent_count >= 2 and",
        "return stop is not None and stop.sent_count >= 1 and",
        "a provider that stops well is passed over for a dearer one",
    ),
    Fault(
        MACHINE,
        "return min(probe_due, began_at + self.policy.warmup_timeout, self.session_deadline_at)",
        "return min(probe_due, self.session_deadline_at if probe_op is None else inf)",
        "a health check that never answers holds the warm-up for ever",
    ),
    Fault(
        MACHINE,
        "        if self.budget_gate.is_exhausted:\n            return False\n",
        "",
        "a wish by hand is tried again and again although the budget is spent",
    ),
    Fault(
        MACHINE,
        "        elif isinstance(self.state, NEEDS_NEW_START) and not self.has_payable_demand:\n",
        "        elif isinstance(self.state, Stopped) and not self.has_payable_demand:\n",
        "who waits for a start that there will not be is left waiting",
    ),
    Fault(
        MACHINE,
        "        self.plan.start_requested = False\n        self.idle_timer.forget_schedule()",
        "        self.idle_timer.forget_schedule()",
        "a start that was wished for begins by itself when the month turns",
    ),
    Fault(
        START,
        "    if not pod.has_payable_demand:\n        return was\n    pod.plan.resume",
        "    pod.plan.resume",
        "an arrival starts the pod although the budget is spent",
    ),
    Fault(
        START,
        "consume_window(now) or pod.budget_gate.is_exhausted or pod.wake",
        "consume_window(now) or pod.wake",
        "a pod is warmed ahead although the budget is spent",
    ),
    Fault(
        START,
        "    if pod.open_sessions.began_at(was.provider) < was.attempt.since:",
        "    if True:",
        "a session's limit shorter than a start: starts without end, each paid for",
    ),
    Fault(
        QUEUE,
        "        return any(ticket.user not in self.verdict.users_over_share for ticket in tickets)\n",
        "        return any(True for _ in tickets)\n",
        "a user whose share is spent has pods started again",
    ),
    Fault(
        MANUAL,
        "    pod.commands.append(ResolveManualRequest(None if pod.has_payable_demand else refusal))\n",
        "    pod.commands.append(ResolveManualRequest(refusal))\n",
        "a start by hand is refused although the pod is on its way",
    ),
    Fault(
        IDLE,
        "            return idle_since + self.policy.effective_timeout_s\n",
        "            return idle_since + self.idle_timeout_s\n",
        "what the idle policy says is never done",
    ),
    Fault(
        IDLE,
        "        return window is not None and now < since + window.closes_s",
        "        return window is not None",
        "a pod is warmed for somebody who was expected hours ago",
    ),
    Fault(
        IDLE,
        "            return min(last_demand_at + window.closes_s, idle_since + self.idle_timeout_s)\n",
        "            return idle_since + self.idle_timeout_s\n",
        "a pod that was warmed in vain is kept as if somebody had used it",
    ),
    Fault(
        MANUAL,
        "    pod.idle_timer.prewarmed_run_id = 0  #",
        "    pass  #",
        "a pod that was started by hand is stopped under the eyes of who waits for it",
    ),
    Fault(
        MANUAL,
        "    pod.idle_timer.suppress_prewarm()\n",
        "",
        "a pod that was stopped by hand comes back by itself",
    ),
    Fault(
        IDLE,
        "len(self._gaps_s) >= MIN_SAMPLES and self._regret_budget_s > 0",
        "len(self._gaps_s) >= MIN_SAMPLES",
        "habits that mislead are believed for ever, at any price",
    ),
    Fault(
        IDLE,
        "if cost < least and stats.served(window) >= MIN_HITS:",
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
        "lifecycle/status.py",
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
        "        except (Exception, SystemExit) as error:  # a plugin's bug must not end the lifecycle",
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
        MANUAL,
        "    pod.inspect_idle_providers(StopCause.MANUAL, now)\n",
        "",
        "a stop by hand believes that nothing runs, while a console start bills",
    ),
    Fault(
        MANUAL,
        "        inspect_before_exit(pod, None, now)\n",
        "        pass\n",
        "a clean exit leaves a console start that no look has shown",
    ),
    Fault(
        STOPS,
        "        if stop.is_inspect_only:\n            stop.send_at = -inf\n",
        "",
        "what the last look finds is never told to stop",
    ),
    Fault(
        RECORDER,
        "self._take_over([row for row in left if row.pod == self._pod])",
        "self._take_over([row for row in left if row.pod in self._pods])",
        "after a crash a pod goes on with another pod's session",
    ),
    Fault(
        RECORDER,
        "                if self._pod == self._pods[0]:\n",
        "                if self._pod:\n",
        "the session of a pod that was removed is closed by every pod, each with an alarm",
    ),
    Fault(
        RECORDER,
        "                    if row.pod not in others:\n",
        "                    if row.pod == self._pod:\n",
        "a pod under a new name is billed again from the beginning",
    ),
)
