// Which picture belongs to a result. `view` counts what was shown: an answer that comes later than the next one is dropped.

const card = document.getElementById("card");
const MISSES = 5;
let view = 0;
let timer = 0;
let missed = 0;

const HEARD = {
  "ui/notifications/tool-input": () => {},
  "ui/notifications/tool-result": (result) => { missed = 0; show(result); },
  "ui/notifications/tool-cancelled": () => { view += 1; fill(make("h1", "Cancelled"), make("p", "The call was cancelled.", "soft")); },
  "ui/notifications/host-context-changed": dress,
  "ui/resource-teardown": () => { view += 1; clearTimeout(timer); },
};

function fill(...parts) {
  clearTimeout(timer);
  card.replaceChildren(...parts);
}

function news(words) {
  document.getElementById("news").textContent = words;
}

function show(result) {
  view += 1;
  news("");
  try {
    drawResult(result || {});
  } catch {
    failedToDraw();
  }
}

function drawResult(result) {
  const told = result.structuredContent;
  if (!told || result.isError) return fill(...failed(result));
  if (Array.isArray(told.lines)) return points(told, result._meta).catch(() => failedToDraw());
  if (Array.isArray(told.resources)) return coverage(told);
  if (Array.isArray(told.jobs)) return jobs(told);
  if (told.status !== undefined && told.message !== undefined) return decision(told);
  fill(make("h1", "Done"), ...hint(told));
}

function failedToDraw() {
  fill(make("h1", "It cannot be shown"), make("p", "The answer is not of the kind that this page knows.", "bad"));
}

function failed(result) {
  const words = (result.content || []).map((one) => one.text || "").join("\n").slice(0, 2000);
  return [make("h1", result.isError ? "It did not work" : "Answer"), make("p", words || "The answer has no text.", result.isError ? "bad" : "soft")];
}

// Look again a little later, while this view stands; `act` returns what to show, or nothing if that could not be found out
function again(act) {
  const mine = view;
  timer = setTimeout(async () => {
    let next = null;
    try { next = await act(); } catch { /* counted below */ }
    if (mine !== view) return;
    missed = next ? 0 : missed + 1;
    if (next) try { return next(); } catch { return failedToDraw(); }
    if (missed < MISSES) return again(act);
    card.append(make("p", "It could not be followed any longer; what stands above is what was last seen.", "warn"));
  }, POLL_MS);
}

connect().catch(() => {});
