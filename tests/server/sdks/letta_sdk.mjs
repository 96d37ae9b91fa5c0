// Uses Letta's npm SDK as its users do, and prints what it saw as JSON.  Arguments: the server, a callback's address.

import { createRequire } from "node:module";

const require = createRequire(`${process.env.LETTA_NODE_SDK}/`);
const { Letta } = require("@letta-ai/letta-client");
const { VERSION: version } = require("@letta-ai/letta-client/version");

const [baseURL, callbackUrl] = process.argv.slice(2);
const client = new Letta({ baseURL, apiKey: "any" });

async function collected(pages) {
  const all = [];
  for await (const each of pages) all.push(each);
  return all;
}

async function when(id, isSo) {
  for (;;) {
    const job = await client.batches.retrieve(id);
    if (isSo(job)) return job;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function refusal(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, detail: error.error?.detail };
  }
}

const health = await client.health();
const models = (await client.models.list()).map((model) => model.handle);

const agent = await client.agents.create({
  name: "sums",
  model: "offline/rules",
  system: "Be brief.",
  tools: ["calculate"],
  memory_blocks: [{ label: "human", value: "Anna" }],
  tags: ["of node"],
});
const actor = await client.agents.create({ name: "actor", model: "offline/scripted", tags: ["of node", "actors"] });
const renamed = await client.agents.update(agent.id, { name: "other" });
const tagged = await collected(client.agents.list({ tags: ["of node"], order: "asc", limit: 1 }));

const asked = [1, 2, 3, 4].map((n) => ({ agent_id: agent.id, messages: [{ role: "user", content: `What is ${n} + 1?` }] }));
asked.push({ agent_id: actor.id, input: JSON.stringify({ script: [{ text: "spoken" }] }) });
const created = await client.batches.create({ requests: asked, callback_url: callbackUrl });
const job = await when(created.id, (job) => job.callback_sent_at !== null);
const oldestFirst = await collected(client.batches.messages.list(job.id, { limit: 3, order: "asc" }));
const newestFirst = await collected(client.batches.messages.list(job.id, { limit: 3 }));
const before = await collected(client.batches.messages.list(job.id, { limit: 2, order: "asc", before: oldestFirst[4].id }));
const ofActor = await collected(client.batches.messages.list(job.id, { agent_id: actor.id, limit: 1 }));
const canceledAfterItsEnd = await client.batches.cancel(job.id);
const unchanged = await client.batches.retrieve(job.id);

const never = { agent_id: actor.id, input: JSON.stringify({ script: [{ text: "too late", delay_s: 300 }] }) };
const running = await client.batches.create({ requests: [never, never] });
const canceled = await client.batches.cancel(running.id);
const stopped = await when(running.id, (job) => job.completed_at !== null);
const later = await collected(client.batches.list({ order: "asc", after: job.id, limit: 1 }));
const listed = await collected(client.batches.list({ limit: 1 }));

const answer = await client.agents.messages.create(agent.id, { input: "What is 4 * 5?" });
const streamed = await collected(
  await client.agents.messages.create(agent.id, { messages: [{ role: "user", content: "What is 4 * 5?" }], streaming: true }),
);
const said = await collected(client.agents.messages.list(agent.id, { limit: 3, order: "asc" }));

const refused = [
  await refusal(client.batches.create({ requests: [] })),
  await refusal(client.batches.create({ requests: [{ agent_id: "agent-of-nobody", input: "x" }] })),
  await refusal(client.batches.create({ requests: [{ agent_id: agent.id }] })),
  await refusal(client.batches.retrieve("batch-1")),
  await refusal(client.agents.messages.create("refused", { input: "x" })),
];

for (const { id } of [agent, actor]) await client.agents.delete(id);
refused.push(await refusal(client.agents.retrieve(agent.id)));

console.log(
  JSON.stringify({
    version,
    health,
    models,
    agent,
    renamed,
    tagged: tagged.map((each) => each.id),
    actor,
    created,
    job,
    oldestFirst,
    newestFirst: newestFirst.map((message) => message.id),
    before: before.map((message) => message.id),
    ofActor,
    canceledAfterItsEnd,
    unchanged,
    running,
    canceled,
    stopped,
    later: later.map((each) => each.id),
    listed: listed.map((each) => each.id),
    answer,
    streamed,
    said,
    refused,
  }),
);
