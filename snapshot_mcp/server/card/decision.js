// What a person is asked to decide, elsewhere, and what came of it.

const STANDS = {
  plan: "What it would do",
  needs_approval: "A person has to decide",
  started: "Started",
  declined: "Declined",
  refused: "Not allowed",
  plan_changed: "The plan has changed",
  safety_running: "The safety snapshot is being taken",
};
const COMMAND = / (approve|deny) \S+$/;

function decision(told) {
  const how = (told.how_to_approve || "").split("\n").filter((line) => line.trim());
  fill(
    make("h1", TITLES[told.outcome] || STANDS[told.status] || told.status),
    make("p", told.message),
    ...(told.error ? [make("p", told.error, "bad")] : []),
    ...(told.plan?.length ? [make("ol", told.plan.map((line) => make("li", line)))] : []),
    ...(told.frees_bytes ? [make("p", `It would free ${size(told.frees_bytes)}.`, "soft")] : []),
    ...(told.made || []).map(drawMade),
    ...how.map((line) => make(COMMAND.test(line) ? "code" : "p", line.trim())),
    ...(told.approval_link ? [button("Open the approval page", "button", () => ask("ui/open-link", { url: told.approval_link }).catch(() => {}))] : []),
    ...(told.approval_expires_at ? [make("p", `It waits until ${when(told.approval_expires_at)}.`, "soft")] : []),
    ...hint(told),
  );
  const job = told.job_id || told.safety_job_id;
  if (told.status === "needs_approval" && told.approval_id) awaitDecision(told);
  else if (job && !told.outcome) follow([{ job_id: job, zone: told.zone }], {});
}

function awaitDecision(told) {
  if (!host.hostCapabilities?.serverResources) return;
  again(async () => {
    const now = await read(`approval://${told.approval_id}`);
    if (!now?.state) return null;
    return now.state === "pending" ? () => awaitDecision(told) : () => decided(now, told);
  });
}

function decided(now, told) {
  const title = now.decision || `It is ${now.state}`;
  fill(
    make("h1", title),
    make("p", now.title || ""),
    ...(now.what_next ? [make("p", now.what_next)] : []),
    ...(now.job_end ? [make("p", now.job_end)] : []),
  );
  news(title);
  if (now.job_id && !now.job_end) follow([{ job_id: now.job_id, zone: told.zone }], {});
  else if (now.state === "granted") awaitStart(told);
}

function awaitStart(told) {
  again(async () => {
    const now = await read(`approval://${told.approval_id}`);
    return now.state === "granted" ? () => awaitStart(told) : () => decided(now, told);
  });
}
