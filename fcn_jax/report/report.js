"use strict";
// Values under the pointer, and the line between ground truth and prediction.
const charts = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function nearest(steps, step) {
  let best = 0;
  steps.forEach((one, i) => { if (Math.abs(one - step) < Math.abs(steps[best] - step)) best = i; });
  return best;
}

function follow(figure) {
  const chart = charts[figure.dataset.chart], svg = figure.querySelector("svg"), tip = figure.querySelector(".tip");
  const all = [...new Set(chart.curves.flatMap(curve => curve.steps))].sort((a, b) => a - b);
  const marks = document.createElementNS(SVG, "g");
  svg.append(marks);
  let at = all.length - 1;
  const x = step => chart.left + (step - chart.first) / (chart.last - chart.first) * (chart.right - chart.left);
  const y = value => chart.bottom - ((chart.log ? Math.log10(value) : value) - chart.low) / (chart.high - chart.low) * (chart.bottom - chart.top);

  function show() {
    const step = all[at], left = x(step);
    marks.replaceChildren();
    const cursor = document.createElementNS(SVG, "line");
    for (const [name, value] of Object.entries({ class: "cursor", x1: left, x2: left, y1: chart.top, y2: chart.bottom })) cursor.setAttribute(name, value);
    marks.append(cursor);
    const rows = [`step ${step}`];
    tip.replaceChildren();
    const head = document.createElement("div");
    head.textContent = rows[0];
    tip.append(head);
    for (const curve of chart.curves) {
      const i = nearest(curve.steps, step), value = curve.values[i];
      if (value === null) continue;
      const dot = document.createElementNS(SVG, "circle");
      for (const [name, v] of Object.entries({ class: `dot c${curve.run % 8}`, cx: x(curve.steps[i]), cy: y(value), r: 4 })) dot.setAttribute(name, v);
      marks.append(dot);
      const row = document.createElement("div"), chip = document.createElement("span");
      chip.className = `chip c${curve.run % 8}`;
      const other = curve.steps[i] === step ? "" : ` (step ${curve.steps[i]})`;
      row.append(chip, `${Number(value.toPrecision(4))}${other} ${chart.curves.length > 1 ? curve.name : ""}`);
      tip.append(row);
    }
    tip.hidden = false;
    const share = left / chart.width;
    tip.style.left = share < 0.5 ? `${share * 100 + 3}%` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `${(1 - share) * 100 + 3}%`;
  }
  function hide() { marks.replaceChildren(); tip.hidden = true; }

  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), left = (event.clientX - box.left) / box.width * chart.width;
    at = nearest(all, chart.first + (left - chart.left) / (chart.right - chart.left) * (chart.last - chart.first));
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", show);
  svg.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length }[event.key];
    if (!move) return;
    event.preventDefault();
    at = Math.min(Math.max(at + move, 0), all.length - 1);
    show();
  });
}

document.querySelectorAll("figure[data-chart]").forEach(follow);
document.querySelectorAll(".divide").forEach(input => input.addEventListener("input", () => input.parentElement.style.setProperty("--at", `${input.value}%`)));
document.querySelectorAll(".opacity").forEach(input => input.addEventListener("input", () => input.closest(".gallery").style.setProperty("--opacity", input.value / 100)));
