// The comparison of runs: sort by a header, filter, show differences; the choices are kept in the address.
"use strict";
(function () {
  const table = document.getElementById("comparison");
  const form = document.getElementById("compare-controls");
  if (!table || !form) { return; }
  const status = document.getElementById("compare-status");
  const headers = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(table.tBodies[0].rows);
  const fields = {
    q: "filter-text", notebook: "filter-notebook", profile: "filter-profile", arm: "filter-arm",
    against: "against", from: "against-arm",
  };
  const control = {};
  Object.keys(fields).forEach(function (name) { control[name] = document.getElementById(fields[name]); });
  rows.forEach(function (row, i) {
    row.place = i;
    row.said = row.textContent.toLowerCase();
    Array.from(row.cells).forEach(function (cell) {
      cell.value = cell.dataset.value ? Number(cell.dataset.value) : null;
      cell.shown = cell.value; // what is sorted by: the difference, where one is shown
      cell.original = Array.from(cell.childNodes);
    });
  });
  let sorted = null; // {column, direction}

  function signed(number) {
    if (Math.abs(number) < 1e-12) { return "0"; }
    const text = String(Number(Math.abs(number).toPrecision(3)));
    return (number < 0 ? "−" : "+") + text;
  }

  // The row that another is measured against, or in words why there is none.
  function reference(row, run, arm) {
    const wanted = run === "own" ? row.dataset.run : run;
    const sameRun = rows.filter(function (other) { return other.dataset.run === wanted; });
    if (sameRun[0].dataset.notebook !== row.dataset.notebook) { return "the chosen run is of another notebook"; }
    const name = arm || row.dataset.arm;
    const found = sameRun.find(function (other) {
      return other.dataset.arm === name && other.dataset.part === row.dataset.part;
    });
    const where = row.dataset.part ? " at " + row.dataset.part : "";
    return found || "the chosen run has no row " + name + where;
  }

  function show(cell, parts, title) {
    cell.replaceChildren.apply(cell, parts);
    if (title) { cell.title = title; } else { cell.removeAttribute("title"); }
  }

  function small(text) {
    const element = document.createElement("small");
    element.textContent = text;
    return element;
  }

  function difference(cell, other, column) {
    if (cell.value === null) { cell.shown = null; return; }
    const base = typeof other === "string" ? null : other.cells[column].value;
    if (base === null) {
      cell.shown = null;
      show(cell, [], typeof other === "string" ? other : "the chosen row has no such number");
      return;
    }
    cell.shown = cell.value - base;
    const number = document.createElement("b");
    number.textContent = signed(cell.shown);
    const from = Number(cell.value.toPrecision(4)) + " against " + Number(base.toPrecision(4));
    show(cell, [number, small(from)], "");
  }

  function compare() {
    const run = control.against.value;
    control.from.disabled = !run;
    rows.forEach(function (row) {
      const other = run ? reference(row, run, control.from.value) : null;
      row.classList.toggle("reference", other === row);
      Array.from(row.cells).forEach(function (cell, column) {
        if (!cell.classList.contains("measure")) { return; }
        if (run) { difference(cell, other, column); } else { cell.shown = cell.value; show(cell, cell.original, ""); }
      });
    });
  }

  function filter() {
    const words = control.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach(function (row) {
      row.hidden = !(words.every(function (word) { return row.said.includes(word); }) &&
        ["notebook", "profile", "arm"].every(function (name) {
          return !control[name].value || row.dataset[name] === control[name].value;
        }));
      count += row.hidden ? 0 : 1;
    });
    // Columns that no shown row fills only take room.
    headers.forEach(function (header, column) {
      const empty = !rows.some(function (row) {
        const cell = row.cells[column];
        return !row.hidden && (header.dataset.kind === "measure" ? cell.value !== null : cell.textContent.trim());
      });
      header.hidden = empty;
      rows.forEach(function (row) { row.cells[column].hidden = empty; });
    });
    status.textContent = count + " of " + rows.length + " rows shown" +
      (control.against.value ? ", as differences. A blank cell says on hover why it is blank." : ".");
  }

  function order() {
    headers.forEach(function (header, i) {
      header.setAttribute("aria-sort", sorted && sorted.column === i ? sorted.direction : "none");
    });
    const list = rows.slice();
    if (sorted) {
      const numeric = headers[sorted.column].dataset.kind !== "text";
      const sign = sorted.direction === "ascending" ? 1 : -1;
      list.sort(function (a, b) {
        const left = a.cells[sorted.column], right = b.cells[sorted.column];
        const x = numeric ? left.shown : left.textContent.trim(), y = numeric ? right.shown : right.textContent.trim();
        const gone = [x, y].map(function (value) { return value === null || value === ""; });
        if (gone[0] || gone[1]) { return gone[0] - gone[1] || a.place - b.place; } // blanks last, both ways
        const way = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return sign * way || a.place - b.place;
      });
    }
    table.tBodies[0].append.apply(table.tBodies[0], list);
  }

  function remember() {
    const state = new URLSearchParams();
    Object.keys(control).forEach(function (name) {
      if (control[name].value) { state.set(name, control[name].value); }
    });
    if (!control.notebook.value) { state.set("notebook", "all"); }
    if (sorted) { state.set("sort", sorted.column + "-" + sorted.direction); }
    const hash = "#" + state.toString();
    if (location.hash !== hash) { location.replace(hash); }
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    Object.keys(control).forEach(function (name) {
      control[name].value = state.get(name) || "";
      if (control[name].selectedIndex === -1) { control[name].value = ""; } // no such choice (any more)
    });
    // The arms of 04 are what most come for; all runs at once share few columns.
    if (!state.has("notebook")) { control.notebook.value = "04_sae_compare"; }
    if (control.notebook.selectedIndex === -1) { control.notebook.value = ""; }
    const sort = /^(\d+)-(ascending|descending)$/.exec(state.get("sort") || "");
    sorted = sort && headers[sort[1]] ? { column: Number(sort[1]), direction: sort[2] } : null;
  }

  function refresh() { compare(); filter(); order(); }

  headers.forEach(function (header, column) {
    header.querySelector("button").addEventListener("click", function () {
      const again = sorted && sorted.column === column && sorted.direction === "ascending";
      sorted = { column: column, direction: again ? "descending" : "ascending" };
      refresh();
      remember();
    });
  });
  form.addEventListener("input", function () { refresh(); remember(); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function (event) {
    event.preventDefault();
    Object.keys(control).forEach(function (name) { control[name].value = ""; });
    sorted = null;
    refresh();
    remember();
  });
  window.addEventListener("hashchange", function () { recall(); refresh(); });
  form.hidden = false;
  recall();
  refresh();
})();
