// Elements and words. What comes from the server becomes text and nothing else.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, content = [], kind = "") {
  const one = document.createElement(tag);
  one.append(...[content].flat());
  if (kind) one.className = kind;
  return one;
}

function button(content, kind, act) {
  const one = make("button", content, kind);
  one.type = "button";
  one.addEventListener("click", act);
  return one;
}

function draw(tag, marks, ...parts) {
  const one = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(marks)) one.setAttribute(name, value);
  one.append(...parts);
  return one;
}

const picture = (marks, ...parts) => draw("svg", { "aria-hidden": "true", ...marks }, ...parts);

function size(bytes) {
  let left = Number(bytes) || 0;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  while (left >= 1024 && units.length > 1) {
    left /= 1024;
    units.shift();
  }
  return `${units[0] === "bytes" || left >= 100 ? Math.round(left) : left.toFixed(1)} ${units[0]}`;
}

function when(text) {
  const moment = new Date(text);
  return isNaN(moment) ? "time unknown" : moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

function age(text) {
  const minutes = (Date.now() - new Date(text)) / 60000;
  if (isNaN(minutes)) return "time unknown";
  const span = Math.abs(minutes);
  const words = span < 120 ? `${Math.floor(span)} min` : span < 2880 ? `${Math.floor(span / 60)} h` : `${Math.floor(span / 1440)} days`;
  if (minutes < -5) return `${words} AHEAD of this clock`;
  return minutes < 1 ? "just now" : `${words} ago`;
}

const count = (number, noun) => `${number.toLocaleString()} ${noun}${number === 1 ? "" : "s"}`;

const hint = (told) => (told.hint ? [make("p", told.hint, "soft")] : []);
