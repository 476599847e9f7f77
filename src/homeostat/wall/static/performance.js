// Performance over time: realised, estimated and the first release, with every decision below.
import { axes, chart, colour, json, number, time, tooltip, wrapped, zoomed } from "./charts.js";

const BACK = "path://M0 0L10 5L0 10L3 5Z";
const NAMES = { realised: "realised", estimated: "estimated", first_release: "first release, frozen", baseline: "baseline" };
const CALL = "path://M0 0L10 0L5 10Z";
const NARROW = 36; // letters of a line of the tooltip
const DAY = 86400000;
const FEW = 5; // looks below which each figure is drawn large
const SIGNS = { retrain: "triangle", recalibrate: "diamond", roll_back: BACK, rolled_back: BACK, stop_and_call: CALL, adopt: "rect", first: "rect", adopted: "rect", approved: "rect", hold: "circle" };

const element = document.getElementById("performance-chart");
const said = document.getElementById("performance-said");
const HINT = said.textContent;
let told = null, made = null, cursor = -1;

const column = (name) => 3 + told.figures.indexOf(name);
// What labels have shown stands where its rows end; an estimate where the window does.
const at = (look, name) => (name === "realised" || name === "first_release" ? look[1] : look[0]);

function line(name, style, more = {}) {
  const place = column(name), few = told.looks.length < 80;
  return {
    id: name, name: NAMES[name], type: "line", connectNulls: false, animation: false, symbolSize: told.looks.length < FEW ? 9 : 4, ...style, ...more,
    symbol: few ? more.symbol ?? "circle" : "none",
    data: more.data ?? told.looks.map((look) => [at(look, name), look[place]?.[0] ?? null]),
  };
}

function band(name, tone) {
  const place = column(name);
  const rows = told.looks.map((look) => [at(look, name), ...(look[place] ?? [null, null, null])]);
  const whole = (row) => row[2] !== null && row[3] !== null;
  const common = { type: "line", stack: name, stackStrategy: "all", symbol: "none", silent: true, animation: false, lineStyle: { width: 0 }, tooltip: { show: false } };
  return [
    { ...common, id: `${name}-low`, data: rows.map((row) => [row[0], whole(row) ? row[2] : null]) },
    { ...common, id: `${name}-band`, areaStyle: { color: tone, opacity: 0.16 }, data: rows.map((row) => [row[0], whole(row) ? row[3] - row[2] : null]) },
  ];
}

function decisions() {
  const [quiet, bad, accent] = ["quiet", "bad", "accent"].map(colour);
  return {
    id: "decisions", name: "decisions", type: "scatter", xAxisIndex: 1, yAxisIndex: 1, animation: false, large: false,
    data: told.turns.map((turn, place) => ({
      value: [turn[0], 0, place], symbol: SIGNS[turn[1]] ?? "rect",
      symbolSize: turn[1] === "hold" ? 5 : 13,
      itemStyle: { color: turn[1] === "hold" ? quiet : turn[1] === "stop_and_call" ? bad : accent },
    })),
  };
}

// What stood at each look, across the whole chart.
function baseline(ends) {
  const place = column("baseline"), known = told.looks.filter((look) => look[place]);
  if (!known.length) return [];
  const points = known.map((look) => [look[0], look[place][0]]);
  return [[ends[0], points[0][1]], ...points, [ends[1], points.at(-1)[1]]];
}

function about(turn) {
  return `${time(turn[0])}: ${turn[2]}. ${turn[3]} ${turn[4]}`.trim();
}

const nearest = (rows, gap) => rows.reduce((best, row) => (gap(row) < gap(best) ? row : best), rows[0]);
const nearestLook = (at) => nearest(told.looks, (look) => Math.min(Math.abs(look[0] - at), Math.abs(look[1] - at)));
const nearestTurn = (at) => nearest(told.turns, (turn) => Math.abs(turn[0] - at));

// All figures of one look, whether they stand at its end or where its labels end.
function figures(look) {
  return told.figures.filter((name) => look[column(name)]).map((name) => {
    const [value, low, high] = look[column(name)];
    const ends = low === null || high === null ? "" : ` (${number(low)} to ${number(high)})`;
    return `${NAMES[name]} ${number(value)}${ends}`;
  });
}

function formatted(params) {
  const item = Array.isArray(params) ? params[0] : params, at = item.axisValue ?? item.value[0];
  const look = nearestLook(at), turn = item.axisValue === undefined ? told.turns[item.value[2]] : nearestTurn(at);
  const lines = [`Look to ${time(look[0])}`, ...figures(look)];
  if (turn) lines.push(`${time(turn[0])}: ${turn[2]}`);
  return lines.map((line) => wrapped(line, NARROW)).join("\n");
}

// Both axes have the same ends, or a decision would stand beside its look; nothing lies on an edge.
function span() {
  const times = [...told.looks.flatMap((look) => [look[0], look[1]]), ...told.turns.map((turn) => turn[0])];
  const [first, last] = [Math.min(...times), Math.max(...times)], room = Math.max((last - first) / 40, DAY / 2);
  return [first - room, last + room];
}

function option() {
  const [min, max] = span(), narrow = element.clientWidth < 560;
  const x = { type: "time", ...axes(), splitLine: { show: false }, min, max };
  x.axisLabel = { ...x.axisLabel, hideOverlap: true };
  return {
    textStyle: { color: colour("text") },
    legend: { itemGap: narrow ? 6 : 10, itemWidth: narrow ? 18 : 25, data: Object.values(NAMES), textStyle: { color: colour("text") }, top: 0 },
    tooltip: { ...tooltip(), trigger: "axis", formatter: formatted },
    axisPointer: { link: [{ xAxisIndex: "all" }] },
    grid: [{ left: 56, right: 16, top: narrow ? 72 : 52, bottom: 104 }, { left: 56, right: 16, height: 24, bottom: 64 }],
    xAxis: [{ ...x, gridIndex: 0 }, { ...x, gridIndex: 1, axisLabel: { show: false }, axisTick: { show: false } }],
    yAxis: [
      { type: "value", scale: true, gridIndex: 0, name: told.metric, nameTextStyle: { color: colour("quiet"), align: "left" }, ...axes() },
      { type: "value", gridIndex: 1, min: -1, max: 1, show: false },
    ],
    dataZoom: [
      ...zoomed({ xAxisIndex: [0, 1] }),
      { type: "slider", xAxisIndex: [0, 1], bottom: 8, height: 28, textStyle: { color: colour("quiet") }, borderColor: colour("line") },
    ],
    series: [
      ...band("realised", colour("accent")), ...band("estimated", colour("second")),
      line("baseline", { lineStyle: { color: colour("quiet"), width: 1, type: "solid" }, itemStyle: { color: colour("quiet") } }, { step: "end", symbol: "none", data: baseline([min, max]) }),
      line("first_release", { lineStyle: { color: colour("third"), type: "dotted", width: 2 }, itemStyle: { color: colour("third") } }, { symbol: "rect" }),
      line("estimated", { lineStyle: { color: colour("second"), type: "dashed", width: 1.5 }, itemStyle: { color: colour("second") } }, { symbol: "diamond" }),
      line("realised", { lineStyle: { color: colour("accent"), width: 2 }, itemStyle: { color: colour("accent") } }),
      decisions(),
    ],
  };
}

function paint() {
  if (!made || !told) return;
  made.setOption(option(), { replaceMerge: ["series"] });
  element.dataset.drawn = `${told.looks.length}`;
}

// What the tooltip shows and the whole reason, for those who read the page in another way.
function hovered(event) {
  const at = made.convertFromPixel({ xAxisIndex: 0 }, event.offsetX);
  if (!told?.looks.length || !Number.isFinite(at)) return;
  const look = nearestLook(at), turn = nearestTurn(at);
  said.textContent = `Look to ${time(look[0])}: ${figures(look).join(", ")}. ${turn ? about(turn) : ""}`;
}

async function load() {
  try {
    told = await json("data/performance");
  } catch {
    said.textContent = "The figures cannot be loaded; the page tries again with the next change.";
    return;
  }
  if (!told.looks.length) {
    element.hidden = true;
    said.textContent = told.turns.length
      ? "There is nothing to draw yet: no look has figures. They come with the first look after labels have arrived; the decisions stand below."
      : "There is nothing to draw yet: the first look has not been taken.";
    return;
  }
  if (element.hidden) said.textContent = HINT;
  element.hidden = false;
  if (!made) {
    made = await chart(element, paint);
    made.getZr().on("mousemove", hovered);
  }
  paint();
}

element.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (step === undefined || !told?.turns.length) return;
  event.preventDefault();
  const last = told.turns.length - 1;
  cursor = cursor < 0 && step === -1 ? last : Math.min(last, Math.max(0, cursor + step));
  said.textContent = about(told.turns[cursor]);
  const place = made.getOption().series.findIndex((each) => each.id === "decisions");
  made.dispatchAction({ type: "showTip", seriesIndex: place, dataIndex: cursor });
});

export function start() {
  document.body.addEventListener("loop", load);
  load();
}
