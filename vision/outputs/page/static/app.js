// The frame of the page: the views, and the connection to the program.
import { setText } from "./dom.js";
import { Store } from "./store.js";

const VIEWS = {
  __proto__: null,
  camera: () => import("./camera.js"),
  edit: () => import("./editor.js"),
  events: () => import("./events.js"),
  history: () => import("./history.js"),
  "": () => import("./overview.js"),
};

const main = document.getElementById("main");
const connection = document.getElementById("connection");
const store = new Store();
let close = () => {};
let opened = 0;

// Open the view of the address, which is `#/VIEW` or `#/VIEW/CAMERA`.
async function open() {
  const number = (opened += 1);
  const [, name = "", parameter = ""] = /^#\/(\w*)(?:\/(.+)|\?.*)?$/s.exec(location.hash) ?? [];
  const view = await (VIEWS[name] ?? VIEWS[""])();
  if (number !== opened) return;
  close();
  main.replaceChildren();
  close = view.open(main, decode(parameter), store);
  const current = ["events", "history"].includes(name) ? name : "";
  for (const anchor of document.querySelectorAll(".bar nav a")) anchor.ariaCurrent = anchor.hash === `#/${current}` ? "page" : null;
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

let version, instance, until;

function showConnection(state, problem) {
  if (!problem) version ??= state.assets;
  if (!problem && version !== state.assets) location.reload();
  const started = state?.node?.instance ?? instance;
  const restarted = instance !== undefined && started !== instance;
  instance = started;
  let text = "";
  if (problem) text = `${problem} Trying again.`;
  else if (state.node === null) text = "Waiting for the program.";
  else if (state.silent) text = `No status from the program for ${Math.round(state.age_s)} s.`;
  else if (restarted) text = "The program was restarted.";
  connection.classList.toggle("bad", Boolean(problem || state?.silent));
  if (text || !(Date.now() < until)) setText(connection, text);
  if (restarted) until = Date.now() + 10000;
}

addEventListener("hashchange", () => {
  open();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented && location.hash.startsWith("#/camera/")) location.hash = "#/";
});
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault();
  main.focus();
};
store.listen(showConnection);
store.refresh();
open();
