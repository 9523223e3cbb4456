// The restore points of a disk: a line of time, and each chain as a tree.

const WORTH = {
  good: ["good", "good"],
  fuzzy: ["fuzzy: may be a mixture", "warn"],
  damaged: ["damaged", "bad"],
  unsound: ["builds on what cannot be restored", "bad"],
  unknown: ["what it builds on is not shown", "warn"],
};

function worth(one) {
  if (one.status !== "available") return [one.status, "warn"];
  if (one.worth === "good" && one.verified_at) return [`verified ${age(one.verified_at)}`, "good"];
  return WORTH[one.worth] || WORTH.unknown;
}

async function points(told, meta) {
  const nodes = meta?.nodes || [];
  const all = { ...told, nodes, total_count: meta?.total_count ?? nodes.length };
  if (all.total_count <= nodes.length || !host.hostCapabilities?.serverResources) return drawPoints(all);
  drawPoints(all);
  const mine = view;
  try {
    const whole = await read(`points://${encodeURIComponent(told.zone)}/${encodeURIComponent(told.resource_id)}`);
    if (mine === view) drawPoints({ ...all, ...whole });
  } catch { /* the newest stand there already, and how many there are */ }
}

function drawPoints(told) {
  const { nodes } = told;
  const chains = Map.groupBy ? Map.groupBy(nodes, rootOf) : groupBy(nodes, rootOf);
  const rows = new Map();
  const most = Math.max(1, ...nodes.map((one) => one.stored_bytes));
  const shown = nodes.length < told.total_count ? `The newest ${nodes.length} of ` : "";
  const lists = [...chains.values()].map((chain) => drawChain(chain, most, rows, told)).reverse();
  if (lists.length && (nodes.length <= 40 || lists.length === 1)) lists.forEach((one) => { one.open = true; });
  else if (lists.length) lists[0].open = true;
  fill(
    make("h1", told.resource_name || told.resource_id),
    make("p", `${shown}${count(told.total_count, "restore point")}, ${size(told.stored_bytes)} stored · zone ${told.zone}`, "soft"),
    ...timeLine(nodes),
    ...lists,
    ...hint(told),
  );
}

const rootOf = (one) => one.root_id || one.snapshot_id;

function groupBy(items, key) {
  const groups = new Map();
  for (const one of items) groups.set(key(one), [...(groups.get(key(one)) || []), one]);
  return groups;
}

function timeLine(nodes) {
  const times = nodes.map((one) => Date.parse(one.snapshot_time)).filter((one) => !isNaN(one));
  if (times.length < 2) return [];
  const first = Math.min(...times);
  const span = Math.max(...times) - first || 1;
  const dots = nodes.filter((one) => Date.parse(one.snapshot_time)).map((one) => draw("rect", {
    class: `dot ${worth(one)[1]}`,
    x: 2 + 994 * (Date.parse(one.snapshot_time) - first) / span,
    y: one.type === "full" ? 4 : 10,
    width: 4,
    height: one.type === "full" ? 26 : 14,
  }));
  const axis = draw("line", { class: "axis", x1: 0, x2: 1000, y1: 17, y2: 17 });
  return [
    picture({ class: "line", viewBox: "0 0 1000 34", preserveAspectRatio: "none" }, axis, ...dots),
    make("p", [make("small", when(first)), make("small", when(first + span))], "ends"),
  ];
}

function drawChain(chain, most, rows, told) {
  const parents = new Set(chain.map((one) => one.parent_id));
  const items = chain.map((one) => {
    const item = make("li", drawRow(one, most, parents.has(one.snapshot_id), () => choose(one, chain, rows, told)));
    rows.set(one.snapshot_id, item);
    return item;
  });
  const times = chain.map((one) => one.snapshot_time).sort();
  const bad = chain.filter((one) => worth(one)[1] === "bad").length;
  const parts = [
    `${when(times[0])} to ${when(times[times.length - 1])}`,
    count(chain.length, "restore point"),
    size(chain.reduce((sum, one) => sum + one.stored_bytes, 0)),
    ...(bad ? [`${bad} cannot be restored`] : []),
  ];
  return make("details", [make("summary", parts.join(" · ")), make("ul", items)]);
}

function drawRow(one, most, hasChildren, act) {
  const [words, kind] = worth(one);
  const share = Math.max(one.stored_bytes ? 2 : 0, 64 * one.stored_bytes / most);
  const bar = picture({ class: "bar", viewBox: "0 0 64 4" }, draw("rect", { width: 64, height: 4 }), draw("rect", { class: "share", width: share, height: 4 }));
  const facts = [when(one.snapshot_time), one.type, ...(one.is_head ? ["the disk grew from here"] : [])].join(" · ");
  const row = button([
    branch(one, kind, hasChildren),
    make("span", [make("b", one.name || one.snapshot_id), make("small", facts)]),
    make("span", [make("span", size(one.stored_bytes)), bar, make("small", words, kind)], "worth"),
  ], "row", act);
  row.setAttribute("aria-expanded", "false");
  return row;
}

// `art` is two characters a column, as in the tool's text: a line that goes on, or where this branch leaves it. The lines are
// longer than any row, which cuts them off.
function branch(one, kind, hasChildren) {
  const columns = (one.art || "").match(/../gu) || [];
  const at = 8 + 14 * columns.length;
  const lines = columns.map((column, place) => `M${8 + 14 * place} -200V244${column[0] === "├" ? "m0 -222h14" : ""}`);
  if (one.depth && columns.at(-1)?.[0] !== "├") lines.push(`M${at} -200V22`);
  if (hasChildren) lines.push(`M${at} 22V244`);
  return picture(
    { class: `branch ${kind}`, width: at + 8, height: 44 },
    draw("path", { d: lines.join("") || "M0 0" }),
    draw("circle", { cx: at, cy: 22, r: 5, class: one.type === "full" ? "full" : "" }),
  );
}

// What a deletion of the chosen one would take, and what a roll-back to it would lose

function choose(one, chain, rows, told) {
  const row = rows.get(one.snapshot_id).firstChild;
  const wasChosen = row.getAttribute("aria-expanded") === "true";
  card.querySelectorAll(".row").forEach((other) => {
    other.classList.remove("lost");
    other.setAttribute("aria-expanded", "false");
  });
  card.querySelectorAll("li > .note").forEach((note) => note.remove());
  if (wasChosen) return;
  const lost = below(one, chain);
  lost.forEach((id) => rows.get(id).firstChild.classList.add("lost"));
  row.setAttribute("aria-expanded", "true");
  const freed = chain.filter((node) => lost.has(node.snapshot_id)).reduce((sum, node) => sum + node.stored_bytes, 0);
  const rest = told.total_count - lost.size;
  const note = make("div", [
    make("p", [make("strong", one.name || one.snapshot_id), ` · ${one.snapshot_id}`]),
    ...(one.consistency ? [make("p", one.consistency)] : []),
    make("p", `Deleting it would take ${count(lost.size, "restore point")}, marked red, and free ${size(freed)}; ${rest} would be left.`),
    make("p", `A roll-back to it would lose what was written to the disk since ${when(one.snapshot_time)}.`),
    make("p", "Neither happens here: the assistant has to ask for it, and a person has to agree to the exact plan.", "soft"),
  ], "note");
  row.after(note);
  news(`${count(lost.size, "restore point")} would be deleted with it.`);
}

function below(one, chain) {
  const known = new Set(chain.map((node) => node.snapshot_id));
  const above = (node) => (known.has(node.parent_id) ? node.parent_id : rootOf(node));
  const lost = new Set([one.snapshot_id]);
  let before = 0;
  while (lost.size > before) {
    before = lost.size;
    for (const node of chain) if (lost.has(above(node))) lost.add(node.snapshot_id);
  }
  return lost;
}
