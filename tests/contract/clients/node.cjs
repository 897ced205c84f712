// The openai package for Node against a server: `node node.cjs <base url> <model> <model with tools>`.
const { OpenAI } = require("openai");

const [baseURL, model, callingModel] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];

function expect(condition, what) {
  if (!condition) throw new Error(what);
}

async function main() {
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
  expect(whole.usage.completion_tokens > 0, "usage");

  let text = "";
  let usage = null;
  const stream = await client.chat.completions.create({
    model, messages, max_tokens: 12, temperature: 0, stream: true, stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  expect(text === whole.choices[0].message.content, `the stream says ${text}`);
  expect(usage.total_tokens === whole.usage.total_tokens, "the stream's usage");

  const parameters = {
    type: "object", properties: { city: { enum: ["Paris"] } }, required: ["city"], additionalProperties: false,
  };
  const called = await client.chat.completions.create({
    model: callingModel, messages, max_tokens: 100,
    tools: [{ type: "function", function: { name: "weather", parameters } }], tool_choice: "required",
    parallel_tool_calls: false,
  });
  const [call] = called.choices[0].message.tool_calls;
  expect(JSON.parse(call.function.arguments).city === "Paris", "the call's arguments");

  const events = client.responses.stream({ model, input: "Hi", max_output_tokens: 8, temperature: 0 });
  let deltas = "";
  for await (const event of events) {
    if (event.type === "response.output_text.delta") deltas += event.delta;
  }
  expect(deltas.length > 0, "the response's text");

  try {
    await client.chat.completions.create({ model, messages, temperature: 9 });
    throw new Error("a wrong temperature was taken");
  } catch (error) {
    expect(error.status === 400 && error.param === "temperature", `the error is ${error}`);
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
