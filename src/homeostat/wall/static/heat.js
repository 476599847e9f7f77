// The heat map: columns by looks, painted as one picture, so that a third of a million cells is quick.
import { axes, chart, colour, day, json, time, zoomed } from "./charts.js";

const SHOWN = 40; // rows at first
const element = document.getElementById("heat-chart");
const said = document.getElementById("heat-said");
let told = null, cells = null, source = null, made = null;
let cursor = null; // [look, row]
let rows = 0; // that the zoom was made for

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i += 1) found[i] = raw.charCodeAt(i);
  return found;
}

function rgb(name) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.fillStyle = colour(name);
  canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
}

// Pale to full below the threshold, and another hue above it.
function palette() {
  const ends = ["heat-0", "heat-1", "heat-2", "heat-3"].map(rgb), found = [];
  const mix = (a, b, share) => [0, 1, 2].map((i) => Math.round(a[i] + (b[i] - a[i]) * Math.min(1, share)));
  for (let step = 0; step < told.broken; step += 1) {
    const ratio = step / told.steps;
    found.push(ratio <= 1 ? mix(ends[0], ends[1], ratio) : mix(ends[2], ends[3], ratio - 1));
  }
  for (const name of ["heat-broken", "heat-none"]) found.push([...rgb(name)].slice(0, 3));
  // One 32-bit number a colour, in the byte order of this machine.
  return new Uint32Array(new Uint8ClampedArray(found.flatMap((each) => [...each, 255])).buffer);
}

function picture() {
  const width = told.ends.length, height = told.names.length, colours = palette();
  const canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < cells.length; i += 1) pixels[i] = colours[cells[i]];
  context.putImageData(image, 0, 0);
  return canvas;
}

// The part of the picture that the zoom shows, at the size of the grid and without smoothing.
function drawn(params, api) {
  const area = params.coordSys, size = api.size([1, 1]);
  const left = api.coord([0, 0])[0] - size[0] / 2, top = api.coord([0, 0])[1] - size[1] / 2;
  const canvas = document.createElement("canvas"), ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(area.width * ratio)); canvas.height = Math.max(1, Math.round(area.height * ratio));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.scale(ratio, ratio);
  context.drawImage(source, left - area.x, top - area.y, size[0] * told.ends.length, size[1] * told.names.length);
  marks(context, left - area.x, top - area.y, size, area);
  const children = [{ type: "image", style: { image: canvas, x: area.x, y: area.y, width: area.width, height: area.height } }];
  if (cursor) {
    const [x, y] = [left + cursor[0] * size[0], top + cursor[1] * size[1]];
    children.push({ type: "rect", shape: { x, y, width: Math.max(3, size[0]), height: size[1] }, style: { fill: "none", stroke: colour("text"), lineWidth: 2 } });
  }
  return { type: "group", children };
}

// Beyond the threshold lie the columns that the look calls drifted, and no others.
const drifted = (step) => step > told.steps && step < told.broken;

// A dot on each cell that drifted, where there is room, and a line where another release serves.
function marks(context, left, top, size, area) {
  context.fillStyle = colour("heat-mark");
  const first = [Math.max(0, Math.floor(-left / size[0])), Math.max(0, Math.floor(-top / size[1]))];
  const last = [Math.min(told.ends.length, Math.ceil((area.width - left) / size[0])), Math.min(told.names.length, Math.ceil((area.height - top) / size[1]))];
  if (size[0] >= 7 && size[1] >= 7) {
    for (let row = first[1]; row < last[1]; row += 1) for (let look = first[0]; look < last[0]; look += 1) {
      if (drifted(cells[row * told.ends.length + look])) context.fillRect(left + (look + 0.5) * size[0] - 1.5, top + (row + 0.5) * size[1] - 1.5, 3, 3);
    }
  }
  context.fillStyle = colour("text");
  for (const look of told.begins) context.fillRect(left + look * size[0] - 0.5, 0, 1, area.height);
}

function found(step) {
  if (step === told.untested) return "not compared";
  if (step === told.broken) return "broken in the newest look";
  if (step === told.steps) return "near its threshold, not drifted";
  if (step === told.steps + 1) return "barely beyond its threshold, drifted";
  return `${(step / told.steps).toFixed(2)} × its threshold${drifted(step) ? ", drifted" : ""}`;
}

function about([look, row]) {
  const step = cells[row * told.ends.length + look];
  return `${told.names[row]}, ${told.days[look]} (${told.states[look].replaceAll("_", " ")}): ${found(step)}`;
}

// The day of each look, with the time where another one falls on the same day.
function labels(ends) {
  const names = ends.map(day), count = {};
  for (const name of names) count[name] = (count[name] ?? 0) + 1;
  return names.map((name, look) => (count[name] > 1 ? time(ends[look]) : name));
}

function option() {
  const many = told.names.length > SHOWN, narrow = element.clientWidth < 560;
  // Later the zoom is the viewer's: where it is, is said once.
  const first = rows > SHOWN === many ? {} : { startValue: 0, endValue: SHOWN - 1 };
  rows = told.names.length;
  return {
    grid: { left: narrow ? 90 : 150, right: many ? 44 : 12, top: 8, bottom: 72 },
    xAxis: { type: "category", data: told.days, ...axes(), splitLine: { show: false } },
    yAxis: { type: "category", inverse: true, data: told.names, ...axes(), axisLabel: { color: colour("text"), width: narrow ? 80 : 140, overflow: "truncate", interval: 0, fontSize: 11, hideOverlap: true } },
    dataZoom: [
      ...zoomed({ xAxisIndex: 0 }),
      { type: "slider", xAxisIndex: 0, bottom: 8, height: 24, borderColor: colour("line"), textStyle: { color: colour("quiet") }, showDataShadow: false },
      ...(many ? [{ type: "slider", yAxisIndex: 0, right: 4, width: 20, ...first, borderColor: colour("line"), showDataShadow: false, showDetail: false, zoomLock: false }] : []),
    ],
    series: [{ id: "cells", type: "custom", renderItem: drawn, data: [[0, 0]], animation: false, silent: true, clip: true }],
  };
}

function paint() {
  if (!made || !told) return;
  source = picture();
  made.setOption(option(), { replaceMerge: ["series"] });
  element.dataset.drawn = `${told.names.length}x${told.ends.length}`;
}

function cell(event) {
  const [look, row] = made.convertFromPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]) ?? [-1, -1];
  const inside = made.containPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]);
  return inside && look >= 0 && row >= 0 && look < told.ends.length && row < told.names.length ? [look, row] : null;
}

function choose([look, row]) {
  cursor = [look, row];
  made.setOption({ series: [{ id: "cells", data: [[0, 0]] }] });
  window.htmx.ajax("GET", `part/column?place=${told.places[row]}&look=${told.looks[look]}`, { target: "#column", swap: "innerHTML" });
}

async function load() {
  let next;
  try {
    next = await json("data/heat");
  } catch {
    said.textContent = "The heat map cannot be loaded; the page tries again with the next change.";
    return;
  }
  const held = cursor && [told.looks[cursor[0]], told.places[cursor[1]]];
  told = next;
  told.days = labels(told.ends);
  cells = bytes(told.cells);
  // Looks come in between and rows change places: the cursor stays with its column and look.
  cursor = held && [told.looks.indexOf(held[0]), told.places.indexOf(held[1])];
  if (cursor?.includes(-1)) cursor = null;
  if (!cells.length) {
    element.hidden = true;
    said.textContent = "There is nothing to draw yet.";
    return;
  }
  element.hidden = false;
  element.style.maxHeight = `${110 + 44 * told.names.length}px`; // few rows need no tall chart
  if (!made) {
    made = await chart(element, paint);
    made.getZr().on("mousemove", (event) => { const found = cell(event); if (found) said.textContent = about(found); });
    made.getZr().on("click", (event) => { const found = cell(event); if (found) choose(found); });
  }
  paint();
}

// The part of both axes that is seen comes after the cursor.
function follow() {
  made.getOption().dataZoom.forEach((zoom, place) => {
    const at = cursor[zoom.yAxisIndex === undefined ? 0 : 1], length = zoom.endValue - zoom.startValue;
    if (at >= zoom.startValue && at <= zoom.endValue) return;
    const startValue = at < zoom.startValue ? at : at - length;
    made.dispatchAction({ type: "dataZoom", dataZoomIndex: place, startValue, endValue: startValue + length });
  });
}

element.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.min(SHOWN, told?.names.length ?? 0) - 1);
  const step = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
    Home: [-Infinity, 0], End: [Infinity, 0], PageUp: [0, -page], PageDown: [0, page],
  }[event.key];
  if (!told?.names.length || !made) return;
  if (event.key === "Enter" && cursor) { choose(cursor); return; }
  if (!step) return;
  event.preventDefault();
  const bound = (value, most) => Math.min(most - 1, Math.max(0, value));
  cursor = cursor ? [bound(cursor[0] + step[0], told.ends.length), bound(cursor[1] + step[1], told.names.length)] : [told.ends.length - 1, 0];
  said.textContent = about(cursor);
  follow();
  made.setOption({ series: [{ id: "cells", data: [[0, 0]] }] });
});

export function start() {
  document.body.addEventListener("loop", load);
  load();
}
