// The host: JSON-RPC over messages between windows (MCP Apps, 2026-01-26). Only tools and resources that read are asked for.

const waiting = new Map();
let lastId = 0;
let host = {};

const post = (message) => parent.postMessage({ jsonrpc: "2.0", ...message }, "*");
const tell = (method, params) => post({ method, params });
const ASK_MS = 70000;

const ask = (method, params) => new Promise((resolve, reject) => {
  const id = ++lastId;
  waiting.set(id, { resolve, reject });
  setTimeout(() => { if (waiting.delete(id)) reject(new Error("The host does not answer.")); }, ASK_MS);
  post({ id, method, params });
});

async function read(uri) {
  const { contents } = await ask("resources/read", { uri });
  return JSON.parse(contents[0].text);
}

addEventListener("message", ({ source, data }) => {
  if (source !== parent || !data || data.jsonrpc !== "2.0") return;
  if (data.method === undefined) return answered(data);
  const act = Object.hasOwn(HEARD, data.method) ? HEARD[data.method] : null;
  if (act) act(data.params || {});
  if (data.id === undefined) return;
  if (act || data.method === "ping") post({ id: data.id, result: {} });
  else post({ id: data.id, error: { code: -32601, message: "This page does not know the method." } });
});

function answered({ id, result, error }) {
  const one = waiting.get(id);
  waiting.delete(id);
  if (!one) return;
  if (error) one.reject(new Error(error.message));
  else one.resolve(result);
}

async function connect() {
  host = (await ask("ui/initialize", {
    protocolVersion: "2026-01-26",
    appInfo: { name: "snapshot-mcp", version: "1" },
    appCapabilities: {},
  })) || {};
  dress(host.hostContext);
  tell("ui/notifications/initialized", {});
  new ResizeObserver(() => tell("ui/notifications/size-changed", {
    width: Math.ceil(document.documentElement.scrollWidth),
    height: Math.ceil(document.body.getBoundingClientRect().height),
  })).observe(document.body);
}

function dress(context) {
  if (["light", "dark"].includes(context?.theme)) document.documentElement.dataset.theme = context.theme;
}
