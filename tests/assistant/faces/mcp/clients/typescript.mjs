// The client of the TypeScript SDK 2.x; CLIENT is the path of its module. One JSON object each way.
const { Client, StreamableHTTPClientTransport } = await import(process.env.CLIENT);

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const task = JSON.parse(Buffer.concat(chunks).toString());

function connect(headers, options) {
  const client = new Client({ name: "test", version: "1" }, options);
  const transport = new StreamableHTTPClientTransport(new URL(task.url), { requestInit: { headers } });
  return client.connect(transport).then(() => client);
}

const client = await connect({ Authorization: `Bearer ${task.token}` }, { versionNegotiation: { mode: task.mode } });
const tools = (await client.listTools()).tools.map((tool) => tool.name);
const answers = [];
for (const [name, args] of task.calls) answers.push((await client.callTool({ name, arguments: args })).structuredContent);
const protocol = client.getNegotiatedProtocolVersion?.() ?? null;
await client.close();
const refused = await connect({}, {}).then(() => null, (error) => String(error));
console.log(JSON.stringify({ protocol, tools, answers, refused }));
process.exit(0);
