// Asks once with OpenAI's SDK for Node. Its argument is the folder that holds node_modules; standard input is
// {url, key, retries, chat | embed}, standard output {answer} or {chunks} or {error, status}.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const OpenAI = createRequire(path.join(process.argv[2], "package.json"))("openai");

async function main() {
  const told = JSON.parse(fs.readFileSync(0, "utf8"));
  const client = new OpenAI({ baseURL: told.url, apiKey: told.key, maxRetries: told.retries });
  try {
    if (told.embed) return { answer: await client.embeddings.create(told.embed) };
    const answer = await client.chat.completions.create(told.chat);
    if (!told.chat.stream) return { answer };
    const chunks = [];
    for await (const chunk of answer) chunks.push(chunk);
    return { chunks };
  } catch (error) {
    if (!(error instanceof OpenAI.APIError)) throw error;
    return { error: error.constructor.name, status: error.status };
  }
}

main().then((told) => console.log(JSON.stringify(told)));
