// Fills the elements of the page. Text is set as text, never as HTML: names come from tokens and providers.
import { clockTime, dateTime, duration, headline, money, nextStep, plural } from "./format.js";

export const find = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Replaces the text only where it differs: a screen reader says what changes in a live region.
export function setText(id, text) {
  const target = find(id);
  if (target.textContent !== text) target.textContent = text;
}

const shown = new Map();

// Replaces the children only where `data`, of which they are made, differs: focus, selection and scrolling stay.
function fill(id, data, make) {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  const focused = find(id).contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
  find(id).replaceChildren(...make());
  if (focused) find(id).querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
}

function facts(id, rows) {
  fill(id, rows, () => rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

// `columns`: [title, row => text or element, "number"?]
function table(caption, columns, rows) {
  const kind = (column) => (column[2] ? { class: column[2] } : {});
  return element("table", { "aria-label": caption },
    element("thead", {}, element("tr", {}, ...columns.map((column) => element("th", { scope: "col", ...kind(column) }, column[0])))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...columns.map((column) => element("td", kind(column), column[1](row)))))));
}

export function showPod(pod, elapsed, now, gpu, currency) {
  const since = (now - Date.parse(pod.since)) / 1000;
  setText("pod-status", headline(pod.status));
  find("pod-status").className = pod.status;
  setText("pod-next", nextStep(pod, elapsed, since));
  setText("pod-error", pod.last_error ?? "");
  const rows = [["Provider", pod.provider ?? "unknown"]];
  if (pod.pod_id) rows.push(["Pod", pod.pod_id]);
  if (gpu) rows.push(["GPU", gpu]);
  if (pod.hourly_rate !== null) rows.push(["Price", `${money(Number(pod.hourly_rate), currency)} per hour`]);
  facts("pod-facts", rows);
  find("start").disabled = pod.status !== "STOPPED";
  find("stop").disabled = pod.status === "STOPPED" || pod.status === "STOPPING";
  document.title = `${headline(pod.status)} · gpugate`;
}

// Several pods: one row for each, in place of the card of one. `onAct(action, pod)`: its Start or Stop was pressed.
export function showPods(pods, elapsed, now, currency, onAct) {
  find("pods-card").hidden = false;
  find("pod-card").hidden = true;
  const button = (pod, action, off) => element("button",
    { type: "button", "data-id": `${action} ${pod.pod}`, "aria-label": `${action} ${pod.pod}`, onclick: () => onAct(action, pod), ...(off && { disabled: "" }) }, action);
  const told = pods.map((pod) => ({
    pod,
    state: pod.status ? headline(pod.status) : "Not known yet",
    next: pod.status ? nextStep(pod, elapsed, (now - Date.parse(pod.since)) / 1000) : "",
    cost: pod.estimated_cost === null || !pod.status ? "" : money(Number(pod.estimated_cost) + (Number(pod.hourly_rate ?? 0) * elapsed) / 3600, currency),
  }));
  const columns = [
    ["Pod", (row) => row.pod.pod],
    ["State", (row) => element("span", { class: row.pod.status ?? "" }, row.state)],
    ["Next", (row) => row.next + (row.pod.last_error ? ` ${row.pod.last_error}` : "")],
    ["Waiting", (row) => `${row.pod.waiting ?? ""}`, "number"],
    ["Answered", (row) => `${row.pod.in_flight ?? ""}`, "number"],
    ["This session", (row) => row.cost, "number"],
    ["", (row) => element("span", { class: "actions" },
      button(row.pod, "Start", row.pod.status !== "STOPPED"), button(row.pod, "Stop", !row.pod.status || ["STOPPED", "STOPPING"].includes(row.pod.status)))],
  ];
  fill("pods", told.map(({ pod, ...row }) => [pod.pod, pod.status, pod.waiting, pod.in_flight, pod.last_error, row]), () => [table("Pods", columns, told)]);
  const on = pods.filter((pod) => pod.status && pod.status !== "STOPPED").length;
  document.title = `${plural(on, "pod")} on · gpugate`;
}

export function showRequests(pod, listed) {
  setText("requests-summary", `${plural(pod.waiting, "request")} waiting, ${pod.in_flight} being answered.`);
  const rows = listed.requests;
  const columns = [
    ["User", (row) => row.user],
    ["State", (row) => (row.state === "waiting" ? "waiting" : "being answered")],
    ["For", (row) => duration(row.seconds), "number"],
    ["Request", (row) => row.request_id.slice(0, 18)],
  ];
  const more = listed.count > rows.length ? [element("p", { class: "hint" }, `and ${listed.count - rows.length} more`)] : [];
  fill("requests", listed, () => (rows.length ? [element("div", { class: "scroll" }, table("Requests", columns, rows)), ...more] : []));
}

export function showCost(pod, elapsed, summary) {
  const { currency } = summary;
  const running = pod.estimated_cost === null ? null : Number(pod.estimated_cost) + (Number(pod.hourly_rate ?? 0) * elapsed) / 3600;
  const today = summary.byDay.find((day) => day.date === summary.today);
  facts("cost-facts", [
    ["This session", running === null ? "none" : money(running, currency)],
    ["Today", money(today?.cost ?? 0, currency)],
    ["This month", money(summary.estimatedTotal, currency)],
  ]);
  if (summary.monthlyBudget === null) {
    fill("budget", null, () => []);
  } else {
    const share = Math.round((100 * summary.estimatedTotal) / summary.monthlyBudget);
    const text = `${share} % of ${money(summary.monthlyBudget, currency)} for this month`;
    fill("budget", text, () => [
      element("meter", { min: 0, max: 100, low: 80, high: 100, optimum: 0, value: Math.min(share, 100), "aria-label": `Budget: ${text}` }),
      element("p", { class: "hint" }, text),
    ]);
  }
  setText("cost-note", summary.warnings.join("; "));
}

export function showDays(chart, days, currency) {
  const cost = (day) => money(day.cost, currency);
  const total = days.reduce((sum, day) => sum + day.cost, 0);
  setText("days-summary", `The last ${days.length} days: ${money(total, currency)}. A session over midnight counts on both days.`);
  chart.draw([days.map((day) => Date.parse(day.date) / 1000), days.map((day) => day.cost), days.map((day) => day.sessionCount)]);
  const columns = [["Day", (day) => day.date], ["Sessions", (day) => `${day.sessionCount}`, "number"], ["Cost", cost, "number"]];
  fill("days-table", days, () => [table("Sessions and cost per day", columns, [...days].reverse())]);
}

export function showStarts(chart, sessions) {
  const starts = sessions.filter((row) => row.ready_at && row.started_at && row.start_reason !== "adopted")
    .map((row) => ({ at: row.started_at, provider: row.provider, seconds: (Date.parse(row.ready_at) - Date.parse(row.started_at)) / 1000 }));
  const sorted = starts.map((start) => start.seconds).sort((a, b) => a - b);
  setText("starts-summary", sorted.length === 0 ? "No start yet." :
    `From the start to the first answer: half of ${plural(sorted.length, "start")} within ${duration(sorted[Math.floor((sorted.length - 1) / 2)])}, the slowest ${duration(sorted.at(-1))}.`);
  chart.draw([starts.map((start) => Date.parse(start.at) / 1000), starts.map((start) => start.seconds)]);
  const columns = [["Start", (start) => dateTime(start.at)], ["Provider", (start) => start.provider], ["Until ready", (start) => duration(start.seconds), "number"]];
  fill("starts-table", starts, () => [table("Starts", columns, [...starts].reverse().slice(0, 50))]);
}

export function showSessions(sessions, onReceipt) {
  const newest = [...sessions].reverse().slice(0, 50);
  const columns = [
    ["Began", (row) => dateTime(row.started_at)],
    ["Provider", (row) => row.provider],
    ["GPU", (row) => row.gpu ?? ""],
    ["For", (row) => `${row.started_by} (${row.start_reason})`],
    ["Length", (row) => duration(row.seconds), "number"],
    ["Cost", (row) => money(row.cost, row.currency), "number"],
    ["End", (row) => row.end_reason ?? "running"],
    ["", (row) => element("button", { type: "button", class: "plain", "data-id": row.id, "aria-label": `Receipt of the session of ${dateTime(row.started_at)}`, onclick: () => onReceipt(row) }, "Receipt")],
  ];
  fill("sessions", newest, () => [newest.length ? table("Last sessions", columns, newest) : element("p", { class: "hint" }, "None yet.")]);
}

export function showReceipt({ session, lines }) {
  const columns = [
    ["User", (line) => line.user],
    ["Request", (line) => line.request_id ?? ""],
    ["Requests", (line) => `${line.requests ?? ""}`, "number"],
    ["Time", (line) => duration(line.seconds), "number"],
    ["Cost", (line) => money(line.cost, session.currency), "number"],
  ];
  find("receipt").replaceChildren(
    element("p", {}, `${session.provider}, ${dateTime(session.started_at)}, ${duration(session.seconds)}: ${money(session.cost, session.currency)}`),
    element("div", { class: "scroll" }, table("Receipt", columns, lines)));
}

const SHOWN_EVENTS = 100;

export function addEvent(at, text, kind) {
  const list = find("events");
  list.prepend(element("li", { class: kind }, element("time", { datetime: at }, clockTime(at)), element("span", {}, text)));
  while (list.children.length > SHOWN_EVENTS) list.lastChild.remove();
}

export function showAlarm(at, text) {
  const alarms = find("alarms");
  const dismiss = element("button", { type: "button", class: "plain", onclick: (event) => event.target.parentElement.remove() }, "Dismiss");
  alarms.append(element("p", {}, `${dateTime(at)}: ${text} `, dismiss));
  while (alarms.children.length > 5) alarms.firstChild.remove();
}
