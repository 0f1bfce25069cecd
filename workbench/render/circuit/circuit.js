// The interactive circuit: which lines are shown, and what a chosen line or node says. Runs inside a sandboxed frame.
// `lines` of a scene are strongest first: [edge, position | -1, weight, unit, [units fed], start node, end node, whether it
// enters at k or v; unit 0 is input and 1 is logits. `hops`: [key node, query node]. Elements are in document order.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
// The position view first: it says where a head reads, and with it what kind of copying a circuit does.
const state = { kind: data.scenes["position-0"] ? "position" : "component", prompt: 0, pinned: null };
const scenes = {};

function make(tag, text, parent, style) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  if (style) element.className = style;
  parent.append(element);
  return element;
}

function alive(lines) {
  for (;;) {
    const entered = new Set([0]), read = new Set([1]);
    for (const line of lines) { read.add(line[3]); line[4].forEach((unit) => entered.add(unit)); }
    const kept = lines.filter((line) => entered.has(line[3]) && line[4].some((unit) => read.has(unit)));
    if (kept.length === lines.length) return kept;
    lines = kept;
  }
}

const place = (line) => line[0] + "@" + line[1];
const signed = (x) => (x === null ? "no score" : (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(3));
const between = (a, b) => "[" + signed(a) + ", " + signed(b) + "]";
const tokens = () => data.prompts[state.prompt];
const token = (p) => tokens()[p] === undefined ? String(p) : tokens()[p];
const sceneName = () => (state.kind === "component" ? "component" : "position-" + state.prompt);
const all = () => scenes[sceneName()];  // every line there is to show
const drawnName = () => sceneName() + (scenes[sceneName() + "-near"] && all().k <= scenes[sceneName() + "-near"].limit ? "-near" : "");
const scene = () => scenes[drawnName()];  // the picture that shows them

function name(line) {
  const edge = data.edges[line[0]];
  return edge.w + " → " + edge.r + (line[1] < 0 ? "" : " at " + token(line[1]) + " (" + line[1] + ")");
}

function nodeName(key) {
  const [node, at] = key.split("@");
  const shown = node.startsWith("kv") ? "key-value head " + node.slice(2) : node;
  return at === undefined ? shown : shown + " at " + token(Number(at)) + " (" + at + ")";
}

// A thing that can be pointed at, reached with Tab and kept: its element, its label, and what describes it.
function reachable(element, label, targets, describe, what) {
  element.describe = describe;
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", label);
  for (const target of targets) {
    target.addEventListener("mouseenter", () => light(element, describe));
    target.addEventListener("mouseleave", () => light(null));
    target.addEventListener("click", (event) => { pin(element, describe, what); event.stopPropagation(); });
  }
  element.addEventListener("focus", () => light(element, describe));
  element.addEventListener("blur", () => light(null));
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { pin(element, describe, what); event.preventDefault(); }
  });
}

for (const kind of Object.keys(data.scenes)) {
  const box = find(kind), made = data.scenes[kind];
  scenes[kind] = {
    ...made, k: made.start, svg: box.querySelector("svg"), paths: [...box.querySelectorAll("path.e:not(.y)")],
    arcs: [...box.querySelectorAll("path.h:not(.y)")], boxes: [...box.querySelectorAll("g.n")],
  };
  scenes[kind].paths.forEach((path, i) => {
    const line = made.lines[i], hit = path.cloneNode(false), score = ", score " + signed(line[2]);
    hit.setAttribute("class", "hit");
    hit.removeAttribute("stroke-width");
    path.before(hit);
    path.hit = hit;
    const prompt = state.prompt;
    state.prompt = kind.startsWith("component") ? 0 : Number(kind.split("-")[1]);
    path.linked = [scenes[kind].boxes[line[5]], scenes[kind].boxes[line[6]]];
    reachable(path, name(line) + score, [path, hit], (full) => describeLine(line, full), { line: place(line) });
    state.prompt = prompt;
  });
  scenes[kind].boxes.forEach((box, i) => {
    box.linked = [];
    made.lines.forEach((line, j) => {
      if (line[5] === i) box.linked.push(scenes[kind].paths[j], scenes[kind].boxes[line[6]]);
      if (line[6] === i) box.linked.push(scenes[kind].paths[j], scenes[kind].boxes[line[5]]);
    });
  });
  scenes[kind].boxes.forEach((box, i) => reachable(box, nodeName(made.nodes[i]), [box], (full) => describeNode(i, full), { node: made.nodes[i] }));
}

// What is pointed at or kept, with what it is joined to; all else is faded.
function light(element, describe) {
  document.querySelectorAll(".on,.near").forEach((other) => other.classList.remove("on", "near"));
  const chosen = [state.pinned && state.pinned[0], element].filter((one) => one);
  for (const one of chosen) {
    one.classList.add("on");
    one.linked.forEach((other) => other.classList.add("near"));
  }
  for (const name of Object.keys(scenes)) scenes[name].svg.classList.toggle("faded", chosen.length > 0);
  if (state.pinned) return;
  if (describe) say(describe, false); else say(null);
}

function pin(element, describe, what) {
  state.pinned = element && !(state.pinned && state.pinned[0] === element) ? [element, describe, what] : null;
  light(null);
  if (state.pinned) say(describe, true);
}

function say(describe, full) {
  const panel = find("detail");
  panel.replaceChildren();
  if (describe) describe(full);
  else make("p", "Point at an edge or a node, or move to it with Tab. Click it or press Enter to pin it, Escape to unpin it.", panel, "hint");
  report();
}

function describeLine(line, full) {
  const panel = find("detail"), edge = data.edges[line[0]];
  make("h2", name(line), panel);
  const interval = edge.i ? " " + between(...edge.i) : "";
  const here = line[1] < 0 ? "" : "; on this prompt, at this position, " + signed(line[2]);
  const side = edge.c === undefined ? "" : "; " + ["only in " + data.sides[0], "only in " + data.sides[1], "in both"][edge.c];
  make("p", "score " + signed(edge.s) + interval + here + side, panel);
  if (!full) return;
  const sides = make("div", null, panel, "sides"), values = edge.p[state.prompt] || [];
  if (values.some((x) => x !== 0)) {
    const most = Math.max(...values.map((x) => Math.abs(x || 0)));
    const rows = values.map((x, p) => [token(p) + " (" + p + ")", x]);
    bars("score by position on this prompt (at least 2 % of the largest)", rows.filter(([, x]) => x === null || (x && Math.abs(x) >= 0.02 * most)), sides);
  }
  edge.h.filter((head) => data.patterns[state.prompt][head]).forEach((head) => heat(head, sides));
}

function describeNode(i, full) {
  const panel = find("detail"), now = scene(), key = now.nodes[i];
  const shown = now.lines.filter((line, j) => now.paths[j].style.display !== "none");
  const into = shown.filter((line) => line[6] === i), out = shown.filter((line) => line[5] === i);
  make("h2", nodeName(key), panel);
  make("p", into.length + (into.length === 1 ? " edge enters, " : " edges enter, ") + out.length + " leave" + (out.length === 1 ? "s" : ""), panel);
  if (!full) return;
  const [node, where] = key.split("@");
  const direct = all().lines.find((line) => {
    const edge = data.edges[line[0]];
    return edge.w === node && edge.r === "logits" && (where === undefined || line[1] === Number(where));
  });
  if (direct) make("p", "directly into the logits: " + signed(direct[2]), panel);
  const sides = make("div", null, panel, "sides"), row = (line) => [name(line), line[2]];
  if (into.length) bars("incoming edges, strongest first", into.map(row), sides);
  if (out.length) bars("outgoing edges, strongest first", out.map(row), sides);
  const head = key.startsWith("a") ? key.slice(1).split("@")[0] : null;
  if (head && data.patterns[state.prompt][head]) {
    const at = where === undefined ? cells(head)[0] - 1 : Number(where);
    attended(head, at, sides);
    heat(head, sides);
  }
}

// Rows of (label, value), at most twelve of them; what is left out is said.
function bars(caption, rows, parent) {
  const table = make("table", null, parent), shown = rows.slice(0, 12);
  const most = Math.max(...shown.map(([, x]) => Math.abs(x || 0))) || 1;
  make("caption", caption, table);
  for (const [label, value] of shown) {
    const row = make("tr", null, table);
    make("th", label, row).title = label;
    const bar = make("span", null, make("td", null, row), value < 0 ? "bar minus" : "bar");
    bar.style.width = (80 * Math.abs(value || 0)) / most + "px";
    make("td", value === null ? "not measured" : signed(value), row, "num");
  }
  if (rows.length > shown.length) make("td", "and " + (rows.length - shown.length) + " more", make("tr", null, table)).colSpan = 3;
}

// A head's attention on the chosen prompt: how many tokens, and the weight of a cell, NaN where it was not measured.
function cells(head) {
  const bytes = atob(data.patterns[state.prompt][head]), n = Math.round(Math.sqrt(bytes.length));
  return [n, (q, k) => (bytes.charCodeAt(q * n + k) === 255 ? NaN : bytes.charCodeAt(q * n + k) / 254)];
}

const weight = (x) => (Number.isNaN(x) ? "not measured" : x.toFixed(2));

function attended(head, query, parent) {
  const [n, cell] = cells(head), table = make("table", null, parent);
  const known = [...Array(Math.min(query + 1, n)).keys()].filter((k) => !Number.isNaN(cell(query, k)));
  make("caption", "attends most from " + token(query) + " (" + query + ") to" + (known.length ? "" : ": not measured"), table);
  for (const k of known.sort((a, b) => cell(query, b) - cell(query, a)).slice(0, 5)) {
    const row = make("tr", null, table);
    make("th", token(k) + " (" + k + ")", row);
    make("span", null, make("td", null, row), "bar").style.width = 80 * cell(query, k) + "px";
    make("td", weight(cell(query, k)), row, "num");
  }
}

function heat(head, parent) {
  const [n, cell] = cells(head), figure = make("figure", null, parent), canvas = make("canvas", null, figure);
  const caption = make("figcaption", "attention of a" + head + ": rows are query positions", figure);
  const size = Math.max(2, Math.min(14, Math.floor(200 / n)));
  canvas.width = canvas.height = n * size;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption.textContent);
  const pen = canvas.getContext("2d");
  for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
    const share = cell(q, k);
    if (k <= q && Number.isNaN(share)) { hatch(pen, k * size, q * size, size); continue; }
    pen.fillStyle = k > q ? "#e8ebef" : "rgb(" + [35, 105, 176].map((c) => Math.round(255 - (255 - c) * share)).join() + ")";
    pen.fillRect(k * size, q * size, size - (size > 5 ? 1 : 0), size - (size > 5 ? 1 : 0));
  }
  canvas.addEventListener("mousemove", (event) => {
    const k = Math.floor(event.offsetX / size), q = Math.floor(event.offsetY / size);
    if (q < n && k < n) caption.textContent = token(q) + " → " + token(k) + ": " + weight(cell(q, k));
  });
}

function hatch(pen, x, y, size) {
  pen.fillStyle = "#e5e7eb";
  pen.fillRect(x, y, size, size);
  pen.strokeStyle = "#8b95a3";
  pen.beginPath();
  pen.moveTo(x, y + size);
  pen.lineTo(x + size, y);
  pen.stroke();
}

function filtered(line) {
  const edge = data.edges[line[0]], off = state.off;
  const sign = line[2] === null ? -1 : line[2] < 0 ? 1 : 0;
  return off.has("signs" + sign) || off.has("ports" + edge.t) || off.has("circuits" + edge.c);
}

function faithfulness(n) {
  if (!data.curve.length || state.kind !== "component") return "";
  const told = (row) => {
    const bounds = row[2] === null || row[3] === null ? "" : " [" + row[2].toFixed(2) + ", " + row[3].toFixed(2) + "]";
    return "of the " + row[0] + " strongest: " + row[1].toFixed(2) + bounds;
  };
  const below = data.curve.filter((row) => row[0] <= n).pop(), above = data.curve.find((row) => row[0] >= n);
  const rows = below && below[0] === n ? [below] : [below, above].filter((row) => row);
  return "faithfulness " + rows.map(told).join(", ");
}

function show() {
  const now = scene(), whole = all(), considered = whole.lines.slice(0, whole.k), complete = alive(considered);
  state.off = new Set([...document.querySelectorAll("[data-filter]:not(:checked)")].map((box) => box.dataset.filter + box.value));
  const kept = new Set(complete.filter((line) => !filtered(line)).map(place));
  const nodes = new Set(), keys = new Set(), queries = new Set();
  const hide = (element, hidden) => {  // only what changes is touched: a page of thousands of edges stays quick
    if (element.gone === hidden) return;
    element.gone = hidden;
    element.style.display = hidden ? "none" : "";
  };
  now.lines.forEach((line, i) => {
    const gone = !kept.has(place(line));
    hide(now.paths[i], gone);
    hide(now.paths[i].hit, gone);
    if (gone) return;
    nodes.add(line[5]).add(line[6]);
    queries.add(line[5]);
    if (line[7]) keys.add(line[6]);
  });
  now.boxes.forEach((box, i) => hide(box, !nodes.has(i)));
  now.arcs.forEach((arc, i) => hide(arc, !keys.has(now.hops[i][0]) || !queries.has(now.hops[i][1])));
  for (const kind of Object.keys(scenes)) hide(find(kind), kind !== drawnName());
  for (const kind of ["position", "component"]) find("to-" + kind).setAttribute("aria-pressed", String(kind === state.kind));
  const slider = find("top");
  slider.max = whole.lines.length;
  slider.value = whole.k;
  slider.disabled = !data.scored || whole.lines.length < 2;
  const dead = considered.length - complete.length, what = state.kind === "component" ? " edges" : " pairs of edge and position";
  const left = dead ? " (" + dead + (dead === 1 ? " dead end" : " dead ends") + " left out)" : "";
  find("count").textContent = kept.size + " of " + whole.known + what + left;
  find("faith").textContent = faithfulness(considered.length);
  find("to-position").disabled = !scenes["position-" + state.prompt];
  state.shown = kept.size;
  repin(now);
}

// What was kept stays kept where it is still shown, on another prompt too.
function repin(now) {
  const kept = state.pinned && state.pinned[2];
  const i = kept ? (kept.line ? now.lines.findIndex((line) => place(line) === kept.line) : now.nodes.indexOf(kept.node)) : -1;
  const element = i < 0 ? null : kept.line ? now.paths[i] : now.boxes[i];
  state.pinned = null;
  pin(element && element.style.display !== "none" ? element : null, element && element.describe, kept);
}

function report() {
  parent.postMessage({ height: Math.ceil(document.body.getBoundingClientRect().height), edges: state.shown }, "*");
}

// What is shown now as a picture of its own: without what is hidden, always on white.
function still() {
  const copy = scene().svg.cloneNode(true);
  copy.classList.remove("faded");
  for (const element of [...copy.querySelectorAll("*")]) {
    if (element.style.display === "none" || element.classList.contains("hit")) element.remove();
    else for (const name of ["tabindex", "role", "aria-label", "style"]) element.removeAttribute(name);
  }
  return new XMLSerializer().serializeToString(copy);
}

function save(address, ending) {
  const link = document.createElement("a");
  link.href = address;
  link.download = (data.title.replace(/[^\w-]+/g, "-").replace(/^-+|-+$/g, "") || "circuit").slice(0, 60) + "-" + state.kind + ending;
  document.body.append(link);
  link.click();
  link.remove();
}

function savePng(address) {
  const picture = new Image(), box = scene().svg.viewBox.baseVal;
  picture.onload = () => {
    const canvas = document.createElement("canvas"), scale = Math.min(2, 8000 / box.width, 8000 / box.height);
    canvas.width = Math.ceil(box.width * scale);
    canvas.height = Math.ceil(box.height * scale);
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    save(canvas.toDataURL("image/png"), ".png");
  };
  picture.src = address;
}

const asAddress = () => "data:image/svg+xml;charset=utf-8," + encodeURIComponent(still());

const isDark = () => document.documentElement.dataset.theme === "dark";

function paint(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  find("theme").setAttribute("aria-pressed", String(dark));
}

find("top").addEventListener("input", (event) => { all().k = Number(event.target.value); show(); });
for (const kind of ["position", "component"]) find("to-" + kind).addEventListener("click", () => { state.kind = kind; show(); });
document.querySelectorAll("[data-filter]").forEach((box) => box.addEventListener("change", show));
if (find("prompt")) {
  find("prompt").addEventListener("change", (event) => {
    state.prompt = Number(event.target.value);
    if (!all()) state.kind = "component";
    show();
  });
}
find("theme").addEventListener("click", () => paint(!isDark()));
find("save-svg").addEventListener("click", () => save(asAddress(), ".svg"));
find("save-png").addEventListener("click", () => savePng(asAddress()));
document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
document.addEventListener("click", (event) => { if (!event.target.closest("nav,#detail")) pin(null); });
addEventListener("resize", report);
const scheme = matchMedia("(prefers-color-scheme: dark)");  // a notebook's theme reaches its frames late, and may change
scheme.addEventListener("change", () => paint(scheme.matches));
paint(scheme.matches);
let before = false;  // paper is white
addEventListener("beforeprint", () => { before = isDark(); paint(false); });
addEventListener("afterprint", () => paint(before));
show();
