"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const prints = matchMedia("print");
  const NARROW_SPACE = "\u202f";
  const NO_BREAK = "\u00a0";

  /* ------------------------------------------------------------------------------------------------- tables */
  const sorted = (rows, column, sign) => {
    const key = (row) => (row.cells[column] || { dataset: {} }).dataset.value;
    const compare = (first, second) => {
      const [one, other] = [key(first.row), key(second.row)];
      if (!one || !other) return Boolean(one) === Boolean(other) ? first.place - second.place : one ? -1 : 1;
      const numbers = [Number(one), Number(other)];
      const order = numbers.some(Number.isNaN) ? one.localeCompare(other, "en") : numbers[0] - numbers[1];
      return sign * order || first.place - second.place;
    };
    return rows.sort(compare);
  };

  const makeSortable = (table) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({ row, place }));
    table.querySelectorAll("button[data-sort]").forEach((button) => {
      button.addEventListener("click", () => {
        const header = button.closest("th");
        const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        table.querySelectorAll("[aria-sort]").forEach((each) => each.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        body.append(...sorted([...rows], Number(button.dataset.sort), sign).map((each) => each.row));
      });
    });
  };

  /* ---------------------------------------------------------------------------------------- threshold explorer */
  const sum = (items, value) => items.reduce((total, each) => total + value(each), 0);
  const countText = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, NARROW_SPACE);
  const percentText = (count, samples) => `${((100 * count) / samples).toFixed(2)}${NO_BREAK}%`;

  const showShare = (cell, count, samples) => {
    cell.querySelector(".bar").style.setProperty("--share", count / samples);
    cell.querySelector(".share").textContent = percentText(count, samples);
    cell.querySelector(".count").textContent = `${countText(count)} of ${countText(samples)}`;
  };

  const makeExplorer = (element) => {
    const { keeps, methods } = data.explorers[element.dataset.explorer];
    const input = element.querySelector("input");
    const status = element.querySelector("[role=status]");
    const rows = [...element.querySelectorAll("[data-row]")];
    let spoken = 0;
    const speak = (keep, place) => {
      const parts = methods.map((method) => {
        const samples = sum(method.sets, (each) => each.samples);
        const missed = sum(method.sets, (each) => each.missed[place]);
        const ood = samples ? `, ${percentText(missed, samples)} of all OOD missed` : "";
        return `${method.name}: ${percentText(method.flagged[place], method.samples)} of ID flagged${ood}`;
      });
      status.textContent = `${keep} of ID kept. ${parts.join(". ")}.`;
    };
    const show = () => {
      const place = keeps.indexOf(Math.round(10 * Number(input.value)));
      if (place < 0) return null;
      const keep = `${(keeps[place] / 10).toFixed(1)}${NO_BREAK}%`;
      element.querySelector("output").textContent = keep;
      input.setAttribute("aria-valuetext", `${keep} of ID kept`);
      for (const row of rows) {
        methods.forEach((method, column) => {
          const cell = row.cells[column + 1];
          const name = row.dataset.row;
          if (name === "threshold") cell.querySelector(".share").textContent = method.thresholds[place];
          else if (name === "flagged") showShare(cell, method.flagged[place], method.samples);
          else showShare(cell, method.sets[name].missed[place], method.sets[name].samples);
        });
      }
      return [keep, place];
    };
    input.addEventListener("input", () => {
      const shown = show();
      clearTimeout(spoken);
      if (shown) spoken = setTimeout(speak, 600, ...shown);
    });
    show();
  };

  /* ------------------------------------------------------------------------------------------------- theme */
  const stored = () => {
    try { return localStorage.getItem("opnp-theme"); } catch { return null; }
  };
  const keepTheme = (theme) => {
    try { localStorage.setItem("opnp-theme", theme); } catch { /* private windows have no storage: then it is not kept */ }
  };
  const theme = () => {
    return root.dataset.theme || (prefersDark.matches ? "dark" : "light");
  };
  const toggle = document.querySelector("[data-theme-toggle]");
  const showTheme = () => toggle.setAttribute("aria-pressed", String(theme() === "dark"));

  /* ------------------------------------------------------------------------------------------------- figures */
  const drawn = new Map();
  const plots = [...document.querySelectorAll("[data-figure]")];
  const isCoarse = matchMedia("(pointer: coarse)").matches;

  const unpacked = async () => {
    const packed = atob(document.getElementById("plotly-packed").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const loadPlotly = async () => {
    const element = document.createElement("script");
    element.textContent = await unpacked();
    document.head.append(element);
  };

  /* Printers get plain fills with outlines: each hatched bar would be a picture of its own in a PDF. */
  const printable = (trace) => {
    if (!trace.marker || !trace.marker.pattern) return trace;
    const { pattern, ...marker } = trace.marker;
    return { ...trace, marker: { ...marker, opacity: 0.4, line: { color: marker.color, width: 1 } } };
  };

  /* The width of a printed page is known to no script: this one fits A4 and Letter between their margins. */
  const PRINTED = { width: 670, autosize: false };

  const draw = (element, look) => {
    const { data: shown, layout } = data.figures[element.dataset.figure];
    const isPrinted = look === "print";
    const traces = isPrinted ? shown.map(printable) : shown;
    const template = data.templates[isPrinted ? "light" : look];
    const looks = { ...layout, template, dragmode: isCoarse ? false : "zoom", ...(isPrinted ? PRINTED : {}) };
    drawn.set(element, look);
    return window.Plotly.react(element, traces, looks, { displayModeBar: false, responsive: !isPrinted });
  };

  const drawAs = (look) => plots.filter((element) => drawn.get(element) !== look).forEach((element) => draw(element, look));

  const whenIdle = () => new Promise((done) => (window.requestIdleCallback || setTimeout)(done, { timeout: 200 }));

  const drawAll = async () => {
    if (plots.length === 0) return;
    try {
      await loadPlotly();
    } catch {
      plots.forEach((element) => {
        element.style.height = "auto";
        element.innerHTML = '<p class="message">This browser cannot draw the figure. What it shows stands in words below.</p>';
      });
      return;
    }
    const top = (element) => Math.abs(element.getBoundingClientRect().top);
    const waiting = new Set(plots);
    while (waiting.size > 0) {
      await whenIdle();
      const next = [...waiting].reduce((one, other) => (top(other) < top(one) ? other : one));
      waiting.delete(next);
      if (!drawn.has(next)) draw(next, prints.matches ? "print" : theme());
    }
  };

  const restyle = () => {
    showTheme();
    if (window.Plotly) [...drawn.keys()].forEach((element) => drawn.get(element) !== theme() && draw(element, theme()));
  };

  const preparePrint = () => {
    document.querySelectorAll("details").forEach((each) => { if (!each.open) { each.open = true; each.dataset.opened = ""; } });
    if (window.Plotly) drawAs("print");
  };
  const finishPrint = () => {
    document.querySelectorAll("details[data-opened]").forEach((each) => { each.open = false; delete each.dataset.opened; });
    restyle();
    if (window.Plotly) [...drawn.keys()].forEach((element) => window.Plotly.Plots.resize(element));
  };

  /* ------------------------------------------------------------------------------------- keyboard reach of boxes */
  const markScrolling = (box) => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  };

  if (stored()) root.dataset.theme = stored();
  toggle.hidden = false;
  showTheme();
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    keepTheme(root.dataset.theme);
    restyle();
  });
  prefersDark.addEventListener("change", restyle);
  prints.addEventListener("change", (event) => (event.matches ? preparePrint() : finishPrint()));
  addEventListener("beforeprint", preparePrint);
  addEventListener("afterprint", finishPrint);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("[data-explorer]").forEach(makeExplorer);
  const boxes = new ResizeObserver((entries) => entries.forEach((entry) => markScrolling(entry.target)));
  document.querySelectorAll(".scroll").forEach((box) => boxes.observe(box));
  drawAll().finally(() => { root.dataset.ready = ""; });
})();
