// A host page over the extension's own bridge, which checks every message against its schemas.

import { AppBridge, PostMessageTransport } from "@modelcontextprotocol/ext-apps/app-bridge";

const { able, theme, html } = window.told;
const frame = document.createElement("iframe");
frame.sandbox = "allow-scripts";
document.body.append(frame);

const bridge = new AppBridge(null, { name: "host", version: "1" }, able, { hostContext: { theme } });
bridge.oncalltool = ({ name, arguments: given }) => callTool(name, given);
bridge.onreadresource = ({ uri }) => readResource(uri);
bridge.onopenlink = async ({ url }) => { window.opened.push(url); return {}; };
bridge.onsizechange = (size) => window.sizes.push(size);
bridge.oninitialized = () => { window.isReady = true; };
bridge.onerror = (error) => console.error(`bridge: ${error}`);
window.opened = [];
window.sizes = [];
window.show = (result) => bridge.sendToolResult(result);
window.dress = (to) => bridge.setHostContext({ theme: to });

await bridge.connect(new PostMessageTransport(frame.contentWindow, frame.contentWindow));
frame.srcdoc = html;
