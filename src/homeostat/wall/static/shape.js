// One column: reference and current drawn over each other.
import { axes, chart, colour, tooltip } from "./charts.js";

const share = (value) => `${(100 * value).toFixed(value < 0.01 ? 2 : 1)} %`;

function option(told) {
  const bar = { type: "bar", animation: false, barGap: "-100%", barCategoryGap: "8%" };
  return {
    textStyle: { color: colour("text") },
    legend: { data: ["reference", "current"], textStyle: { color: colour("text") }, top: 0 },
    tooltip: { ...tooltip(), trigger: "axis", formatter: (items) => [items[0].name, ...items.map((item) => `${item.seriesName}: ${share(item.value)}`)].join("\n") },
    grid: { left: 48, right: 8, top: 32, bottom: 56 },
    xAxis: { type: "category", data: told.labels, ...axes(), splitLine: { show: false }, axisLabel: { color: colour("quiet"), rotate: 35, width: 70, overflow: "truncate", fontSize: 10, interval: Math.ceil(told.labels.length / 13) - 1 } },
    yAxis: { type: "value", ...axes(), axisLabel: { color: colour("quiet"), formatter: share } },
    series: [
      { ...bar, name: "reference", data: told.reference, itemStyle: { color: colour("quiet"), opacity: 0.45 } },
      { ...bar, name: "current", data: told.current, itemStyle: { color: "transparent", borderColor: colour("accent"), borderWidth: 2 } },
    ],
  };
}

export async function draw(root) {
  for (const element of root.querySelectorAll("[data-shape]")) {
    const told = JSON.parse(element.dataset.shape);
    element.removeAttribute("data-shape");
    const paint = (made) => made.setOption(option(told));
    try {
      paint(await chart(element, paint));
      element.dataset.drawn = `${told.labels.length}`;
    } catch {
      element.hidden = true; // the table has the same
    }
  }
}
