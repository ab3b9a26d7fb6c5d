// A captioning network that runs in the page. The equations are those of the textbook:
//
//   RNN    h_t  = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
//
//   LSTM   f_t  = σ(W_f [h_{t-1}, x_t] + b_f)             what to keep of C_{t-1}
//          i_t  = σ(W_i [h_{t-1}, x_t] + b_i)             what to write
//          C~_t = tanh(W_C [h_{t-1}, x_t] + b_C)          what could be written
//          C_t  = f_t * C_{t-1} + i_t * C~_t
//          o_t  = σ(W_o [h_{t-1}, x_t] + b_o)             what to output
//          h_t  = o_t * tanh(C_t)
//
//   GRU    r_t  = σ(W_r [h_{t-1}, x_t] + b_r),  z_t = σ(W_z [h_{t-1}, x_t] + b_z)
//          n_t  = tanh(W_in x_t + b_in + r_t * (W_hn h_{t-1} + b_hn))
//          h_t  = (1 - z_t) * n_t + z_t * h_{t-1}
//
// Weights are those of the trained model. W [h, x] is computed as W_h h + W_x x, as in cells.py.

// Vectors ----------------------------------------------------------------------------------------

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const plus = (a, b) => a.map((value, n) => value + b[n]);
const times = (a, b) => a.map((value, n) => value * b[n]);
const split = (a, parts) => Array.from({ length: parts }, (_, n) => a.slice((n * a.length) / parts, ((n + 1) * a.length) / parts));

// W x + b: a matrix of rows by columns.
function affine(weight, x, bias) {
  const { values, shape: [rows, columns] } = weight;
  const result = new Float64Array(rows);
  for (let row = 0; row < rows; row++) {
    let sum = bias ? bias.values[row] : 0;
    for (let column = 0, place = row * columns; column < columns; column++) sum += values[place++] * x[column];
    result[row] = sum;
  }
  return result;
}

function logSoftmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const total = logits.reduce((sum, value) => sum + Math.exp(value - largest), 0);
  return logits.map((value) => value - largest - Math.log(total));
}

function softmax(scores) {
  return logSoftmax(scores).map(Math.exp);
}

// Cells: W_x x + b and the state before -> the state after ----------------------------------------
// `clamp(site, values)` returns the values, or what a clamp sets them to.

const CELLS = {
  rnn(cell, input, state, clamp) {
    const h = clamp("candidate", plus(input, affine(cell.of_hidden, state.h, cell.of_hidden_bias)).map(Math.tanh));
    return { h: clamp("hidden", h) };
  },
  gru(cell, input, state, clamp) {
    const [r_x, z_x, n_x] = split(input, 3);
    const [r_h, z_h, n_h] = split(affine(cell.of_hidden, state.h, cell.of_hidden_bias), 3);
    const r = clamp("reset_gate", plus(r_x, r_h).map(sigmoid));
    const z = clamp("update_gate", plus(z_x, z_h).map(sigmoid));
    const n = clamp("candidate", plus(n_x, times(r, n_h)).map(Math.tanh));
    const written = times(z.map((value) => 1 - value), n);
    const kept = times(z, state.h);
    return { h: clamp("hidden", plus(written, kept)), kept, written };
  },
  lstm(cell, input, state, clamp) {
    const [f_, i_, c_, o_] = split(plus(input, affine(cell.of_hidden, state.h)), 4);
    const f = clamp("forget_gate", f_.map(sigmoid));
    const i = clamp("input_gate", i_.map(sigmoid));
    const candidate = clamp("candidate", c_.map(Math.tanh));
    const o = clamp("output_gate", o_.map(sigmoid));
    const kept = times(f, state.c);
    const written = times(i, candidate);
    const c = clamp("memory", plus(kept, written));
    return { h: clamp("hidden", times(o, c.map(Math.tanh))), c, kept, written };
  },
};

// Tensors: floats of 16 or 32 bits ----------------------------------------------------------------

function decodeTensor({ shape, bits, bytes }) {
  const raw = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  if (bits === 32) return { shape, values: new Float32Array(raw.buffer) };
  const values = Float32Array.from({ length: raw.length / 2 }, (_, n) => half(raw[2 * n] | (raw[2 * n + 1] << 8)));
  return { shape, values };
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Models -----------------------------------------------------------------------------------------

class Model {
  constructor(stored) {
    Object.assign(this, stored);
    const tensors = Object.fromEntries(Object.entries(stored.tensors).map(([name, t]) => [name, decodeTensor(t)]));
    this.tensor = (name) => tensors[stored.same[name] ?? name];
    this.cells = Array.from({ length: this.layers }, (_, layer) => {
      const part = (name) => this.tensor(`recurrence.cells.${layer}.${name}`);
      return {
        of_input: part("of_input.weight"), of_input_bias: part("of_input.bias"),
        of_hidden: part("of_hidden.weight"), of_hidden_bias: part("of_hidden.bias"),
      };
    });
  }

  word(token) {
    const { values, shape: [, width] } = this.tensor("words.weight");
    return Float64Array.from(values.subarray(token * width, (token + 1) * width));
  }

  zeros() {
    const zeros = () => this.cells.map(() => new Float64Array(this.hidden_size));
    return this.cell === "lstm" ? { h: zeros(), c: zeros() } : { h: zeros() };
  }

  // A state from one vector of all its numbers: h of each layer, then c.
  filled(vector) {
    const names = Object.keys(this.zeros());
    const parts = split(vector, names.length * this.layers);
    return Object.fromEntries(names.map((name, n) => [name, parts.slice(n * this.layers, (n + 1) * this.layers)]));
  }

  // One step of all layers, from the first layer's W_x x + b.
  advance(projected, state, clamp, seen) {
    const after = {}, names = Object.keys(this.zeros());
    for (const name of names) after[name] = [];
    let input = projected;
    this.cells.forEach((cell, layer) => {
      if (layer > 0) input = affine(cell.of_input, after.h[layer - 1], cell.of_input_bias);
      const own = Object.fromEntries(names.map((name) => [name, state[name][layer]]));
      const watch = (site, values) => (seen[layer][site] = clamp(site, values, layer));
      const result = CELLS[this.cell](cell, input, own, watch);
      seen[layer].kept = result.kept;
      seen[layer].written = result.written;
      for (const name of names) after[name].push(result[name]);
    });
    return after;
  }

  newSeen() {
    return this.cells.map(() => ({}));
  }

  // The state before <start>; step 0 reads X_0 where the image enters as that.
  start(picture, clamp) {
    const seen = this.newSeen();
    if (this.decoder === "show_attend_tell") {
      const mean = new Float64Array(picture.shape[1]);
      for (let n = 0; n < picture.values.length; n++) mean[n % mean.length] += picture.values[n] / picture.shape[0];
      const first = affine(this.tensor("first.weight"), mean, this.tensor("first.bias")).map(Math.tanh);
      return { state: this.filled(first), seen, picture: this.keys(picture) };
    }
    const image = Float64Array.from(picture.values);
    if (this.image === "h0") return { state: this.filled(image.map(Math.tanh)), seen, picture: image };
    if (this.image === "x0") {
      const projected = affine(this.cells[0].of_input, image, this.cells[0].of_input_bias);
      return { state: this.advance(projected, this.zeros(), clamp, seen), seen, picture: image };
    }
    return { state: this.zeros(), seen, picture: image };
  }

  // The keys of an additive attention, once for a picture.
  keys(picture) {
    const rows = Array.from({ length: picture.shape[0] }, (_, n) =>
      picture.values.subarray(n * picture.shape[1], (n + 1) * picture.shape[1]));
    const key = this.tensor("attention.key.weight");
    return { rows, keys: key ? rows.map((row) => affine(key, row, this.tensor("attention.key.bias"))) : rows };
  }

  attend(query, picture) {
    const q = affine(this.tensor("attention.query.weight"), query);
    const score = this.tensor("attention.score.weight");
    const scores = picture.keys.map((key) => {
      let sum = 0;
      if (score) for (let n = 0; n < q.length; n++) sum += score.values[n] * Math.tanh(key[n] + q[n]);
      else for (let n = 0; n < q.length; n++) sum += (key[n] * q[n]) / Math.sqrt(q.length);
      return sum;
    });
    const weights = softmax(Float64Array.from(scores));
    const context = new Float64Array(picture.rows[0].length);
    picture.rows.forEach((row, n) => row.forEach((value, unit) => (context[unit] += weights[n] * value)));
    return { weights, context };
  }

  // Read one token: log probabilities of the next, the state after, and every gate.
  step(token, state, picture, clamp) {
    const seen = this.newSeen(), first = this.cells[0];
    const word = this.word(token);
    let x = word, context = null, weights = null;
    if (this.decoder === "show_tell" && this.image === "every") x = Float64Array.from([...word, ...picture]);
    let projected = affine(first.of_input, x, first.of_input_bias);
    if (this.decoder === "show_attend_tell") {
      const before = state.h[this.layers - 1];
      ({ weights, context } = this.attend(before, picture));
      const [beta] = affine(this.tensor("gate.weight"), before, this.tensor("gate.bias")).map(sigmoid);
      context = context.map((value) => beta * value);
      projected = plus(projected, affine(this.tensor("of_context.weight"), context));
    }
    const after = this.advance(projected, state, clamp, seen);
    let output = after.h[this.layers - 1];
    if (this.image === "merge") output = plus(affine(this.tensor("merge.weight"), output), picture).map(Math.tanh);
    const narrow = this.tensor("narrow.weight");
    if (this.decoder === "show_attend_tell" && this.deep) {
      const both = Float64Array.from([...output, ...context]);
      output = plus(word, affine(narrow, both, this.tensor("narrow.bias")));
    } else if (narrow) output = affine(narrow, output, this.tensor("narrow.bias"));
    const logits = affine(this.tensor("output.weight"), output, this.tensor("output.bias"));
    return { logProbs: logSoftmax(logits), state: after, seen, weights };
  }
}

// A caption --------------------------------------------------------------------------------------

// A random number in [0, 1) from a seed (mulberry32), so that a sample can be repeated.
function random(seed) {
  let t = (seed + 0x6d2b79f5) | 0;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}

// The most probable token, or a sample of p^(1/τ).
function pick(model, logProbs, temperature, seed) {
  const allowed = logProbs.map((value, token) => (model.never.includes(token) ? -Infinity : value));
  if (temperature === 0) return allowed.reduce((best, value, token) => (value > allowed[best] ? token : best), 0);
  const probabilities = softmax(allowed.map((value) => value / temperature));
  let left = random(seed);
  for (let token = 0; token < probabilities.length; token++) {
    left -= probabilities[token];
    if (left < 0) return token;
  }
  return model.end;
}

// Generate a caption.
//   clamps  {site: {value, unit}}: the value of all units, or of one; erased  {step: {h, c}}: set to 0 after it
function generate(model, picture, { clamps = {}, erased = {}, temperature = 0, seed = 0, longest = 30 } = {}) {
  const clamp = (site, values) => {
    const wanted = clamps[site];
    if (!wanted) return values;
    return values.map((value, unit) => (wanted.unit === null || wanted.unit === unit ? wanted.value : value));
  };
  const erase = (state, step) => {
    const parts = erased[step] ?? {};
    const result = { ...state };
    for (const name of Object.keys(state)) if (parts[name]) result[name] = state[name].map((part) => part.map(() => 0));
    return result;
  };
  let { state, seen, picture: read } = model.start(picture, clamp);
  const steps = [{ reads: model.image === "x0" ? "X_0" : "image", seen, state }];
  let token = model.start_token;
  for (let step = 1; step <= longest; step++) {
    const result = model.step(token, erase(state, step - 1), read, clamp);
    const next = pick(model, result.logProbs, temperature, 1000 * seed + step);
    steps.push({ ...result, reads: model.vocabulary[token], token: next, word: model.vocabulary[next], logProb: result.logProbs[next] });
    ({ state } = result);
    token = next;
    if (token === model.end) break;
  }
  return steps;
}

// The page ---------------------------------------------------------------------------------------

const data = JSON.parse(document.getElementById("data").textContent);
const models = data.models.map((stored) => new Model(stored));
const pictures = data.pictures.map((picture) => ({ ...picture, inputs: picture.inputs.map(decodeTensor) }));
const settings = { picture: 0, temperature: 0, seed: 0, clamps: {}, erased: models.map(() => ({})), shown: 30, step: 1 };
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const percent = (p) => (p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : "0 %");

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function button(text, action, attributes = {}) {
  const element = html("button", { type: "button", ...attributes }, text);
  element.addEventListener("click", action);
  return element;
}

// Pictures

const thumbnails = pictures.map((picture, number) => {
  const image = html("img", { src: picture.source, alt: picture.name, width: 96, height: 96 });
  const element = button(image, () => change({ picture: number }), { title: picture.name });
  document.getElementById("pictures").append(element);
  return element;
});

// Temperature, words at a time

const temperature = document.getElementById("temperature");
temperature.addEventListener("input", () => change({ temperature: Number(temperature.value) }));
document.getElementById("again").addEventListener("click", () => change({ seed: settings.seed + 1 }));
document.getElementById("first").addEventListener("click", () => change({ shown: 0, step: 0 }));
document.getElementById("next").addEventListener("click", () => {
  const longest = Math.max(...runs.map((steps) => steps.length - 1));
  const shown = Math.min(longest, Math.min(settings.shown, longest) + 1);
  change({ shown, step: shown });
});
document.getElementById("all").addEventListener("click", () => change({ shown: 30 }));
document.getElementById("reset").addEventListener("click", () => {
  for (const control of controls) control.off();
  change({ clamps: {}, erased: models.map(() => ({})), temperature: 0, seed: 0, shown: 30 });
});

// Clamps: a slider for each site that a model has

const RANGES = {
  forget_gate: ["f", "forget", 0, 1, 1], input_gate: ["i", "input", 0, 1, 1], output_gate: ["o", "output", 0, 1, 1],
  reset_gate: ["r", "reset", 0, 1, 1], update_gate: ["z", "update", 0, 1, 1], candidate: ["C~", "candidate", -1, 1, 0],
  memory: ["C", "memory", -3, 3, 0], hidden: ["h", "hidden", -1, 1, 0],
};
const letterOf = (site, model) => (site === "candidate" && model.cell === "gru" ? "n" : RANGES[site][0]);
const OF_CELL = {
  rnn: ["hidden"],
  gru: ["reset_gate", "update_gate", "candidate", "hidden"],
  lstm: ["forget_gate", "input_gate", "candidate", "output_gate", "memory", "hidden"],
};
const sites = Object.keys(RANGES).filter((site) => models.some((model) => OF_CELL[model.cell].includes(site)));
const controls = sites.map((site) => {
  const [letter, meaning, least, most, middle] = RANGES[site];
  const name = `${letter}, ${meaning}`;
  const on = html("input", { type: "checkbox", id: `clamp-${site}` });
  const slider = html("input", { type: "range", min: least, max: most, step: 0.05, value: middle, "aria-label": `value of ${name}`, id: `value-${site}` });
  const last = Math.max(...models.map((m) => m.hidden_size)) - 1;
  const unit = html("input", { type: "number", min: 0, max: last, placeholder: "all", "aria-label": `unit of ${name}; empty: all` });
  const shown = html("output", { for: slider.id });
  const apply = () => {
    const clamps = { ...settings.clamps };
    delete clamps[site];
    if (unit.value !== "") unit.value = Math.min(last, Math.max(0, Math.round(Number(unit.value))));
    if (on.checked) clamps[site] = { value: Number(slider.value), unit: unit.value === "" ? null : Number(unit.value) };
    shown.textContent = on.checked ? Number(slider.value).toFixed(2) : "free";
    change({ clamps });
  };
  on.addEventListener("change", apply);
  unit.addEventListener("input", apply);
  slider.addEventListener("input", () => {
    on.checked = true;
    apply();
  });
  shown.textContent = "free";
  document.getElementById("clamps").append(
    html("div", { class: "clamp" }, html("label", { for: on.id }, on, ` ${name}`), slider, shown, unit));
  return { off: () => { on.checked = false; shown.textContent = "free"; unit.value = ""; slider.value = middle; } };
});

// Sentences

let runs = [];

function sentence(model, number) {
  const steps = runs[number], own = document.getElementById(`model-${number}`);
  const words = html("div", { class: "words", role: "group", "aria-label": `words of ${model.name}` });
  const visible = Math.min(settings.shown, steps.length - 1);
  for (let step = 0; step <= visible; step++) {
    const text = step === 0 ? steps[0].reads : steps[step].word;
    const chosen = Math.min(settings.step, visible) === step;
    const word = button(text, () => change({ step }), { "aria-pressed": String(chosen), class: "word" });
    if (step > 0) word.append(html("span", { class: "p" }, percent(Math.exp(steps[step].logProb))));
    const pair = html("span", { class: "pair" }, word);
    words.append(pair);
    if (step === visible) continue;
    const states = Object.keys(model.zeros()).reverse();
    const cuts = states.map((state) => {
      const letter = state === "c" ? "C" : "h";
      const erased = Boolean(settings.erased[number][step]?.[state]);
      return button(letter, () => toggle(number, step, state), {
        class: "cut", "aria-pressed": String(erased),
        title: erased ? `restore ${letter} after “${text}”` : `erase ${letter} after “${text}”`,
      });
    });
    pair.append(html("span", { class: "cuts" }, ...cuts));
  }
  const said = written(model, steps.slice(1, visible + 1).map(({ word }) => word).filter((word) => word !== "<end>"));
  const logProb = steps.slice(1, visible + 1).reduce((sum, { logProb }) => sum + logProb, 0);
  own.replaceChildren(
    html("h3", {}, model.name, html("span", {}, ` log p ${logProb.toFixed(2)}`)),
    html("p", { class: "caption", lang: model.language }, said || "…"), words, details(model, steps[Math.min(settings.step, visible)]));
}

// Characters are written together, except two tokens that would read as one in Latin letters; ▁ is a space.
function written(model, words) {
  const apart = (text, word) => !model.joined || (/\w$/.test(text) && /^\w/.test(word));
  const text = words.reduce((text, word) => text + (text && apart(text, word) ? " " : "") + word, "");
  return model.joined ? text.replaceAll("▁", " ") : text;
}

// The sentences once more, at the bottom of a narrow screen, where the sliders are far from them.
function repeat() {
  document.getElementById("said").replaceChildren(...models.map((model, number) => {
    const caption = document.querySelector(`#model-${number} .caption`);
    return html("p", { lang: model.language }, html("b", {}, `${model.name} `), caption.textContent);
  }));
}

function toggle(number, step, state) {
  const erased = settings.erased.map((parts) => ({ ...parts }));
  erased[number][step] = { ...erased[number][step], [state]: !erased[number][step]?.[state] };
  change({ erased, step: Math.min(step + 1, runs[number].length - 1) });
}

function details(model, step) {
  const place = html("div", { class: "details" });
  if (step.logProbs) {
    const best = Array.from(step.logProbs.keys()).sort((a, b) => step.logProbs[b] - step.logProbs[a]).slice(0, 5);
    const list = best.map((token) => `${model.vocabulary[token]} ${percent(Math.exp(step.logProbs[token]))}`).join(", ");
    place.append(html("p", { class: "note" }, `after “${step.reads}”: ${list}`));
  }
  const values = step.seen[model.layers - 1];
  for (const site of OF_CELL[model.cell]) {
    if (!values[site]) continue;
    const [, meaning, , most] = RANGES[site], letter = letterOf(site, model);
    const strip = html("canvas", { role: "img", "aria-label": `${letter}, ${meaning}, ${values[site].length} units` });
    paint(strip, values[site], most);
    const mean = values[site].reduce((a, b) => a + b, 0) / values[site].length;
    place.append(html("div", { class: "strip" }, html("span", {}, letter), strip, html("span", { class: "p" }, mean.toFixed(2))));
  }
  return place;
}

function paint(canvas, values, most) {
  const rgb = (text) => [1, 3, 5].map((place) => parseInt(text.slice(place, place + 2), 16));
  const [paper, positive, negative] = ["paper", "c0", "c1"].map((name) => rgb(color(name)));
  canvas.width = values.length;
  canvas.height = 1;
  const pixels = new ImageData(values.length, 1);
  values.forEach((value, unit) => {
    const end = value >= 0 ? positive : negative, fraction = Math.min(1, Math.abs(value) / most);
    paper.forEach((channel, n) => (pixels.data[4 * unit + n] = channel + (end[n] - channel) * fraction));
    pixels.data[4 * unit + 3] = 255;
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function change(changes) {
  Object.assign(settings, changes);
  temperature.value = settings.temperature;
  document.getElementById("temperature-shown").textContent = settings.temperature === 0 ? "0: the most probable word" : settings.temperature.toFixed(1);
  thumbnails.forEach((element, number) => element.setAttribute("aria-pressed", String(number === settings.picture)));
  document.getElementById("picture").src = pictures[settings.picture].source;
  document.getElementById("picture").alt = pictures[settings.picture].name;
  const started = performance.now();
  runs = models.map((model, number) => {
    const { clamps, temperature, seed } = settings;
    return generate(model, pictures[settings.picture].inputs[number], { clamps, erased: settings.erased[number], temperature, seed });
  });
  const focused = document.activeElement.closest?.(".model"); // its buttons are made again
  const place = focused ? [...focused.querySelectorAll("button")].indexOf(document.activeElement) : -1;
  models.forEach(sentence);
  if (place >= 0) focused.querySelectorAll("button")[place]?.focus();
  repeat();
  document.getElementById("time").textContent = `${(performance.now() - started).toFixed(0)} ms`;
}

models.forEach((_, number) => document.getElementById("models").append(html("section", { class: "model", id: `model-${number}` })));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => change({}));
change({});
