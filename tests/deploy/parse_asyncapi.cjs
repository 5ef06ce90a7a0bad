// Prints what AsyncAPI's own parser makes of the document: node parse_asyncapi.cjs NODE_MODULES FILE
const [modules, file] = process.argv.slice(2);
const { Parser } = require(modules + "/@asyncapi/parser");
const text = require("fs").readFileSync(file, "utf8");

new Parser().parse(text, { source: file }).then(({ document, diagnostics }) => {
  const channels = document ? document.channels().all() : [];
  const operations = document ? document.operations().all() : [];
  console.log(JSON.stringify({
    diagnostics: diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path })),
    channels: Object.fromEntries(channels.map((channel) => [channel.id(), channel.address()])),
    operations: Object.fromEntries(operations.map((operation) => [operation.id(), operation.action()])),
  }));
});
