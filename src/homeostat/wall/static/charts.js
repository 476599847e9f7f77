// What all charts share: the library, fetched once and late, colours of the theme, sizes.
let library = null;

export function echarts() {
  library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = new URL("echarts.min.js", import.meta.url).href;
    script.onload = () => done(window.echarts);
    script.onerror = () => { library = null; failed(new Error("the charts' library cannot be loaded")); };
    document.head.append(script);
  });
  return library;
}

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

// A colour of the theme, as the style sheet comes to it in this theme.
export function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

// A finger scrolls the page over a chart; there the slider alone zooms.
export const zoomed = (more) =>
  matchMedia("(pointer: coarse)").matches ? [] : [{ type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, ...more }];

// A chart in `element` that keeps its size; `paint` is called again when the theme changes. It goes
// with its element.
export async function chart(element, paint) {
  const made = (await echarts()).init(element, null, { renderer: "canvas" });
  const sizes = new ResizeObserver(() => (element.isConnected ? made.resize() : gone()));
  // After the page itself has its colours: a large chart takes tenths of a second.
  const themed = () => setTimeout(() => (element.isConnected ? paint(made) : gone()), 30);
  function gone() {
    sizes.disconnect();
    document.body.removeEventListener("theme", themed);
    made.dispose();
  }
  sizes.observe(element);
  document.body.addEventListener("theme", themed);
  return made;
}

export function wrapped(text, width = 64, most = 400) {
  const lines = [];
  let line = "";
  for (const word of text.slice(0, most).split(" ")) {
    if (line && line.length + word.length >= width) { lines.push(line); line = ""; }
    line += (line ? " " : "") + word;
  }
  return [...lines, line].join("\n") + (text.length > most ? " …" : "");
}

const days = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const times = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const day = (at) => days.format(new Date(at));
export const time = (at) => times.format(new Date(at));
export const number = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());

export async function json(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

export function axes() {
  const line = { lineStyle: { color: colour("line") } };
  return {
    axisLine: line, axisTick: line,
    splitLine: { lineStyle: { color: colour("line"), opacity: 0.6 } },
    axisLabel: { color: colour("quiet") },
  };
}

export function tooltip() {
  return {
    renderMode: "richText", confine: true, transitionDuration: 0,
    backgroundColor: colour("panel"), borderColor: colour("line"),
    textStyle: { color: colour("text"), fontSize: 12 },
  };
}
