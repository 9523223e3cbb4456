// All disks, and what protects each.

function coverage(told) {
  const bare = told.resources.filter((one) => one.kind !== "image" && isCounted(one) && !one.newest_good_time).length;
  const ofWhat = told.resources.length < told.total_count ? ` of the ${told.resources.length} shown` : "";
  const disks = told.resources.filter((one) => one.kind !== "image");
  const title = bare ? `${count(bare, "disk")}${ofWhat} without a good restore point`
    : disks.length && disks.every(isCounted) ? `Every disk${ofWhat} has a good restore point`
      : disks.length ? "Not every disk could be looked at" : "No disks";
  fill(
    make("h1", title),
    make("p", [`${told.resources.length} of ${told.total_count} in zone ${told.zone}`, told.filter].filter(Boolean).join(" · "), "soft"),
    make("ul", told.resources.map((one) => make("li", drawDisk(one, told))), "disks"),
    ...hint(told),
  );
}

const isCounted = (one) => one.good_count !== undefined;

function drawDisk(one, told) {
  const facts = [`${one.kind} · ${size(one.disk_bytes)} · ${one.resource_id}`];
  if (one.stored_bytes) facts.push(`${size(one.stored_bytes)} stored`);
  const parts = [make("b", one.name || one.resource_id), make("small", facts.join(" · "))];
  for (const [words, kind] of findings(one)) parts.push(make("span", `${words}\n`, kind), document.createElement("br"));
  if (one.kind === "image") return make("div", parts, "disk");
  return button(parts, "disk", () => look("show_chain", { resource_id: one.resource_id, zone: told.zone }, told));
}

function findings(one) {
  if (one.kind === "image") return [["an exported image", "soft"]];
  const found = [];
  if (one.problem) found.push([one.problem, "bad"]);
  if (!isCounted(one)) found.push(["its restore points could not be counted", "warn"]);
  else if (one.newest_good_time) found.push([`newest good ${age(one.newest_good_time)}, ${one.good_count} in all`, "good"]);
  else found.push(["no good restore point", "bad"]);
  if (one.verified_at) found.push([`verified ${age(one.verified_at)}`, "good"]);
  if (one.damaged_count) found.push([`${one.damaged_count} cannot be restored`, "bad"]);
  if (one.fuzzy_count) found.push([`${one.fuzzy_count} fuzzy`, "warn"]);
  if (one.held_by) found.push([`in use: ${one.held_by}`, "soft"]);
  for (const job of one.running || []) found.push([job, "mark"]);
  return found;
}

async function look(name, args, before) {
  const mine = ++view;
  const back = button("← All disks", "button", () => { view += 1; coverage(before); });
  try {
    const result = await ask("tools/call", { name, arguments: args });
    if (mine !== view) return;
    if (result.isError) return fill(back, ...failed(result));
    await points(result.structuredContent, result._meta);
    if (mine === view) card.prepend(back);
  } catch (error) {
    if (mine === view) fill(back, make("p", String(error.message).slice(0, 500), "bad"));
  }
}
