"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const prints = matchMedia("print");
  const NARROW_SPACE = "\u202f";
  const NO_BREAK = "\u00a0";

  /* ---- tables */
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

  /* ---- threshold explorer */
  const sum = (items, value) => items.reduce((total, each) => total + value(each), 0);
  const countText = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, NARROW_SPACE);
  const percentText = (count, samples) => `${((100 * count) / samples).toFixed(2)}${NO_BREAK}%`;

  /* The band of report/explorer.py: what two bands leave; the second, by halving, n KL(share || q) <= log(2 K / risk). */
  const divergence = (found, other) =>
    (found > 0 ? found * Math.log(found / other) : 0) + (found < 1 ? (1 - found) * Math.log((1 - found) / (1 - other)) : 0);
  const bound = (share, end, most) => {
    let [inside, outside] = [share, end];
    for (let step = 0; step < 40; step += 1) {
      const middle = (inside + outside) / 2;
      if (divergence(share, middle) <= most) inside = middle;
      else outside = middle;
    }
    return outside;
  };
  const bandText = (count, samples, thresholds, level) => {
    const [share, risk] = [count / samples, (1 - level) / 2];
    const most = Math.log((2 * thresholds) / risk) / samples;
    const reach = Math.sqrt(Math.log(2 / risk) / (2 * samples));
    const low = Math.max(bound(share, 0, most), share - reach);
    const high = Math.min(bound(share, 1, most), share + reach);
    return `${(100 * low).toFixed(2)} to ${(100 * high).toFixed(2)}${NO_BREAK}%`;
  };

  const showShare = (cell, count, samples, band) => {
    cell.querySelector(".bar").style.setProperty("--share", count / samples);
    cell.querySelector(".share").textContent = percentText(count, samples);
    cell.querySelector(".count").textContent = `${countText(count)} of ${countText(samples)}`;
    cell.querySelector(".band").textContent = band;
  };

  const makeExplorer = (element) => {
    const { keeps, level, methods } = data.explorers[element.dataset.explorer];
    const input = element.querySelector("input");
    const status = element.querySelector("[role=status]");
    const rows = [...element.querySelectorAll("[data-row]")];
    const followers = [];
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
    /* What a panel shows of a method and a set at one of the shares kept; shares in per cent. */
    const quantity = ({ quantity: what, method: name, set }, place) => {
      const method = methods.find((each) => each.method === name);
      const outside = method.sets.find((each) => each.set === set);
      const inside = method.samples - method.flagged[place];
      if (what === "threshold") return Math.min(Number(method.thresholds[place].replace("inf", "Infinity")), 1e300);
      if (what === "kept_id") return (100 * inside) / method.samples;
      if (what === "kept_ood") return (100 * outside.missed[place]) / outside.samples;
      return (100 * inside) / (inside + outside.missed[place]);
    };
    const place = () => keeps.indexOf(Math.round(10 * Number(input.value)));
    const show = () => {
      const now = place();
      if (now < 0) return null;
      const keep = `${(keeps[now] / 10).toFixed(1)}${NO_BREAK}%`;
      element.querySelector("output").textContent = keep;
      input.setAttribute("aria-valuetext", `${keep} of ID kept`);
      for (const row of rows) {
        methods.forEach((method, column) => {
          const cell = row.cells[column + 1];
          const name = row.dataset.row;
          if (name === "threshold") cell.querySelector(".share").textContent = method.thresholds[now];
          else {
            const set = method.sets[name];
            const [count, samples] = set ? [set.missed[now], set.samples] : [method.flagged[now], method.samples];
            showShare(cell, count, samples, bandText(count, samples, Math.min(keeps.length, method.samples), level));
          }
        });
      }
      followers.forEach((follow) => follow(now));
      return [keep, now];
    };
    const change = () => {
      const shown = show();
      clearTimeout(spoken);
      if (shown) spoken = setTimeout(speak, 600, ...shown);
    };
    input.addEventListener("input", change);
    show();
    return { keeps, quantity, place, follow: (listener) => followers.push(listener), move: (to) => { input.value = keeps[to] / 10; change(); } };
  };

  /* ---- theme */
  const stored = () => {
    try { return localStorage.getItem("opnp-theme"); } catch { return null; }
  };
  const keepTheme = (theme) => {
    try { localStorage.setItem("opnp-theme", theme); } catch { /* private windows have no storage: then it is not kept */ }
  };
  const theme = () => root.dataset.theme || (prefersDark.matches ? "dark" : "light");
  const toggle = document.querySelector("[data-theme-toggle]");
  const showTheme = () => toggle.setAttribute("aria-pressed", String(theme() === "dark"));

  /* ---- figures */
  const explorers = new Map();
  const plots = [...document.querySelectorAll("[data-figure]")];

  const unpacked = async (name) => {
    const packed = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const loadFigures = async () => {
    const element = document.createElement("script");
    element.textContent = await unpacked("vega-packed");
    document.head.append(element);
    return JSON.parse(await unpacked("figures-packed"));
  };

  /* The policy of the page forbids evaluation: Vega interprets its expressions (ast). */
  const OPTIONS = { mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { theme: "custom", disableDefaultStyle: true } };
  const AUTOSIZE = { type: "fit-x", contains: "padding" };

  const link = (view, { follows, drag }, element, explorer) => {
    let asked = 0;
    const follow = (place) => {
      follows.forEach((each) => view.signal(each.parameter, explorer.quantity(each, place)));
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(() => view.runAsync());
    };
    explorer.follow(follow);
    follow(explorer.place());
    if (!drag) return;
    element.classList.add("movable");
    const moveTo = (event) => {
      const svg = element.querySelector("svg");
      const box = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / box.width;
      const [left, top] = view.origin();
      const { left: paddingLeft, top: paddingTop } = view.padding();
      const at = { x: (event.clientX - box.left) * scale - left - paddingLeft, y: (event.clientY - box.top) * scale - top - paddingTop };
      const axes = ["x", "y"].filter((axis) => drag[axis]);
      const position = (axis, place) => view.scale(axis)(explorer.quantity({ ...drag, quantity: drag[axis] }, place));
      const gaps = explorer.keeps.map((_, place) => sum(axes, (axis) => (position(axis, place) - at[axis]) ** 2));
      explorer.move(gaps.indexOf(Math.min(...gaps)));
    };
    element.addEventListener("pointerdown", (event) => { element.setPointerCapture(event.pointerId); moveTo(event); });
    element.addEventListener("pointermove", (event) => { if (element.hasPointerCapture(event.pointerId)) moveTo(event); });
  };

  const draw = async (plot, panels, config) => {
    const explorer = explorers.get(plot.closest("[data-explorer]"));
    for (const [place, panel] of panels.entries()) {
      const element = plot.children[place];
      const { view } = await window.vegaEmbed(element, { ...panel.specification, config, autosize: AUTOSIZE }, OPTIONS);
      if (explorer && panel.follows.length > 0) link(view, panel, element, explorer);
    }
  };

  const whenIdle = () => new Promise((done) => (window.requestIdleCallback || setTimeout)(done, { timeout: 200 }));

  const drawAll = async () => {
    if (plots.length === 0) return;
    let loaded;
    try {
      loaded = await loadFigures();
    } catch {
      plots.forEach((plot) => {
        plot.innerHTML = '<p class="message">This browser cannot draw the figure. What it shows stands in words below.</p>';
      });
      return;
    }
    const top = (element) => Math.abs(element.getBoundingClientRect().top);
    const waiting = new Set(plots);
    while (waiting.size > 0) {
      await whenIdle();
      const next = [...waiting].reduce((one, other) => (top(other) < top(one) ? other : one));
      waiting.delete(next);
      await draw(next, loaded.figures[next.dataset.figure], loaded.config);
    }
  };

  const preparePrint = () => {
    document.querySelectorAll("details").forEach((each) => { if (!each.open) { each.open = true; each.dataset.opened = ""; } });
  };
  const finishPrint = () => {
    document.querySelectorAll("details[data-opened]").forEach((each) => { each.open = false; delete each.dataset.opened; });
  };

  /* ---- boxes that hold more than is seen */
  const markScrolling = (box) => {
    const hasMore = box.scrollWidth > box.clientWidth + 1;
    if (hasMore) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
    box.classList.toggle("more", hasMore);
    box.previousElementSibling.hidden = !hasMore;
  };

  if (stored()) root.dataset.theme = stored();
  toggle.hidden = false;
  showTheme();
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    keepTheme(root.dataset.theme);
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  prints.addEventListener("change", (event) => (event.matches ? preparePrint() : finishPrint()));
  addEventListener("beforeprint", preparePrint);
  addEventListener("afterprint", finishPrint);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  document.querySelectorAll("[data-explorer]").forEach((element) => explorers.set(element, makeExplorer(element)));
  const boxes = new ResizeObserver((entries) => entries.forEach((entry) => markScrolling(entry.target)));
  document.querySelectorAll(".scroll").forEach((box) => {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "There are more columns: scroll sideways \u2192";
    box.before(hint);
    boxes.observe(box);
  });
  const header = document.querySelector(".top");
  new ResizeObserver(() => root.style.setProperty("--top", `${header.offsetHeight}px`)).observe(header);
  drawAll().finally(() => { root.dataset.ready = ""; });
})();
