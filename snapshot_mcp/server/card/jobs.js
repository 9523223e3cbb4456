// Jobs, until they have ended.

const ENDED = ["successful", "failed"];
const TITLES = { still_running: "Running", successful: "Done", failed: "Failed" };
const POLL_MS = 1500;
const WAIT_SECONDS = 5;

function jobs(told) {
  const away = (told.unreachable || []).map((one) => make("p", `Zone ${one.zone} did not answer: ${one.reason}`, "bad"));
  const title = TITLES[told.outcome] || (told.since ? `What was done since ${when(told.since)}` : count(told.jobs.length, "unfinished job"));
  fill(make("h1", title), ...away, ...told.jobs.slice(0, 50).map(drawJob), ...(told.made || []).map(drawMade), ...hint(told));
  follow(told.jobs.filter((one) => !ENDED.includes(one.status)), told);
}

function drawJob(one) {
  const isOver = ENDED.includes(one.status);
  const bytes = one.total_bytes ? `${size(one.done_bytes)} of ${size(one.total_bytes)}` : "";
  const words = [one.status, one.phase, bytes, one.finished_at && when(one.finished_at)].filter(Boolean).join(" · ");
  const kind = one.status === "failed" ? "bad" : one.status === "successful" ? "good" : "soft";
  const people = [one.asked_by && `asked by ${one.asked_by}`, one.approved_by && `approved by ${one.approved_by}`].filter(Boolean).join(", ");
  const what = [...(one.disks || one.resource_ids || []), ...(one.made || [])].join(", ");
  return make("div", [
    make("h2", `${one.action} ${one.job_id}`),
    ...(what ? [make("p", what)] : []),
    ...(isOver ? [] : [progressBar(one)]),
    make("p", words, kind),
    ...(one.error ? [make("p", one.error, "bad")] : []),
    ...(people ? [make("p", people, "soft")] : []),
  ], "note");
}

function progressBar(one) {
  const bar = document.createElement("progress");
  bar.max = 100;
  bar.setAttribute("aria-label", `${one.action} ${one.job_id}`);
  if (typeof one.percent === "number") bar.value = one.percent;
  return bar;
}

function drawMade(one) {
  if (typeof one === "string") return make("p", one);
  const kind = (one.consistency || "").includes("does not count") ? "warn" : "good";
  return make("p", [one.name, one.snapshot_id || one.resource_id, one.path, one.consistency].filter(Boolean).join(" · "), kind);
}

function follow(running, told) {
  if (!running.length || !host.hostCapabilities?.serverTools) return;
  const zones = new Set(running.map((one) => one.zone));
  const args = { job_ids: told.outcome ? told.jobs.map((one) => one.job_id) : running.map((one) => one.job_id), timeout_seconds: WAIT_SECONDS };
  if (zones.size === 1 && running.length === args.job_ids.length) args.zone = [...zones][0];
  again(async () => {
    const result = await ask("tools/call", { name: "wait_for_job", arguments: args });
    return result.isError ? null : () => jobs(result.structuredContent);
  });
}
