// Numbers, times and the pod's state as people read them. No access to the page or the network.

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "unknown";
  const total = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(total / 86400), "d"],
    [Math.floor(total / 3600) % 24, "h"],
    [Math.floor(total / 60) % 60, "min"],
    [total % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first === -1) return "0 s";
  return parts.slice(first, first + 2).filter(([count]) => count > 0).map(([count, unit]) => `${count} ${unit}`).join(" ");
}

export function money(amount, currency) {
  if (amount === null || amount === undefined) return "unknown";
  const digits = amount !== 0 && Math.abs(amount) < 0.1 ? 4 : 2;
  const text = amount.toFixed(digits);
  return currency === "USD" ? `$${text}` : `${text} ${currency}`;
}

export function clockTime(instant) {
  return new Date(instant).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function dateTime(instant) {
  return new Date(instant).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}

export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

const HEADLINES = {
  STOPPED: "Off", STARTING: "Starting", WARMING: "Warming up", READY: "Ready", STOPPING: "Stopping",
};

export function headline(status) {
  return HEADLINES[status] ?? status;
}

// What happens next. `elapsed`: seconds since `pod` was true, `since`: seconds for which its status has been the same.
export function nextStep(pod, elapsed, since) {
  const left = (seconds) => duration(Math.max(0, seconds - elapsed));
  switch (pod.status) {
    case "STOPPED":
      return "The next request starts it.";
    case "STARTING":
    case "WARMING": {
      const where = pod.status === "STARTING" ? `Being started at ${pod.provider}` : `Running at ${pod.provider}, loading`;
      if (pod.pulling) {
        const percent = pod.pulling.percent === null ? "" : `, ${pod.pulling.percent} %`;
        return `Running at ${pod.provider}, pulling ${pod.pulling.model}${percent}.`;
      }
      const ready = pod.ready_in_seconds;
      if (ready === null) return `${where} for ${duration(since)}.`;
      if (ready <= elapsed) return `${where}; it takes longer than usual.`;
      const about = left(ready);
      const most = left(pod.ready_in_p90_seconds ?? ready);
      return `${where}; ready in about ${about}${most === about ? "" : `, at most ${most}`}.`;
    }
    case "READY": {
      const ready = `At ${pod.provider} for ${duration(since)}`;
      if (pod.in_flight > 0) return `${ready}; answering ${plural(pod.in_flight, "request")}.`;
      return pod.stops_in_seconds === null ? `${ready}.` : `${ready}; stops in ${left(pod.stops_in_seconds)} if nobody asks.`;
    }
    case "STOPPING":
      return `Waiting until ${pod.provider} shows it stopped, for ${duration(since)}.`;
    default:
      return "";
  }
}

const CAUSES = {
  request: "for a request", hand: "by hand", adopted: "found running", prewarm: "ahead of time", schedule: "by schedule",
};

// An event of the gateway as a line: [text, class], or null for one that is not shown; `named`: with its pod.
export function eventLine(kind, data, currency, named = false) {
  const line = plainLine(kind, data, currency);
  return line && named && data.pod ? [`${data.pod}: ${line[0]}`, line[1]] : line;
}

function plainLine(kind, data, currency) {
  switch (kind) {
    case "state":
      return data.was ? [`${headline(data.was)} → ${headline(data.status)}: ${data.message}`, ""] : null;
    case "session":
      if (data.event === "began") return [`A session began at ${data.provider}, ${CAUSES[data.cause] ?? data.cause}`, ""];
      return [`The session at ${data.provider} ended (${data.cause})${data.cost === null ? "" : `: ${money(data.cost, currency)}`}`, ""];
    case "budget":
      return [`${data.percent} % of the budget of ${data.month} is spent: ${money(Number(data.spent), currency)} of ${money(Number(data.budget), currency)}`, "trouble"];
    case "provider_error":
      return [`${data.provider}: ${data.message}`, data.alarm ? "alarm" : "trouble"];
    default:
      return null;
  }
}
