// The health of the program and of its machine, in a panel that loads its content when it is open.
import { bytes, dropText, duration, el, join, number, request, setRows, setText } from "./dom.js";

const INTERVAL_MS = 5000;

const list = (values, text) => join(Object.entries(values ?? {}).map(([name, value]) => text(name, value)), ", ");
const percent = (space) => `${bytes(space.used_bytes)} of ${bytes(space.total_bytes)} (${number((100 * space.used_bytes) / space.total_bytes)} %)`;

function gpuText(gpu) {
  const known = (value, text) => (value === null ? "" : text(value));
  const parts = [
    known(gpu.utilization_ratio, (ratio) => `${number(100 * ratio)} % busy`),
    known(gpu.memory_total_bytes, (total) => `memory ${bytes(gpu.memory_used_bytes)} of ${bytes(total)}`),
    known(gpu.temperature_celsius, (degrees) => `${number(degrees)} °C`),
    known(gpu.clock_hertz, (hertz) => `${number(hertz / 1e6)} MHz`),
    ...Object.keys(gpu.throttled).filter((reason) => gpu.throttled[reason]).map((reason) => `slowed down: ${reason}`),
  ];
  return join(parts, ", ") || "no values";
}

function sinkText(sink) {
  const counts = ["sent", "queued", "lost"].map((key) => `${number(sink[key] ?? 0)} ${key === "queued" ? "waiting" : key}`);
  return join([sink.protocol, sink.connected ? "connected" : "not connected", ...counts, sink.last_error], ", ");
}

// Return pairs of a title and a text about the program.
function programRows(node) {
  const group = (prefix) => [prefix, list(node.counters, (name, value) => name.startsWith(`${prefix}.`) && `${name.slice(prefix.length + 1).replaceAll("_", " ")} ${number(value)}`)];
  return [
    ["version", `${node.version}, ${node.backend}, ${node.model}`],
    ["running for", duration(node.uptime_s)],
    ["frames/s", `${number(node.rates.published, 1)} published of ${number(node.rates.grabbed, 1)}`],
    ["latency p50 / p99 in ms", list(node.latency_ms, (stage, value) => `${stage} ${number(value.p50, 1)} / ${number(value.p99, 1)}`)],
    ["dropped frames", dropText(node.dropped)],
    ["memory of the main process", bytes(node.rss_bytes)],
    ["memory of all processes", list(node.memory_bytes, (name, value) => `${name} ${bytes(value)}`)],
    ["GPU memory of the detector", node.detector?.device_bytes === undefined ? "" : bytes(node.detector.device_bytes)],
    ["restarted processes", list(node.counters, (name, value) => name.endsWith("restarts") && value > 0 && `${name.split(".")[0]} ${number(value)}`) || "none"],
    ...["journal", "recording", "archive", "snapshots"].map(group),
    ...Object.entries(node.sinks ?? {}).map(([name, sink]) => [`sink ${name}`, sinkText(sink)]),
  ];
}

function machineRows({ gpus, memory, disks, temperatures, error }) {
  if (error) return [["machine", error]];
  const folders = {}; // of each disk, by its text
  for (const [name, space] of Object.entries(disks)) (folders[percent(space)] ??= []).push(name.replace("_", " "));
  return [
    ...gpus.map((gpu, index) => [`GPU ${index}`, gpuText(gpu)]),
    ["memory of the machine", percent(memory)],
    ...Object.entries(folders).map(([text, names]) => [`disk of ${names.join(", ")}`, text]),
    ...Object.entries(temperatures).map(([zone, value]) => [`temperature ${zone}`, `${number(value, 1)} °C`]),
  ];
}

// Add the panel to `element`. Return a function that stops the updates.
export function openHealth(element, store) {
  const line = el("span", { class: "hint" });
  const rows = el("dl", { class: "details wide" });
  const panel = el("details", { class: "health" }, el("summary", {}, el("strong", {}, "Program"), " ", line), rows);
  element.append(panel);
  let machine = [];
  let timer = 0;

  const show = (state) => {
    if (!state?.node) return;
    const { node, cameras } = state;
    const failing = cameras.filter((camera) => !["streaming", "ended"].includes(camera.state)).length;
    const work = failing ? `${failing} of ${cameras.length} cameras without frames` : `${cameras.length} cameras work`;
    setText(line, `${node.node} · ${work} · ${number(node.rates.published)} frames/s · up ${duration(node.uptime_s)}`);
    if (panel.open) setRows(rows, [...programRows(node), ...machine]);
  };
  const load = async () => {
    clearTimeout(timer);
    if (!panel.open) return;
    if (!document.hidden) {
      machine = machineRows(await request("/api/machine"));
      show(store.state);
    }
    timer = setTimeout(load, INTERVAL_MS);
  };
  panel.addEventListener("toggle", load);
  const stop = store.listen(show);
  return () => {
    panel.open = false;
    clearTimeout(timer);
    stop();
  };
}
