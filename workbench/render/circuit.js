// The interactive circuit: which lines are shown, and what a chosen one says. Runs inside a sandboxed frame.
// `lines` of a scene are strongest first: [edge, position | -1, weight, unit, [units fed], start node, end node, whether it
// enters at k or v; unit 0 is input and 1 is logits. `hops`: [key node, query node]. Elements are in document order.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const state = { kind: "component", pinned: null };
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

const signed = (x) => (x === null ? "no score" : (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(3));
const token = (p) => data.tokens[p] === undefined ? String(p) : data.tokens[p];

function name(line) {
  const edge = data.edges[line[0]];
  return edge.w + " → " + edge.r + (line[1] < 0 ? "" : " at " + token(line[1]) + " (" + line[1] + ")");
}

for (const kind of Object.keys(data.scenes)) {
  const box = find(kind), scene = data.scenes[kind];
  scenes[kind] = {
    ...scene, k: scene.start, paths: [...box.querySelectorAll("path.e:not(.y)")],
    arcs: [...box.querySelectorAll("path.h:not(.y)")], boxes: [...box.querySelectorAll("g.n")],
  };
  scenes[kind].paths.forEach((path, i) => {
    const line = scene.lines[i], hit = path.cloneNode(false);
    hit.setAttribute("class", "hit");
    hit.removeAttribute("stroke-width");
    path.setAttribute("tabindex", "0");
    path.setAttribute("role", "button");
    path.setAttribute("aria-label", name(line) + ", score " + signed(line[2]));
    path.before(hit);
    path.hit = hit;
    for (const target of [path, hit]) {
      target.addEventListener("mouseenter", () => light(path, line));
      target.addEventListener("mouseleave", () => light(null));
      target.addEventListener("click", (event) => { pin(path, line); event.stopPropagation(); });
    }
    path.addEventListener("focus", () => light(path, line));
    path.addEventListener("blur", () => light(null));
    path.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { pin(path, line); event.preventDefault(); }
    });
  });
}

function light(path, line) {
  document.querySelectorAll("path.on").forEach((other) => other.classList.remove("on"));
  if (state.pinned) state.pinned[0].classList.add("on");
  if (path) path.classList.add("on");
  if (!state.pinned) describe(path && line, false);
}

function pin(path, line) {
  state.pinned = path && !(state.pinned && state.pinned[0] === path) ? [path, line] : null;
  light(null);
  if (state.pinned) describe(line, true);
}

function describe(line, full) {
  const panel = find("detail");
  panel.replaceChildren();
  if (!line) {
    make("p", "Point at an edge, or reach it with Tab; click or Enter keeps it, Escape lets go.", panel, "hint");
  } else {
    const edge = data.edges[line[0]];
    make("h2", name(line), panel);
    make("p", "score " + signed(edge.s) + (line[1] < 0 ? "" : "; on the example prompt, at this position, " + signed(line[2])), panel);
    const sides = make("div", null, panel, "sides");
    if (!full) return;
    if (edge.p.some((x) => x)) bars(edge.p, sides);
    edge.h.filter((head) => data.patterns[head]).forEach((head) => heat(head, sides));
  }
  report();
}

function bars(values, parent) {
  const table = make("table", null, parent), most = Math.max(...values.map(Math.abs));
  make("caption", "score by position, on the example prompt", table);
  values.forEach((value, p) => {
    if (Math.abs(value) < most * 0.02) return;
    const row = make("tr", null, table);
    make("th", token(p), row);
    const bar = make("span", null, make("td", null, row), value < 0 ? "bar minus" : "bar");
    bar.style.width = (80 * Math.abs(value)) / most + "px";
    make("td", signed(value), row, "num");
  });
}

function heat(head, parent) {
  const bytes = atob(data.patterns[head]), n = Math.round(Math.sqrt(bytes.length));
  const figure = make("figure", null, parent), canvas = make("canvas", null, figure);
  const caption = make("figcaption", "attention of a" + head + ": rows are query positions", figure);
  const size = Math.max(2, Math.min(14, Math.floor(200 / n)));
  canvas.width = canvas.height = n * size;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", caption.textContent);
  const pen = canvas.getContext("2d");
  for (let i = 0; i < n * n; i++) {
    const share = bytes.charCodeAt(i) / 255, q = Math.floor(i / n), k = i % n;
    pen.fillStyle = k > q ? "#e8ebef" : "rgb(" + [35, 105, 176].map((c) => Math.round(255 - (255 - c) * share)).join() + ")";
    pen.fillRect(k * size, q * size, size - (size > 5 ? 1 : 0), size - (size > 5 ? 1 : 0));
  }
  canvas.addEventListener("mousemove", (event) => {
    const k = Math.floor(event.offsetX / size), q = Math.floor(event.offsetY / size), i = q * n + k;
    if (i < bytes.length && k < n) caption.textContent = token(q) + " → " + token(k) + ": " + (bytes.charCodeAt(i) / 255).toFixed(2);
  });
}

function show() {
  const scene = scenes[state.kind], considered = scene.lines.slice(0, scene.k), kept = new Set(alive(considered));
  const nodes = new Set(), keys = new Set(), queries = new Set();
  const hide = (element, hidden) => { element.style.display = hidden ? "none" : ""; };
  scene.lines.forEach((line, i) => {
    hide(scene.paths[i], !kept.has(line));
    hide(scene.paths[i].hit, !kept.has(line));
    if (!kept.has(line)) return;
    nodes.add(line[5]).add(line[6]);
    queries.add(line[5]);
    if (line[7]) keys.add(line[6]);
  });
  scene.boxes.forEach((box, i) => hide(box, !nodes.has(i)));
  scene.arcs.forEach((arc, i) => hide(arc, !keys.has(scene.hops[i][0]) || !queries.has(scene.hops[i][1])));
  for (const kind of Object.keys(scenes)) {
    hide(find(kind), kind !== state.kind);
    find("to-" + kind).setAttribute("aria-pressed", String(kind === state.kind));
  }
  const slider = find("top");
  slider.max = scene.lines.length;
  slider.value = scene.k;
  slider.disabled = !data.scored || scene.lines.length < 2;
  const dead = considered.length - kept.size, what = state.kind === "component" ? " edges" : " pairs of edge and position";
  find("count").textContent = kept.size + " of " + scene.known + what + (dead ? " (" + dead + (dead === 1 ? " dead end" : " dead ends") + " left out)" : "");
  state.shown = kept.size;
  pin(null);
}

function report() {
  parent.postMessage({ height: Math.ceil(document.body.getBoundingClientRect().height), edges: state.shown }, "*");
}

find("top").addEventListener("input", (event) => { scenes[state.kind].k = Number(event.target.value); show(); });
for (const kind of ["component", "position"]) {
  if (scenes[kind]) find("to-" + kind).addEventListener("click", () => { state.kind = kind; show(); });
  else find("to-" + kind).disabled = true;
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") pin(null); });
document.addEventListener("click", () => pin(null));
addEventListener("resize", report);
show();
