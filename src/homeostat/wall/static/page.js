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
    if (source.readyState === EventSource.CLOSED) { clearInterval(watch); setTimeout(again, 3000); }
  });
  const watch = setInterval(() => {
    if (!lost && Date.now() - heard > QUIET) { lost = true; connected(false); source.close(); clearInterval(watch); listen(); }
  }, 5000);
}

// The server refused: with a session that is over only a key helps.
async function again() {
  const answer = await fetch("part/top").catch(() => null);
  if (answer?.status === 401) location.assign("login");
  else listen();
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
  if (event.detail.target.id === "column" && !refreshed(event)) reach(document.getElementById("column-head"));
});

// A part that is fetched again because something changed, and not because someone asked for it.
const refreshed = (event) => ["loop", "orders"].includes(event.detail.requestConfig?.triggeringEvent?.type);

function reach(heading) {
  const box = heading.getBoundingClientRect();
  if (box.top < 60 || box.bottom > innerHeight - 200) heading.scrollIntoView();
  heading.focus({ preventScroll: true });
}

// What the viewer opened and how far a list was scrolled outlasts a part that is fetched again; htmx
// keeps the focus where the element has an id.
const SCROLLED = ".line, .columns";
let held = null;
function restore(part) {
  for (const id of held.open) document.getElementById(id)?.setAttribute("open", "");
  part.querySelectorAll(SCROLLED).forEach((each, place) => { each.scrollTop = held.scrolled[place] ?? 0; });
}
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const part = event.detail.target;
  held = {
    open: [...part.querySelectorAll("details[open][id]")].map((each) => each.id),
    scrolled: [...part.querySelectorAll(SCROLLED)].map((each) => each.scrollTop),
  };
});
document.body.addEventListener("htmx:afterSwap", (event) => {
  if (refreshed(event)) restore(event.detail.target);
  for (const button of document.querySelectorAll("[aria-expanded]")) {
    const shows = document.getElementById(button.getAttribute("aria-controls"));
    button.setAttribute("aria-expanded", String(Boolean(shows?.childElementCount)));
  }
});

// A second click closes what the first one opened.
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const button = event.detail.elt;
  if (button.getAttribute("aria-expanded") !== "true") return;
  event.preventDefault();
  button.setAttribute("aria-expanded", "false");
  document.getElementById(button.getAttribute("aria-controls")).replaceChildren();
});

function failed(status) {
  const said = document.createElement("p");
  said.className = "problem";
  said.setAttribute("role", "alert");
  said.textContent = status ? `Refused (${status}). Load the page again.` : "The page cannot be reached. Try again once it is live.";
  if (dialog.open) { dialog.append(said); return; }
  const form = document.createElement("form"), close = document.createElement("button");
  form.method = "dialog";
  close.textContent = "Close";
  form.append(close);
  dialog.replaceChildren(said, form);
  dialog.showModal();
}
for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
  document.body.addEventListener(name, (event) => {
    if (event.detail.target === dialog) failed(event.detail.xhr?.status);
  });
}

localise(document);
listen();

// Charts come after the first paint; the library is large.
requestAnimationFrame(() => setTimeout(() => {
  performance.start();
  heat.start();
}));
