// Says which texts a schema takes, with ajv in strict mode. Prints a JSON list of true and false.
const Ajv = require("ajv");
const { readFileSync } = require("fs");

const { schema, protocol, texts } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const ajv = new Ajv({ strict: true, strictRequired: false, strictTypes: true, allowUnionTypes: true });
// Words for editors, which draft-07 does not have.
ajv.addVocabulary([
  "defaultSnippets",
  "enumDescriptions",
  "markdownDescription",
  "markdownEnumDescriptions",
  "patternErrorMessage",
]);
const validate = ajv.compile(schema);
ajv.compile(protocol);
console.log(JSON.stringify(texts.map((text) => validate(JSON.parse(text)))));
