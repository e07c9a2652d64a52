// Shows the OpenAPI document beside this page. Texts go into the page as text
// only, never as markup.
"use strict";

const VERBS = ["get", "put", "post", "patch", "delete"];
const DEPTH_MAX = 4;
const content = document.getElementById("content");
const index = document.getElementById("index");
const filter = document.getElementById("filter");
const found = document.getElementById("found");
const entries = [];
let schemas = {};
let examples = 0;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

// A description: code between backticks, and lines that begin with a dash.
function prose(text) {
  const box = element("div");
  let list;
  for (const line of (text || "").split("\n")) {
    const item = line.startsWith("- ");
    const part = element(item ? "li" : "p");
    (item ? line.slice(2) : line).split("`").forEach((piece, place) => {
      part.append(place % 2 ? element("code", {}, piece) : piece);
    });
    if (item) {
      if (!list) box.append((list = element("ul")));
      list.append(part);
    } else if (line) {
      list = undefined;
      box.append(part);
    }
  }
  return box;
}

function named(schema) {
  return schema && schema.$ref ? schema.$ref.split("/").pop() : undefined;
}

// A type in words, with links to the schemas that it names.
function type(schema) {
  const name = named(schema);
  if (name) return element("a", { href: "#schema-" + name }, name);
  if (schema.oneOf) {
    const parts = schema.oneOf.flatMap((each, place) => (place ? [" or ", type(each)] : [type(each)]));
    return element("span", {}, ...parts);
  }
  if (schema.type === "array") return element("span", {}, "list of ", type(schema.items));
  if (schema.type === "object" && schema.additionalProperties) {
    return element("span", {}, "map to ", type(schema.additionalProperties));
  }
  const format = schema.format || schema.contentEncoding;
  return element("span", {}, (schema.type || "any JSON") + (format ? " (" + format + ")" : ""));
}

function table(caption, columns, rows) {
  const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col" }, column)));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell))));
  const grid = element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, grid);
}

function properties(schema, caption) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([name, property]) => [
    element("span", {}, element("code", {}, name),
      required.has(name) ? element("span", { class: "quiet" }, " always") : ""),
    type(property),
    prose(property.description),
  ]);
  return rows.length ? table(caption, ["Field", "Type", "Description"], rows) : element("p", {}, "No fields.");
}

function shown(schema, caption) {
  const target = schemas[named(schema)] || schema;
  const link = element("p", {}, type(schema));
  return target.properties ? element("div", {}, named(schema) ? link : "", properties(target, caption)) : link;
}

function sample(schema, name, depth) {
  const reference = named(schema);
  if (reference) return depth > DEPTH_MAX ? {} : sample(schemas[reference] || {}, name, depth + 1);
  if (schema.oneOf) return sample(schema.oneOf[0], name, depth);
  if (schema.enum) return schema.enum[0];
  switch (schema.type) {
    case "integer":
    case "number":
      return 0;
    case "boolean":
      return true;
    case "array":
      return [sample(schema.items || {}, name, depth + 1)];
    case "string":
      return "<" + name + ">";
    case "object":
      return Object.fromEntries(Object.entries(schema.properties || {})
        .map(([key, value]) => [key, sample(value, key, depth + 1)]));
    default:
      return {};
  }
}

// One word for a POSIX shell.
function quoted(text) {
  return "'" + text.replaceAll("'", "'\\''") + "'";
}

function curl(verb, path, operation) {
  const route = path.replace(/\{(\w+)\}/g, (_, name) => name.toUpperCase());
  const lines = ["curl " + (verb === "get" ? "" : "-X " + verb.toUpperCase() + " ") + quoted(location.origin + route)];
  if ((operation.security || []).length) lines.push('-H "Authorization: Bearer $BAILIWICK_AUTH_TOKEN"');
  const body = operation.requestBody && operation.requestBody.content["application/json"];
  if (body) {
    lines.push("-H 'Content-Type: application/json'");
    lines.push("-d " + quoted(JSON.stringify(sample(body.schema, "value", 0), null, 2)));
  }
  const streams = Object.values(operation.responses)
    .some((answer) => answer.content && answer.content["application/x-ndjson"]);
  if (streams) lines.push("--no-buffer");
  return lines.join(" \\\n  ");
}

function example(text) {
  const id = "example-" + (examples += 1);
  const button = element("button", { type: "button", "aria-describedby": id }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(id));
      button.textContent = "Selected: copy it with the keyboard";
    }
  });
  return element("div", {}, element("pre", { id, tabindex: "0" }, element("code", {}, text)), element("p", {}, button));
}

function access(operation) {
  if (operation["x-required-permission"]) {
    return element("p", {}, "Needs the permission ", element("code", {}, operation["x-required-permission"]), ".");
  }
  const words = {
    public: "Open to everybody, without credentials.",
    authenticated: "Open to every caller with a good credential.",
    root: "Only for root.",
    node: "Only for registered nodes.",
  };
  return element("p", {}, words[operation["x-access"]] || "Open to nobody.");
}

function answers(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => {
    const target = answer.$ref ? { description: "Any other refusal or failure.", content: {} } : answer;
    const types = Object.entries(target.content || {}).map(([media, of]) =>
      element("p", {}, element("code", {}, media), " ", type(of.schema)));
    if (answer.$ref) types.push(element("p", {}, type({ $ref: "#/components/schemas/Error" })));
    return [status, element("div", {}, ...types), prose(target.description)];
  });
  return table("Answers", ["Status", "Body", "Description"], rows);
}

function call(verb, path, operation) {
  const body = element("div", {}, prose(operation.description), access(operation));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const rows = parameters.map((parameter) => [
      element("code", {}, parameter.name),
      parameter.in,
      type(parameter.schema),
      prose(parameter.description),
    ]);
    body.append(element("h4", {}, "Parameters"), table("Parameters", ["Name", "In", "Type", "Description"], rows));
  }
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  if (content) body.append(element("h4", {}, "Body"), shown(content.schema, "Body"));
  body.append(element("h4", {}, "Answers"), answers(operation));
  body.append(element("h4", {}, "Example"), example(curl(verb, path, operation)));
  const heading = element("h3", {},
    element("span", { class: "verb " + verb }, verb.toUpperCase()), " ", element("code", {}, path), " ",
    element("span", { class: "quiet" }, operation.summary));
  return element("details", { id: operation.operationId }, element("summary", {}, heading), body);
}

// One entry: its part of the page and its line in the index.
function enter(section, list, part, label, words) {
  const line = element("li", {}, element("a", { href: "#" + part.id }, label));
  section.append(part);
  list.append(line);
  entries.push({ part, line, words: words.join(" ").toLowerCase(), section, list });
}

function group(title, description) {
  const id = "group-" + title;
  const section = element("section", { "aria-labelledby": id }, element("h2", { id }, title), prose(description));
  const list = element("ul");
  const block = element("div", {}, element("h2", {}, title), list);
  list.block = block;
  index.append(block);
  content.append(section);
  return [section, list];
}

function render(document_) {
  schemas = document_.components.schemas;
  document.getElementById("version").textContent = document_.info.version;
  const groups = new Map(document_.tags.map((tag) => [tag.name, group(tag.name, tag.description)]));
  for (const [path, item] of Object.entries(document_.paths)) {
    for (const verb of VERBS.filter((each) => item[each])) {
      const operation = item[verb];
      const [section, list] = groups.get(operation.tags[0]);
      const permission = operation["x-required-permission"] || operation["x-access"] || "";
      enter(section, list, call(verb, path, operation), operation.operationId,
        [operation.operationId, verb, path, operation.description, permission]);
    }
  }
  const [section, list] = group("Schemas", "What bodies and answers hold.");
  for (const [name, schema] of Object.entries(schemas)) {
    const body = element("div", {}, prose(schema.description), schema.enum ? "" : properties(schema, name));
    const part = element("details", { id: "schema-" + name },
      element("summary", {}, element("h3", {}, element("code", {}, name))), body);
    enter(section, list, part, name, [name, schema.description || ""]);
  }
}

function narrow() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const entry of entries) {
    const hit = words.every((word) => entry.words.includes(word));
    entry.part.hidden = entry.line.hidden = !hit;
    count += hit;
  }
  for (const { section, list } of entries) {
    const empty = [...list.children].every((line) => line.hidden);
    section.hidden = list.block.hidden = empty;
  }
  found.textContent = words.length ? count + " found" : "";
}

// A link to a closed or hidden part opens it.
function reveal() {
  const part = document.getElementById(location.hash.slice(1));
  if (!part || part.localName !== "details") return;
  if (part.hidden) {
    filter.value = "";
    narrow();
  }
  part.open = true;
  part.scrollIntoView();
  part.querySelector("summary").focus({ preventScroll: true });
}

async function start() {
  const state = document.getElementById("state");
  try {
    const answer = await fetch("openapi.json", { credentials: "omit" });
    if (!answer.ok) throw new Error("the server answered " + answer.status);
    render(await answer.json());
    state.remove();
    reveal();
  } catch (error) {
    state.setAttribute("role", "alert");
    state.className = "fault";
    state.textContent = "The calls could not be loaded: " + error.message + ". Reload the page to try again.";
  }
}

filter.addEventListener("input", narrow);
addEventListener("hashchange", reveal);
addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    filter.focus();
  } else if (event.key === "Escape" && event.target === filter) {
    filter.value = "";
    narrow();
  }
});
for (const [id, open] of [["open", true], ["close", false]]) {
  document.getElementById(id).addEventListener("click", () => {
    for (const { part } of entries) if (!part.hidden) part.open = open;
  });
}
start();
