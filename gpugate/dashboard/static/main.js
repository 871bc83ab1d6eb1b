// The page's state and what the buttons do. It shows what the gateway tells: the status again after every event and
// every 15 s, the costs after every session and every minute; between two of them only the seconds are counted here.
import { Api } from "./api.js";
import { DAYS, daysChart, startsChart } from "./charts.js";
import { duration, eventLine, money, plural } from "./format.js";
import { addEvent, find, setText, showAlarm, showCost, showDays, showPod, showPods, showReceipt, showRequests, showSessions, showStarts } from "./views.js";

const TOKEN = "gpugate.token";
const DAY_MS = 86_400_000;
let page = null; // the logged-in page

class Page {
  #following = new AbortController();
  #pod = null;
  #podAt = 0;
  #gpu = null;
  #summary = null;
  #currency = "USD";
  #soon = new Map();

  constructor(api) {
    this.api = api;
    this.days = daysChart(find("days-chart"), (amount) => money(amount, this.#currency));
    this.starts = startsChart(find("starts-chart"), duration);
  }

  open() {
    find("login").hidden = true;
    find("dashboard").hidden = false;
    find("log-out").hidden = false;
    find("events").replaceChildren();
    find("alarms").replaceChildren();
    this.timers = [
      setInterval(() => this.#tick(), 1000),
      setInterval(() => this.#refreshPod(), 15_000),
      setInterval(() => document.hidden || this.#refreshCosts(), 60_000),
    ];
    this.#refreshPod();
    this.#refreshCosts();
    this.api.follow((kind, data) => this.#onEvent(kind, data), (open, error) => this.#onConnection(open, error), this.#following.signal);
  }

  close() {
    this.#following.abort();
    this.timers.forEach(clearInterval);
    this.#soon.forEach(clearTimeout);
    setText("connection", "");
  }

  #onConnection(open, error) {
    if (error) return logOut(error.message);
    find("connection").classList.toggle("lost", !open);
    setText("connection", open ? "Live" : "Connection lost, trying again");
    if (open) {
      this.#later("pod", () => this.#refreshPod());
      this.#later("costs", () => this.#refreshCosts());
    }
  }

  #onEvent(kind, data) {
    const at = data.at ?? new Date(this.#now()).toISOString();
    const line = eventLine(kind, data, this.#currency, (this.#pod?.pods?.length ?? 0) > 1);
    if (line) addEvent(at, ...line);
    if (kind === "provider_error" && data.alarm) showAlarm(at, line[0]);
    this.#later("pod", () => this.#refreshPod());
    if (kind === "session" || kind === "budget") this.#later("costs", () => this.#refreshCosts());
  }

  // Many events at once cause one call.
  #later(name, work) {
    if (this.#soon.has(name)) return;
    this.#soon.set(name, setTimeout(() => {
      this.#soon.delete(name);
      work();
    }, 200));
  }

  #now() {
    return Date.now() + this.api.clockOffset;
  }

  async #refreshPod() {
    await this.#guard(async () => {
      this.#pod = await this.api.get("gpu/status");
      this.#podAt = performance.now();
      this.#tick();
      const none = { requests: [], count: 0 };
      const all = (this.#pod.pods?.length ?? 0) > 1 ? sumOf(this.#pod.pods) : this.#pod;
      const busy = all.waiting + all.in_flight > 0;
      showRequests(all, busy ? await this.api.get("gpu/requests") : none);
    });
  }

  async #refreshCosts() {
    await this.#guard(async () => {
      const summary = await this.api.get("cost/summary");
      this.#currency = summary.currency;
      this.#summary = summary;
      const last = Date.parse(summary.today);
      const first = new Date(last - (DAYS - 1) * DAY_MS).toISOString().slice(0, 10);
      const before = first.slice(0, 7) === summary.month ? [] : (await this.api.get(`cost/summary?month=${first.slice(0, 7)}`)).byDay;
      const { sessions } = await this.api.get(`cost/sessions?from=${first}&limit=500`);
      const known = new Map([...before, ...summary.byDay].map((day) => [day.date, day]));
      const days = Array.from({ length: DAYS }, (_, index) => new Date(last - (DAYS - 1 - index) * DAY_MS).toISOString().slice(0, 10))
        .map((date) => known.get(date) ?? { date, cost: 0, sessionCount: 0 });
      this.#gpu = sessions.findLast((row) => row.ended_at === null)?.gpu ?? null;
      showDays(this.days, days, this.#currency);
      showStarts(this.starts, sessions);
      showSessions(sessions, (row) => this.#showReceipt(row));
      this.#tick();
    }, (error) => setText("cost-note", error.code === "FORBIDDEN" ? "This token does not cover costs (scope cost)." : error.message));
  }

  #tick() {
    if (this.#pod === null) return;
    const elapsed = (performance.now() - this.#podAt) / 1000;
    const pods = this.#pod.pods ?? [];
    if (pods.length > 1) showPods(pods, elapsed, this.#now(), this.#currency, (action, pod) => this.#actOn(action, pod));
    else showPod(this.#pod, elapsed, this.#now(), this.#gpu, this.#currency);
    if (this.#summary) showCost(pods.length > 1 ? sumOf(pods) : this.#pod, elapsed, this.#summary);
  }

  async #guard(work, onError = (error) => setText("pod-error", error.message)) {
    try {
      await work();
    } catch (error) {
      if (error.status === 401) logOut(error.message);
      else onError(error);
    }
  }

  async act(method, path) {
    setText("action-error", "");
    try {
      await this.api.call(method, path);
    } catch (error) {
      if (error.code === "POD_BUSY") return this.askToStop(this.#asked);
      setText("action-error", error.message);
    }
    await this.#refreshPod();
  }

  #actOn(action, pod) {
    if (action === "Stop") this.askToStop(pod);
    else this.act("POST", `gpu/start?pod=${pod.pod}`);
  }

  #asked = null; // the pod, out of several, that is to be stopped

  stop() {
    const query = new URLSearchParams();
    if (find("stop-dialog").dataset.force === "true") query.set("force", "true");
    if (this.#asked) query.set("pod", this.#asked.pod);
    return this.act("POST", `gpu/stop?${query}`);
  }

  askToStop(pod = null) {
    this.#asked = pod;
    const now = pod ?? this.#pod;
    const busy = now === null ? 0 : now.waiting + now.in_flight;
    find("stop-dialog").dataset.force = busy > 0;
    setText("stop-title", pod ? `Stop the pod ${pod.pod}?` : "Stop the pod?");
    setText("stop-text", busy > 0
      ? `${plural(busy, "request")} waiting or being answered will be cut off.`
      : "The next request starts it again, with the wait of a cold start.");
    if (!find("stop-dialog").open) find("stop-dialog").showModal();
  }

  async #showReceipt(row) {
    await this.#guard(async () => {
      showReceipt(await this.api.get(`cost/receipt?id=${encodeURIComponent(row.id)}`));
      find("receipt-dialog").showModal();
    }, (error) => setText("cost-note", error.message));
  }
}

// What all pods together have and do.
function sumOf(pods) {
  const sum = (name) => pods.reduce((total, pod) => total + Number(pod[name] ?? 0), 0);
  const running = pods.some((pod) => (pod.estimated_cost ?? null) !== null);
  return { waiting: sum("waiting"), in_flight: sum("in_flight"), hourly_rate: sum("hourly_rate"), estimated_cost: running ? sum("estimated_cost") : null };
}

async function logIn(token) {
  const api = new Api(token);
  await api.get("gpu/status").catch((error) => {
    if (error.code !== "PROVIDER_UNAVAILABLE") throw error;
  });
  sessionStorage.setItem(TOKEN, token);
  page = new Page(api);
  page.open();
}

function logOut(message = "") {
  page?.close();
  page = null;
  sessionStorage.removeItem(TOKEN);
  find("dashboard").hidden = true;
  find("log-out").hidden = true;
  find("login").hidden = false;
  document.title = "gpugate";
  setText("login-error", message);
  find("token").value = "";
  find("token").focus();
}

find("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setText("login-error", "");
  await logIn(find("token").value.trim()).catch((error) => setText("login-error", error.message));
});
find("log-out").addEventListener("click", () => logOut());
find("start").addEventListener("click", () => page.act("POST", "gpu/start"));
find("stop").addEventListener("click", () => page.askToStop());
find("stop-cancel").addEventListener("click", () => find("stop-dialog").close());
find("stop-confirm").addEventListener("click", () => {
  find("stop-dialog").close();
  page.stop();
});
find("receipt-close").addEventListener("click", () => find("receipt-dialog").close());

const kept = sessionStorage.getItem(TOKEN);
if (kept === null) logOut();
else logIn(kept).catch((error) => (error.status === 401 ? logOut(error.message) : setTimeout(() => location.reload(), 3000)));
