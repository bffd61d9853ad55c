// The page of the demo. Whatever comes from a person or a model becomes a text node, never HTML.
const $ = id => document.getElementById(id);
const TARGETS = {delay_ms: ["delay", "ms", "at most"], throughput_mbps: ["throughput", "Mbit/s", "at least"], ber: ["packet error rate", "", "at most"]};
const FIELDS = {channel: "channel", snr_db: "SNR, dB", speed_mps: "speed, m/s", delay_spread_ns: "delay spread, ns", num_tx_ant: "transmit antennas",
  num_rx_ant: "receive antennas", max_prb: "grant, PRB", compute_gflops: "compute, GFLOPS", full_power_mhz: "full power up to, MHz",
  antenna_correlation: "antenna correlation", access: "access", carrier_ghz: "carrier, GHz"};
let options, site = {}, running = null, live = null;
const charts = {};

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) name in element ? element[name] = value : element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const qam = bits => bits === 2 ? "QPSK" : `${2 ** bits}QAM`;
const number = x => x === 0 ? "0" : Math.abs(x) >= 1e-2 && Math.abs(x) < 1e5 ? String(+x.toPrecision(4)) : x.toExponential(1);
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const say = text => { $("status").textContent = text; };

async function post(path, body, signal) {
  const response = await fetch(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal});
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).detail || `the server answers ${response.status}`);
  return response;
}

// Server-sent events of a POST, one by one.
async function* events(body, signal) {
  const reader = (await post("/v1/orchestrate/events", body, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const [, name, data] = part.match(/^event: (\w+)\ndata: (.*)$/s);
      yield [name, JSON.parse(data)];
    }
  }
}

function showState() {
  for (const name of Object.keys(FIELDS)) $(`s-${name}`).value = site[name];
  const absent = new Set(site.absent);
  for (const box of $("modules").querySelectorAll("input")) box.checked = !absent.has(box.value);
  countMissing();
}
function countMissing() {
  const missing = [...$("modules").querySelectorAll("input:not(:checked):not(:disabled)")].map(box => box.value);
  $("missing").textContent = missing.length ? `without ${missing.join(", ")}` : "all present";
}
function readState() {
  const scenario = {absent: [...$("modules").querySelectorAll("input:not(:checked)")].map(box => box.value)};
  for (const name of Object.keys(FIELDS)) scenario[name] = typeof site[name] === "number" ? Number($(`s-${name}`).value) : $(`s-${name}`).value;
  return scenario;
}

async function start() {
  options = await (await fetch("/v1/options")).json();
  site = options.start;
  for (const text of options.requests) $("pick").append(make("option", {value: text}, text));
  $("request").value = options.requests[0];
  for (const [name, title] of Object.entries(options.models)) $("model").append(make("option", {value: name}, title));
  for (const [name, title] of Object.entries(options.rivals)) {
    $("rivals").append(make("label", {className: "line"}, make("input", {type: "checkbox", value: name, checked: name !== "rule_4" && name !== "oracle"}), title));
  }
  for (const [name, title] of Object.entries(FIELDS)) {
    const [first, second] = options.scenario[name];
    const input = Array.isArray(first) ? make("select", {id: `s-${name}`}, ...first.map(value => make("option", {value}, value)))
      : make("input", {id: `s-${name}`, type: "number", min: first, max: second, step: Number.isInteger(site[name]) && /ant|prb/.test(name) ? 1 : "any", required: true});
    $("state").append(make("label", {}, `${title} `, input));
  }
  for (const [name, ever] of Object.entries(options.modules)) {
    $("modules").append(make("label", {className: "line"}, make("input", {type: "checkbox", value: name, disabled: !ever}), name));
  }
  showState();
  $("modules").addEventListener("change", countMissing);
  $("stated").addEventListener("change", () => { $("targets").hidden = !$("stated").checked; });
  $("pick").addEventListener("change", () => { if ($("pick").value) $("request").value = $("pick").value; });
  $("form").addEventListener("submit", event => { event.preventDefault(); stopLive(); orchestrate(asked()); });
  $("live").addEventListener("click", () => live ? stopLive() : goLive());
  say("ready");
}

function asked() {
  const stated = $("stated").checked ? Object.fromEntries(Object.keys(TARGETS).map(name => [name, Number($(name).value)])) : null;
  return {request: $("request").value, scenario: readState(), targets: stated, model: $("model").value, temperature: Number($("temperature").value),
    seed: Number($("seed").value), weights: $("weights").checked, look: $("look").checked,
    rivals: [...$("rivals").querySelectorAll("input:checked")].map(box => box.value)};
}

// One request, from its first token to its last rival; returns the verdicts by name.
async function orchestrate(body) {
  running?.abort();
  const mine = running = new AbortController();
  const found = {};
  clear();
  $("run").disabled = true;
  try {
    for await (const [name, payload] of events(body, mine.signal)) {
      if (mine.signal.aborted) return found;
      HANDLERS[name]?.(payload);
      if (name === "verdict") found.model = payload;
      if (name === "rival") found[payload.name] = payload;
    }
  } catch (error) {
    if (error.name !== "AbortError") { say(error.message); $("verdict").textContent = error.message; }
  } finally {
    if (running === mine) { running = null; $("run").disabled = false; }
  }
  return found;
}

function clear() {
  for (const id of ["tokens", "intent", "code", "blocks", "prompt", "range"]) $(id).replaceChildren();
  $("verdict").textContent = "…";
  $("verdict").className = "";
  $("measured").hidden = $("legend").hidden = true;
  $("others").tBodies[0].replaceChildren();
  $("counted").textContent = "blocks coded, sent and decoded";
  $("channel").getContext("2d").clearRect(0, 0, $("channel").width, $("channel").height);
  for (const name of ["delay", "constellation", "errors"]) { charts[name]?.destroy(); delete charts[name]; }
}

const HANDLERS = {
  queued: ({ahead}) => say(ahead ? `${ahead} before you` : "writing"),
  prompt: ({text}) => { $("prompt").textContent = text; },
  token: ({text, p}) => $("tokens").append(make("span", {title: `probability ${p}`}, text)),
  answer: ({ended}) => { if (!ended) $("tokens").append(make("em", {}, " (cut off)")); },
  intent: targets => { $("intent").textContent = "It infers: " + Object.entries(TARGETS).map(([name, [title, unit, bound]]) => `${title} ${bound} ${number(targets[name])} ${unit}`.trim()).join(", "); },
  workflow: showWorkflow,
  look: showLook,
  progress: showProgress,
  verdict: showVerdict,
  weights: showWeights,
  rival: showRival,
  failed: ({message}) => { say(message); $("verdict").textContent = message; },
  done: ({seconds}) => say(`done in ${seconds.toFixed(1)} s`),
};

function showVerdict(verdict) {
  const failed = verdict.failure && !verdict.measured;
  $("verdict").textContent = failed ? `nothing to run (${verdict.failure}): R = ${number(verdict.reward)}`
    : `${verdict.fulfilled ? "all targets met" : "not all targets met"}: R = ${verdict.reward.toFixed(3)}`;
  $("verdict").className = verdict.fulfilled ? "good" : "bad";
  $("measured").hidden = failed;
  if (failed) return;
  $("measured").tBodies[0].replaceChildren(...Object.entries(TARGETS).map(([name, [title, unit, bound]]) => make("tr", {},
    make("th", {scope: "row"}, title), make("td", {className: "number"}, `${bound} ${number(verdict.targets[name])} ${unit}`),
    make("td", {className: "number"}, `${number(verdict.measured[name])} ${unit}`),
    make("td", {className: verdict.met[name] ? "good" : "bad"}, verdict.met[name] ? "met" : "missed"))));
}

function showWeights({unreadable, service}) {
  const top = Math.max(...unreadable, ...service, 1e-9);
  [...$("tokens").querySelectorAll("span")].forEach((span, t) => {
    const [u, s] = [unreadable[t] ?? 0, service[t] ?? 0];
    span.style.backgroundColor = s > 0 ? `rgba(${colour("--service")}, ${0.15 + 0.75 * s / top})` : u > 0 ? `rgba(${colour("--unreadable")}, ${0.12 + 0.5 * u / top})` : "";
    span.style.boxShadow = s > 0 && u > 0 ? `inset 0 -3px rgba(${colour("--unreadable")}, .8)` : "";
    span.title += `; S: ${number(u)} unreadable, ${number(s)} service`;
  });
  $("legend").hidden = false;
}

function showWorkflow({blocks, code, delay_ms, failure}) {
  $("code").textContent = code ?? `no workflow: ${failure}`;
  if (!blocks) return;
  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    return element;
  };
  const [w, gap, top] = [124, 22, 12], middle = blocks.findIndex(block => block.side === "channel");
  const columns = Math.max(middle, blocks.length - middle - 1) + 1;
  const drawing = svg("svg", {viewBox: `0 0 ${columns * (w + gap)} 170`});
  blocks.forEach((block, i) => {  // the transmitter above from left to right, the channel at the turn, the receiver below back
    const below = i > middle, column = below ? columns - 1 - (i - middle) : i === middle ? columns - 1 : i + columns - 1 - middle;
    const [x, y] = [column * (w + gap), i === middle ? 56 : below ? 108 : top];
    const fill = block.side === "channel" ? colour("--soft") : block.neural ? colour("--neural") : colour("--classical");
    const group = svg("g", {"data-block": block.name, "data-neural": block.neural});
    group.append(svg("rect", {x, y, width: w, height: 48, rx: 6, fill, "fill-opacity": 0.22, stroke: fill}),
      svg("text", {x: x + w / 2, y: y + 20, "text-anchor": "middle", "font-weight": 600}, block.name),
      svg("text", {x: x + w / 2, y: y + 37, "text-anchor": "middle"}, block.detail));
    if (i && i !== middle && i !== middle + 1) {
      group.append(svg("path", {d: below ? `M${x + w + gap} ${y + 24} H${x + w}` : `M${x - gap} ${y + 24} H${x}`, stroke: colour("--soft"), "stroke-width": 2}));
    }
    if (i === middle) group.append(svg("path", {d: `M${x - gap} ${top + 24} H${x + w / 2} V${y} M${x + w / 2} ${y + 48} V132 H${x - gap}`, fill: "none", stroke: colour("--soft"), "stroke-width": 2}));
    drawing.append(group);
  });
  $("blocks").replaceChildren(drawing);
  const entries = Object.entries(delay_ms);
  const shade = i => `hsl(${(i * 47 + 205) % 360} 55% 55%)`;
  charts.delay = chart("delay", {type: "bar", data: {labels: [""], datasets: entries.map(([label, ms], i) => ({label, data: [ms], backgroundColor: shade(i)}))},
    options: {indexAxis: "y", scales: {x: axis("ms", true), y: {stacked: true, display: false}}, plugins: {legend: legend("bottom")}}});
}

function showLook({gain_db, sent, received}) {
  const at = points => points.map(([x, y]) => ({x, y}));
  const square = {min: -1.9, max: 1.9, ticks: {display: false}, grid: {color: colour("--line")}};
  charts.constellation = chart("constellation", {type: "scatter", data: {datasets: [
    {label: "sent", data: at(sent), pointRadius: 6, pointStyle: "crossRot", pointBorderColor: colour("--ink"), pointBorderWidth: 2, backgroundColor: colour("--ink")},
    {label: "received", data: at(received), backgroundColor: colour("--classical") + "99", pointRadius: 1.5}]},
    options: {scales: {x: square, y: square}, plugins: {legend: legend("bottom")}}});
  const flat = gain_db.flat(), [low, high] = [Math.min(...flat), Math.max(...flat)];
  $("range").textContent = `${low.toFixed(0)} (dark) to ${high.toFixed(0)} dB (bright)`;
  const canvas = $("channel"), context = canvas.getContext("2d"), [rows, columns] = [gain_db.length, gain_db[0].length];
  gain_db.forEach((row, t) => row.forEach((db, f) => {
    const share = high > low ? (db - low) / (high - low) : 1;
    context.fillStyle = `hsl(${260 - 200 * share} 70% ${12 + 55 * share}%)`;
    context.fillRect(Math.floor(f * canvas.width / columns), canvas.height - Math.ceil((t + 1) * canvas.height / rows), Math.ceil(canvas.width / columns), Math.ceil(canvas.height / rows));
  }));
}

function showProgress({blocks, of, block_errors, bler, bler_interval}) {
  charts.errors ??= chart("errors", {type: "line", data: {labels: [], datasets: [
    {label: "block error rate", data: [], borderColor: colour("--accent"), pointRadius: 2},
    {label: "95 % interval", data: [], borderColor: colour("--soft"), borderDash: [4, 4], pointRadius: 0, borderWidth: 1},
    {label: "", data: [], borderColor: colour("--soft"), borderDash: [4, 4], pointRadius: 0, borderWidth: 1}]},
    options: {scales: {x: axis("blocks"), y: {...axis("block error rate"), type: "logarithmic", min: 1e-4, max: 1}},
      plugins: {legend: {...legend("bottom"), labels: {color: colour("--ink"), boxWidth: 12, filter: item => item.text}}}}});
  const {labels, datasets} = charts.errors.data;
  labels.push(blocks);
  [bler, ...bler_interval].forEach((value, i) => datasets[i].data.push(Math.max(value, 1e-4)));
  charts.errors.update("none");
  $("counted").textContent = `${block_errors} of ${blocks} blocks in error, coded, sent and decoded (at most ${of}); the verdict's rates are those of the effective-SINR method`;
}

function showRival({name, title, reward, fulfilled, workflow, failure}) {
  const w = workflow && [`${workflow.scs_khz} kHz`, `${qam(workflow.bits_per_symbol)} x ${workflow.num_layers}`, `rate ${workflow.code_rate}`, `${workflow.num_prb} PRB`,
    workflow.precoder === "none" ? "" : workflow.precoder, `${workflow.num_transmissions} tx`].filter(Boolean).join(", ");
  $("others").tBodies[0].append(make("tr", {"data-rival": name}, make("th", {scope: "row"}, title), make("td", {className: "number"}, workflow ? reward.toFixed(3) : "–"),
    make("td", {className: fulfilled ? "good" : "bad"}, fulfilled ? "met" : "missed"), make("td", {}, w ?? failure)));
}

function chart(id, config) {
  config.options = {animation: false, maintainAspectRatio: false, responsive: true, ...config.options};
  return new Chart($(id), config);
}
const axis = (title, stacked = false) => ({stacked, title: {display: true, text: title, color: colour("--soft")}, ticks: {color: colour("--soft")}, grid: {color: colour("--line")}});
const legend = position => ({position, labels: {color: colour("--ink"), boxWidth: 12}});

// The site drifts; the model orchestrates anew at every step, and so do the rivals that are ticked.
async function goLive() {
  const mine = live = {};
  $("live").setAttribute("aria-pressed", "true");
  $("strip-section").hidden = false;
  charts.strip?.destroy();
  const names = ["model", ...asked().rivals.filter(name => name !== $("model").value)];
  const titles = {...options.rivals, model: options.models[$("model").value]};
  charts.strip = chart("strip", {type: "line", data: {labels: [], datasets: names.map((name, i) => ({label: titles[name], data: [], stepped: true, borderWidth: i ? 1 : 2.5,
    borderColor: i ? `hsl(${(i * 67 + 160) % 360} 45% 55%)` : colour("--accent"), pointStyle: [], pointRadius: 4}))},
    options: {scales: {x: axis("step"), y: {...axis("R (circle: all targets met)"), min: -1, max: 1}}, plugins: {legend: legend("bottom")}}});
  const met = names.map(() => 0), seed = Number($("seed").value);
  for (let step = 0; live === mine && step < 1000; step++) {
    let task;
    try { task = await (await post("/v1/drift", {seed, step})).json(); } catch (error) { say(error.message); break; }
    if (live !== mine) break;
    site = task.scenario;
    showState();
    $("request").value = task.request;
    const found = await orchestrate({...asked(), targets: task.targets, look: false, weights: false});
    if (live !== mine || !found.model) break;
    charts.strip.data.labels.push(step);
    names.forEach((name, i) => {
      met[i] += found[name]?.fulfilled ?? false;
      charts.strip.data.datasets[i].data.push(found[name]?.workflow ? found[name].reward : null);  // null: no workflow, no point
      charts.strip.data.datasets[i].pointStyle.push(found[name]?.fulfilled ? "circle" : "crossRot");
    });
    charts.strip.update("none");
    $("live-note").textContent = names.map((name, i) => `${titles[name]}: ${met[i]} of ${step + 1} met`).join("; ");
  }
  if (live === mine) stopLive();
}
function stopLive() {
  if (!live) return;
  live = null;
  running?.abort();
  $("live").setAttribute("aria-pressed", "false");
}

start().catch(error => say(error.message));
