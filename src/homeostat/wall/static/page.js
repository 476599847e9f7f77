// The page as a whole: times in the viewer's zone, what changed, the theme, the dialog.
import * as performance from "./performance.js";
import * as heat from "./heat.js";
import * as shape from "./shape.js";

const formats = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-utc])")) {
    time.dataset.utc = time.textContent;
    time.title = time.textContent;
    time.textContent = formats.format(new Date(time.dateTime));
  }
}

function say(name, detail) {
  document.body.dispatchEvent(new CustomEvent(name, { detail }));
}

// --- what changed, and whether the page still hears of it ---

const QUIET = 25000; // milliseconds without a beat after which the connection counts as lost
const connection = document.getElementById("connection");
let heard = 0, lost = false, stamp = "";

function connected(yes) {
  const state = yes ? "live" : "lost";
  if (connection.dataset.state === state) return;
  connection.dataset.state = state;
  connection.textContent = yes ? "live" : "connection lost, trying again";
  document.body.classList.toggle("stale", !yes);
}

function listen() {
  const source = new EventSource("events");
  const beat = () => { heard = Date.now(); connected(true); };
  source.addEventListener("hello", (event) => {
    if (stamp && stamp !== event.data) { location.reload(); return; }
    stamp = event.data;
    beat();
    if (lost) for (const part of ["loop", "doing", "orders", "replay", "traffic"]) say(part);
    lost = false;
  });
  source.addEventListener("changed", (event) => { beat(); event.data.split(" ").forEach((part) => say(part)); });
  source.addEventListener("beat", beat);
  source.addEventListener("error", () => {
    lost = true;
    connected(false);
    if (source.readyState === EventSource.CLOSED) { clearInterval(watch); setTimeout(listen, 3000); }
  });
  const watch = setInterval(() => {
    if (!lost && Date.now() - heard > QUIET) { lost = true; connected(false); source.close(); clearInterval(watch); listen(); }
  }, 5000);
}

// --- dark and light ---

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

document.getElementById("theme").addEventListener("click", () => {
  const next = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("theme", next); } catch { /* it holds until the page is left */ }
  say("theme");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => say("theme"));

// --- htmx ---

const dialog = document.getElementById("dialog");
document.body.addEventListener("htmx:load", (event) => {
  localise(event.detail.elt.parentElement ?? event.detail.elt);
  shape.draw(document);
});
document.body.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target === dialog && !dialog.open) dialog.showModal();
});
for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
  document.body.addEventListener(name, (event) => {
    const status = event.detail.xhr?.status;
    if (event.detail.target !== dialog) return;
    const said = document.createElement("p");
    said.className = "problem";
    said.setAttribute("role", "alert");
    said.textContent = status ? `Refused (${status}). Load the page again.` : "The page cannot be reached.";
    dialog.append(said);
  });
}

localise(document);
listen();

// Charts come after the first paint; the library is large.
requestAnimationFrame(() => setTimeout(() => {
  performance.start();
  heat.start();
}));
