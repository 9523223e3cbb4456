// A host that no one here wrote: the TypeScript client, over stdio. It lists the tools, backs a disk up and waits.
// argv: protocol mode, command and its arguments. It validates every structured result against the tool's output schema.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, command, ...args] = process.argv.slice(2);
const client = new Client({ name: "foreign", version: "1" }, { versionNegotiation: { mode } });
await client.connect(new StdioClientTransport({ command, args, env: process.env }));
const { tools } = await client.listTools();
const call = async (name, input, options) => {
  const result = await client.callTool({ name, arguments: input }, options);
  if (result.isError) throw new Error(JSON.stringify(result.content));
  return result.structuredContent;
};
const before = await call("list_snapshots", {});
const made = await call("create_snapshots", { resource_ids: ["big"], name: "from typescript" });
const progress = [];
let waited;
do {
  waited = await call("wait_for_job", { job_ids: [made.job_id], timeout_seconds: 25 }, { onprogress: (p) => progress.push(p.progress) });
} while (waited.outcome === "still_running");
const after = await call("list_snapshots", { resource_id: "big", verbose: true });
const chain = await call("show_chain", { resource_id: "big" });
const guarded = await call("delete_snapshot", { snapshot_id: after.snapshots[0].snapshot_id });
await client.close();
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), before, made, waited, after, chain, guarded, progress }));
