// Prints what AsyncAPI's own parser makes of documents, a line of JSON each: node parse_asyncapi.cjs NODE_MODULES FILE…
const [modules, ...files] = process.argv.slice(2);
const { Parser } = require(modules + "/@asyncapi/parser");
const { readFileSync } = require("fs");

(async () => {
  for (const file of files) {
    const { document, diagnostics } = await new Parser().parse(readFileSync(file, "utf8"), { source: file });
    const channels = document ? document.channels().all() : [];
    const operations = document ? document.operations().all() : [];
    console.log(JSON.stringify({
      diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path })),
      channels: Object.fromEntries(channels.map((channel) => [channel.id(), channel.address()])),
      operations: Object.fromEntries(operations.map((operation) => [operation.id(), operation.action()])),
    }));
  }
})();
