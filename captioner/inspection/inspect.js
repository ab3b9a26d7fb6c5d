// Shows one step of a trace at a time: the map over the picture, probabilities, gates.
const trace = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const percent = (logProb) => {
  const p = 100 * Math.exp(logProb);
  return p >= 0.05 ? `${p.toFixed(1)} %` : "0 %";
};

// An array of a site: values are stored as bytes, q / 127 * scale; steps before `first` have none.
const arrays = new Map(
  Object.entries(trace.sites).map(([name, site]) => {
    const bytes = Uint8Array.from(atob(site.bytes), (letter) => letter.charCodeAt(0));
    return [name, { ...site, values: new Int8Array(bytes.buffer) }];
  }),
);
let layer = trace.layers - 1;

function row(name, step) {
  const site = arrays.get(name);
  if (step < site.first) return null;
  const start = (step * trace.layers + layer) * trace.units;
  return Array.from(site.values.subarray(start, start + trace.units), (q) => (q / 127) * site.scale);
}

// Elements ---------------------------------------------------------------------------------------

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// The words --------------------------------------------------------------------------------------

const steps = trace.reads.length;
const label = (step) => (step === 0 ? trace.reads[0] : trace.words[step - 1]);
const buttons = trace.reads.map((_, step) => {
  const button = html("button", { type: "button", tabindex: "-1", "aria-pressed": "false" }, label(step));
  button.addEventListener("mouseenter", () => choose(step));
  button.addEventListener("focus", () => choose(step));
  button.addEventListener("click", () => choose(step));
  return button;
});
const words = document.getElementById("words");
words.append(...buttons);
words.addEventListener("keydown", (event) => {
  const moves = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  let target = null;
  if (event.key in moves) target = current + moves[event.key];
  if (event.key === "Home") target = 0;
  if (event.key === "End") target = steps - 1;
  if (target === null) return;
  event.preventDefault();
  const next = Math.min(steps - 1, Math.max(0, target));
  choose(next);
  buttons[next].focus();
});

function bar(fraction) {
  const rectangle = svg("rect", { width: (100 * fraction).toFixed(1), height: "10" });
  const box = { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" };
  return svg("svg", box, rectangle);
}

function showStep(step) {
  const panel = document.getElementById("step");
  if (step === 0) {
    const text = trace.reads[0] === "X_0" ? "Step 0 reads the image as X_0" : "Step 0: the state before <start>";
    panel.replaceChildren(html("h3", {}, text));
    return;
  }
  const entries = trace.alternatives[step - 1].map(([word, logProb]) => [word, logProb]);
  const emitted = trace.words[step - 1];
  if (!entries.some(([word]) => word === emitted)) entries.push([emitted, trace.log_probs[step - 1]]);
  if (!entries.some(([word]) => word === "<end>")) entries.push(["<end>", trace.end_log_probs[step - 1]]);
  const list = html("dl");
  for (const [word, logProb] of entries) {
    const name = html("dt", word === emitted ? { class: "emitted" } : {}, word);
    list.append(name, html("dd", {}, percent(logProb)), html("dd", {}, bar(Math.exp(logProb))));
  }
  const title = `Step ${step} reads “${trace.reads[step]}” and gives “${emitted}”`;
  panel.replaceChildren(html("h3", {}, title), list);
}

// The map over the picture -----------------------------------------------------------------------

const map = document.getElementById("map");
const looks = document.getElementById("looks");
const { attention, attribution } = trace;

// Darkens the picture where a value is small; values below 0 are as dark as 0.
function drawMap(values, side, largest) {
  const small = document.createElement("canvas");
  small.width = small.height = side;
  const pixels = new ImageData(side, side);
  values.forEach((value, place) => {
    pixels.data.set([0, 0, 0, Math.round(205 * (1 - Math.max(0, value) / largest))], 4 * place);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  map.width = map.height = 448;
  const context = map.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, 448, 448);
}

function showMap(step) {
  const shown = attention ?? attribution;
  if (!shown) {
    looks.textContent = "This decoder has no attention: it has the image once, before the words.";
    return;
  }
  map.hidden = step === 0;
  looks.textContent = "";
  if (step === 0) return;
  if (attention) showAttention(step);
  else showAttribution(step);
}

function showAttention(step) {
  const weights = attention.weights[step];
  const positions = attention.side * attention.side;
  drawMap(weights.slice(0, positions), attention.side, Math.max(...weights.slice(0, positions)));
  let entropy = 0;
  for (const weight of weights) if (weight > 0) entropy -= weight * Math.log(weight);
  const parts = [`looks at about ${Math.exp(entropy).toFixed(0)} of ${weights.length} positions; the brighter, the more`];
  if (weights.length > positions) parts.push(`the sentinel has ${(100 * weights[positions]).toFixed(0)} %`);
  if (attention.gate) parts.push(`β = ${attention.gate[step].toFixed(2)}`);
  looks.textContent = `“${label(step)}” ${parts.join("; ")}`;
}

function showAttribution(step) {
  const values = attribution.maps[step - 1];
  drawMap(values, attribution.side, Math.max(...attribution.maps.flat(), 1e-9)); // one scale for all words
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);
  const image = signed(values.reduce((sum, value) => sum + value, 0));
  const words = signed(attribution.words[step - 1]);
  looks.textContent =
    `No attention, so by ${attribution.method}: bright speaks for “${label(step)}”. ` +
    `Logit: image ${image}, words before ${words}`;
}

// The unrolled network ---------------------------------------------------------------------------

const WIDTH = 96, HEIGHT = 190;

function drawNetwork() {
  const marker = (number) =>
    svg("marker", { id: `head${number}`, viewBox: "0 0 8 8", refX: "7", refY: "4", markerWidth: "7", markerHeight: "7", orient: "auto" },
      svg("path", { d: "M0 0 L8 4 L0 8 z", class: `head${number}` }));
  const picture = svg("svg", { width: WIDTH * steps + 20, height: HEIGHT, role: "img" });
  const names = trace.arrows.length > 1 ? "two arrows, h and C" : "one arrow, h";
  picture.append(svg("title", {}, `${steps} steps of the ${trace.cell}, joined by ${names}`));
  picture.append(svg("defs", {}, marker(0), marker(1), marker(2)));
  for (let step = 0; step < steps; step++) {
    const x = 10 + WIDTH * step, middle = x + 36;
    const group = svg("g", { class: "step" });
    const reads = step > 0 || trace.reads[0] === "X_0"; // otherwise the image gives the first state
    group.append(svg("rect", { class: "cell", x, y: 66, width: 72, height: 58, rx: 8 }));
    const line = (x1, y1, x2, y2, kind, number) =>
      svg("line", { x1, y1, x2, y2, class: `arrow ${kind}`, "marker-end": `url(#head${number})` });
    if (reads) group.append(line(middle, 152, middle, 126, "through", 2));
    if (step > 0) group.append(line(middle, 64, middle, 40, "through", 2));
    const text = (y, value, kind) => svg("text", { x: middle, y, "text-anchor": "middle", class: kind }, value);
    const short = (word) => (word.length > 11 ? `${word.slice(0, 10)}…` : word);
    group.append(text(100, reads ? trace.cell.slice(0, 9) : trace.reads[0], "weak"));
    if (reads) group.append(text(168, short(trace.reads[step]), ""));
    if (reads) group.append(text(184, attention ? `x_${step}, image` : `x_${step}`, "weak"));
    if (step > 0) group.append(text(30, short(trace.words[step - 1]), ""), text(14, percent(trace.log_probs[step - 1]), "weak"));
    if (step + 1 < steps) {
      group.append(line(x + 72, 108, x + WIDTH - 2, 108, "", 0));
      if (trace.arrows.length > 1) group.append(line(x + 72, 80, x + WIDTH - 2, 80, "memory", 1));
      if (step === 0) {
        group.append(svg("text", { x: x + 80, y: 122, class: "weak" }, "h"));
        if (trace.arrows.length > 1) group.append(svg("text", { x: x + 78, y: 74, class: "weak" }, "C"));
      }
    }
    group.addEventListener("click", () => choose(step));
    picture.append(group);
  }
  const box = document.querySelector("#network .scroll");
  box.append(picture);
  if (box.scrollWidth > box.clientWidth) box.after(html("p", { class: "note" }, "Scroll to the right for the other words."));
  return [...picture.querySelectorAll(".step")];
}

// The two parts of the memory --------------------------------------------------------------------

function drawMemory() {
  const place = document.querySelector("#memory .scroll");
  if (!place) return [];
  const sizes = trace.lengths[layer]; // of each step: kept and written
  const largest = Math.max(...sizes.flat(), 1e-9);
  const picture = svg("svg", { width: 64 * steps + 10, height: 190, role: "img" });
  const spoken = sizes.map(([kept, written], step) => `${label(step)}: kept ${kept.toFixed(1)}, written ${written.toFixed(1)}`);
  picture.append(svg("title", {}, spoken.join("; ")));
  sizes.forEach(([kept, written], step) => {
    const x = 5 + 64 * step, height = (value) => (130 * value) / largest;
    const group = svg("g", { class: "step" });
    group.append(svg("rect", { class: "ground", x, y: 0, width: 62, height: 190, rx: 6 }));
    group.append(svg("rect", { class: "kept", x: x + 8, y: 150 - height(kept), width: 20, height: height(kept) }));
    group.append(svg("rect", { class: "written", x: x + 32, y: 150 - height(written), width: 20, height: height(written) }));
    const number = (value, dx) =>
      svg("text", { x: x + dx, y: 146 - height(value), "text-anchor": "middle", class: "weak" }, value.toFixed(1));
    if (kept || written) group.append(number(kept, 17), number(written, 43));
    const word = label(step);
    group.append(svg("text", { x: x + 31, y: 172, "text-anchor": "middle" }, word.length > 8 ? `${word.slice(0, 7)}…` : word));
    group.addEventListener("click", () => choose(step));
    picture.append(group);
  });
  place.append(picture);
  return [...picture.querySelectorAll(".step")];
}

// Gates ------------------------------------------------------------------------------------------

let order = [];

function sortUnits() {
  const rows = trace.reads.map((_, step) => row(trace.sorted_by, step)).filter(Boolean);
  const change = Array.from({ length: trace.units }, (_, unit) => {
    let total = 0;
    for (let step = 1; step < rows.length; step++) total += Math.abs(rows[step][unit] - rows[step - 1][unit]);
    return total;
  });
  order = [...change.keys()].sort((a, b) => change[b] - change[a]);
}

function rgb(text) {
  const number = parseInt(text.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

// From paper at 0 to one of two colors at the ends of the scale.
function painter(site) {
  const [paper, positive, negative] = [color("paper"), color("c0"), color("c1")].map(rgb);
  return (value) => {
    const end = value >= 0 ? positive : negative;
    const fraction = Math.min(1, Math.abs(value) / site.scale);
    return paper.map((channel, index) => Math.round(channel + (end[index] - channel) * fraction));
  };
}

function paint(canvas, name, rows) {
  const site = arrays.get(name), of = painter(site);
  canvas.width = trace.units;
  canvas.height = rows.length;
  const pixels = new ImageData(trace.units, rows.length);
  rows.forEach((values, line) => {
    if (!values) return;
    order.forEach((unit, column) => pixels.data.set([...of(values[unit]), 255], 4 * (line * trace.units + column)));
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

const gates = trace.gates.map(([name, title, meaning]) => {
  const mean = html("span");
  const strip = html("canvas", { class: "strip", role: "img" });
  const all = html("canvas", { class: "all", role: "img", "aria-label": `${title}: all steps` });
  all.style.height = `${Math.max(40, 7 * steps)}px`;
  const site = arrays.get(name);
  const low = name.endsWith("gate") ? "0" : (-site.scale).toFixed(1);
  const scale = html("div", { class: "scale" }, html("span", {}, low), html("span", {}, site.scale.toFixed(1)));
  const head = html("h3", {}, title, html("span", {}, meaning), mean);
  document.getElementById("strips").append(html("div", { class: "gate" }, head, strip, all, scale));
  for (const canvas of [strip, all]) {
    canvas.addEventListener("mousemove", (event) => {
      const box = canvas.getBoundingClientRect();
      const column = Math.min(trace.units - 1, Math.floor((trace.units * (event.clientX - box.left)) / box.width));
      const line = Math.min(steps - 1, Math.floor((steps * (event.clientY - box.top)) / box.height));
      const step = canvas === strip ? current : line;
      const values = row(name, step);
      const value = values ? values[order[column]].toFixed(2) : "no value";
      document.getElementById("unit").textContent = `${title}, unit ${order[column]}, step ${step} (“${label(step)}”): ${value}`;
    });
  }
  return { name, title, mean, strip, all };
});

function paintAll() {
  for (const gate of gates) paint(gate.all, gate.name, trace.reads.map((_, step) => row(gate.name, step)));
}

function showGates(step) {
  for (const gate of gates) {
    const values = row(gate.name, step);
    paint(gate.strip, gate.name, [values]);
    const mean = values ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    gate.mean.textContent = mean === null ? "no value at this step" : `mean ${mean.toFixed(2)}`;
    gate.strip.setAttribute("aria-label", `${gate.title} at step ${step}: ${gate.mean.textContent}`);
  }
}

// One step ---------------------------------------------------------------------------------------

let current = -1;
const cells = drawNetwork();
let memories = drawMemory();

function choose(step) {
  if (step === current) return;
  current = step;
  buttons.forEach((button, number) => {
    button.setAttribute("aria-pressed", String(number === step));
    button.tabIndex = number === step ? 0 : -1;
  });
  for (const groups of [cells, memories]) groups.forEach((group, number) => group.classList.toggle("current", number === step));
  showStep(step);
  showMap(step);
  showGates(step);
}

// The word that depends most on the image, or that looks at one position more than any other does.
function clearest() {
  if (attribution) {
    const sums = attribution.maps.map((values) => values.reduce((sum, value) => sum + value, 0));
    return 1 + sums.indexOf(Math.max(...sums));
  }
  if (!attention || steps < 2) return Math.min(1, steps - 1);
  const positions = attention.side * attention.side; // without a sentinel
  const open = (step) => attention.gate?.[step] ?? 1; // how much of what it looks at enters
  const largest = attention.weights.map((weights, step) => (step === 0 ? 0 : open(step) * Math.max(...weights.slice(0, positions))));
  return largest.indexOf(Math.max(...largest));
}

function redraw() {
  const step = current < 0 ? clearest() : current;
  sortUnits();
  paintAll();
  current = -1;
  choose(step);
}

document.getElementById("layer")?.addEventListener("change", (event) => {
  layer = Number(event.target.value);
  document.querySelector("#memory .scroll")?.replaceChildren();
  memories = drawMemory();
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
redraw();
