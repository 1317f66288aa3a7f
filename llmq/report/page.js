"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const pictures = JSON.parse(byId("data").textContent);
  const root = document.documentElement;

  const theme = byId("theme");
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.hidden = false;
  nameTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });

  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const share = (part, whole) => `${(100 * part / Math.max(1, whole)).toFixed(2)} %`;

  const LEFT = 20, RIGHT = 700, TOP = 14, MIDDLE = 220, FOOT = 330;
  const draw = (name) => {
    const { first, width, counts, below, above, usage } = pictures[name];
    const all = usage.reduce((a, b) => a + b, 0);
    const span = width * counts.length;
    const x = (value) => LEFT + (value - first) / span * (RIGHT - LEFT);
    const label = `Histogram of ${name} over its ${usage.length} levels: ${share(below, all)} of the weights lie below the picture, ${share(above, all)} above.`;
    const picture = svg("svg", { viewBox: "0 0 720 360", role: "img", "aria-label": label });
    const highest = Math.max(1, ...counts);
    counts.forEach((count, i) => {
      const height = count / highest * (MIDDLE - TOP);
      const bar = svg("rect", { class: "bar", x: x(first + i * width), y: MIDDLE - height, width: (RIGHT - LEFT) / counts.length, height });
      bar.append(svg("title", {}, `${(first + i * width).toFixed(2)} to ${(first + (i + 1) * width).toFixed(2)}: ${count}`));
      picture.append(bar);
    });
    const most = Math.max(1, ...usage);
    const step = Math.max(1, usage.length / 16);
    usage.forEach((count, code) => {
      if (usage.length <= 64) picture.append(svg("line", { class: "rung", x1: x(code), x2: x(code), y1: TOP, y2: MIDDLE }));
      const height = count / most * (FOOT - MIDDLE - 24), wide = Math.max(1, (RIGHT - LEFT) / span * 0.7);
      const bar = svg("rect", { class: "bar used", x: x(code) - wide / 2, y: FOOT - height, width: wide, height });
      bar.append(svg("title", {}, `code ${code}: ${count} weights, ${share(count, all)}`));
      picture.append(bar);
      if (code % step === 0 || code === usage.length - 1) picture.append(svg("text", { class: "tick", x: x(code), y: FOOT + 16, "text-anchor": "middle" }, code));
    });
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: MIDDLE, y2: MIDDLE }), svg("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: FOOT, y2: FOOT }));
    picture.append(svg("text", { class: "tick", x: (LEFT + RIGHT) / 2, y: 356, "text-anchor": "middle" }, "code; a step is the scale of the weight's group"));
    const caption = document.createElement("figcaption");
    caption.textContent = label;
    const figure = document.createElement("figure");
    figure.append(picture, caption);
    byId("picture").replaceChildren(figure);
  };

  const choice = byId("choice");
  if (choice) {
    for (const name of Object.keys(pictures)) choice.add(new Option(name, name));
    choice.addEventListener("change", () => draw(choice.value));
    draw(choice.value);
  }
  const choose = (name) => {
    if (!choice || !Object.hasOwn(pictures, name)) return;
    choice.value = name;
    draw(name);
    byId("histogram").scrollIntoView({ block: "nearest" });
  };

  // One field takes part in the order of the Tab key; the arrows move from field to field.
  const cells = [...document.querySelectorAll("#heatmap .cell")];
  const told = byId("told");
  cells.forEach((cell, i) => {
    cell.tabIndex = i === 0 ? 0 : -1;
    const tell = () => { told.textContent = cell.title; };
    cell.addEventListener("mouseenter", tell);
    cell.addEventListener("focus", tell);
    cell.addEventListener("click", () => choose(cell.dataset.name));
    cell.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(cell.dataset.name); return; }
      const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
      const row = cell.parentElement;
      const next = byId("heatmap").rows[row.rowIndex + down]?.cells[cell.cellIndex + right];
      if (!(down || right) || !next?.classList.contains("cell")) return;
      event.preventDefault();
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });

  const table = byId("tensors");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = heading.ariaSort !== "ascending";
      for (const other of headings) other.ariaSort = "none";
      heading.ariaSort = up ? "ascending" : "descending";
      const key = (row) => row.cells[column].dataset.key;
      const compare = column === 0 ? (a, b) => a.localeCompare(b, "en", { numeric: true }) : (a, b) => Number(a) === Number(b) ? 0 : Number(a) - Number(b);
      rows.sort((a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        return (up ? 1 : -1) * compare(key(a), key(b));
      });
      body.append(...rows);
    });
  });

  const query = byId("query"), width = byId("width"), shown = byId("shown");
  const filter = () => {
    const text = query.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits = row.cells[0].dataset.key.toLowerCase().includes(text) && (!width.value || row.dataset.bits === width.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length}`;
  };
  byId("filter").hidden = false;
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", filter);
  width.addEventListener("change", filter);
  filter();
})();
