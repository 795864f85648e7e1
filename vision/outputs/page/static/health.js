// The health of the program and of its machine, in a panel that loads its content when it is open.
import { bytes, duration, el, getJson, number, setText } from "./dom.js";

const INTERVAL_MS = 5000;

const percent = (space) => `${bytes(space.used_bytes)} of ${bytes(space.total_bytes)} (${number((100 * space.used_bytes) / space.total_bytes)} %)`;

function gpuText(gpu) {
  const parts = [
    gpu.utilization_ratio === null ? "" : `${number(100 * gpu.utilization_ratio)} % busy`,
    gpu.memory_total_bytes === null ? "" : `memory ${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}`,
    gpu.temperature_celsius === null ? "" : `${number(gpu.temperature_celsius)} °C`,
    gpu.clock_hertz === null ? "" : `${number(gpu.clock_hertz / 1e6)} MHz`,
    ...Object.entries(gpu.throttled).filter(([, applies]) => applies).map(([reason]) => `slowed down: ${reason}`),
  ];
  return parts.filter(Boolean).join(", ") || "no values";
}

function sinkText(sink) {
  const state = sink.connected ? "connected" : "not connected";
  const error = sink.last_error ? `, ${sink.last_error}` : "";
  return `${sink.protocol}, ${state}, ${number(sink.sent)} sent, ${number(sink.queued ?? 0)} waiting, ${number(sink.lost ?? 0)} lost${error}`;
}

// Return pairs of a title and a text about the program.
function programRows(node) {
  const drops = Object.entries(node.dropped).filter(([, count]) => count > 0).map(([why, count]) => `${why} ${number(count)}`);
  const counters = Object.entries(node.counters ?? {});
  const group = (prefix) => counters.filter(([name]) => name.startsWith(`${prefix}.`)).map(([name, value]) => `${name.slice(prefix.length + 1).replaceAll("_", " ")} ${number(value)}`).join(", ");
  const restarts = counters.filter(([name, value]) => name.endsWith("restarts") && value > 0).map(([name, value]) => `${name.split(".")[0]} ${number(value)}`);
  const latency = Object.entries(node.latency_ms).map(([stage, value]) => `${stage} ${number(value.p50, 1)} / ${number(value.p99, 1)}`);
  return [
    ["version", `${node.version}, ${node.backend}, ${node.model}`],
    ["running for", duration(node.uptime_s)],
    ["frames/s", `${number(node.rates.published, 1)} published of ${number(node.rates.grabbed, 1)}`],
    ["latency p50 / p99 in ms", latency.join(", ")],
    ["dropped frames", drops.join(", ") || "none"],
    ["memory of the main process", bytes(node.rss_bytes)],
    ["memory of all processes", Object.entries(node.memory_bytes ?? {}).map(([name, value]) => `${name} ${bytes(value)}`).join(", ")],
    ["GPU memory of the detector", node.detector?.device_bytes === undefined ? "" : bytes(node.detector.device_bytes)],
    ["restarted processes", restarts.join(", ") || "none"],
    ["journal", group("journal")],
    ["recording", group("recording")],
    ["archive", group("archive")],
    ["snapshots", group("snapshots")],
    ...Object.entries(node.sinks ?? {}).map(([name, sink]) => [`sink ${name}`, sinkText(sink)]),
  ];
}

function machineRows(machine) {
  const disks = new Map(); // folders of each disk, by its text
  for (const [name, space] of Object.entries(machine.disks)) {
    disks.set(percent(space), [...(disks.get(percent(space)) ?? []), name.replace("_", " ")]);
  }
  return [
    ...machine.gpus.map((gpu, index) => [`GPU ${index}`, gpuText(gpu)]),
    ["memory of the machine", percent(machine.memory)],
    ...[...disks].map(([text, names]) => [`disk of ${names.join(", ")}`, text]),
    ...Object.entries(machine.temperatures).map(([zone, value]) => [`temperature ${zone}`, `${number(value, 1)} °C`]),
  ];
}

// Add the panel to `element`. Return a function that stops the updates.
export function openHealth(element, store) {
  const line = el("span", { class: "hint" });
  const list = el("dl", { class: "details wide" });
  const panel = el("details", { class: "health" }, el("summary", {}, el("strong", {}, "Program"), " ", line), list);
  element.append(panel);
  let machine = [];
  let timer = null;

  const show = (state) => {
    const { node } = state;
    if (!node) return;
    const failing = state.cameras.filter((camera) => !["streaming", "ended"].includes(camera.state)).length;
    const cameras = failing ? `${failing} of ${state.cameras.length} cameras without frames` : `${state.cameras.length} cameras work`;
    setText(line, `${node.node} · ${cameras} · ${number(node.rates.published)} frames/s · up ${duration(node.uptime_s)}`);
    if (!panel.open) return;
    const rows = [...programRows(node), ...machine].filter(([, text]) => text);
    while (list.children.length > rows.length) list.lastChild.remove();
    rows.forEach(([title, text], index) => {
      if (!list.children[index]) list.append(el("div", {}, el("dt"), el("dd")));
      setText(list.children[index].firstChild, title);
      setText(list.children[index].lastChild, text);
    });
  };
  const load = async () => {
    clearTimeout(timer);
    if (!panel.open) return;
    if (!document.hidden) {
      machine = await getJson("/api/machine").then(machineRows, (error) => [["machine", error.message]]);
      if (store.state) show(store.state);
    }
    timer = setTimeout(load, INTERVAL_MS);
  };
  panel.addEventListener("toggle", load);
  const stop = store.listen((state) => state && show(state));
  return () => {
    panel.open = false;
    clearTimeout(timer);
    stop();
  };
}
