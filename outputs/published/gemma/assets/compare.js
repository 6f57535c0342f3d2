// The comparison of runs: sort by a header, filter, show differences; the choices are kept in the address.
// What takes a browser long is to lay out thousands of rows, so most wait out of sight until they are scrolled to.
"use strict";
(function () {
  const FIRST = 200, MORE = 400; // rows that are laid out at first, and more whenever their end comes near
  const TYPING = 150; // milliseconds without a key after which a search is answered
  const table = document.getElementById("comparison");
  const form = document.getElementById("compare-controls");
  if (!table || !form) { return; }
  const status = document.getElementById("compare-status");
  const rest = document.getElementById("compare-rest");
  const headers = Array.from(table.tHead.rows[0].cells);
  const kinds = headers.map(function (header) { return header.dataset.kind; });
  const collator = new Intl.Collator(undefined, { numeric: true });
  const fields = {
    q: "filter-text", notebook: "filter-notebook", profile: "filter-profile", arm: "filter-arm",
    against: "against", from: "against-arm",
  };
  const control = {};
  Object.keys(fields).forEach(function (name) { control[name] = document.getElementById(fields[name]); });

  const runs = new Map(); // by name: a run's notebook, and its rows by arm and part
  const rows = Array.from(table.tBodies[0].rows, function (element, place) {
    const cells = Array.from(element.cells);
    const values = cells.map(function (cell) { return cell.dataset.value ? Number(cell.dataset.value) : null; });
    const texts = cells.map(function (cell, i) { return kinds[i] === "measure" ? "" : cell.textContent.trim(); });
    const row = Object.assign({
      element: element, cells: cells, place: place, values: values, texts: texts, originals: null,
      said: element.textContent.toLowerCase(), drawn: "",
      shown: values, // what is sorted by: the differences, where they are shown
      other: null, // the row that it is measured against, or in words why there is none
    }, element.dataset);
    if (!runs.has(row.run)) { runs.set(row.run, { notebook: row.notebook, rows: new Map() }); }
    const known = runs.get(row.run).rows, unit = JSON.stringify([row.arm, row.part]);
    if (!known.has(unit)) { known.set(unit, row); }
    return row;
  });
  let list = rows; // as they are sorted
  let standing = rows; // those that are shown, in their order
  let sorted = null; // {column, direction}
  let limit = FIRST;
  let measured = "", ordered = "", written = ""; // what numbers, order and address were last made of

  function signed(number) {
    if (Math.abs(number) < 1e-12) { return "0"; }
    const text = String(Number(Math.abs(number).toPrecision(3)));
    return (number < 0 ? "−" : "+") + text;
  }

  function reference(row, name, arm) {
    const run = runs.get(name === "own" ? row.run : name);
    if (run.notebook !== row.notebook) { return "the chosen run is of another notebook"; }
    const found = run.rows.get(JSON.stringify([arm || row.arm, row.part]));
    return found || "the chosen run has no row " + (arm || row.arm) + (row.part ? " at " + row.part : "");
  }

  function show(cell, parts, title) {
    cell.replaceChildren.apply(cell, parts);
    if (title) { cell.title = title; } else { cell.removeAttribute("title"); }
  }

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  function base(row, column) { return row.other && row.other.values ? row.other.values[column] : null; }

  // The numbers of all rows: values, or differences where a run to subtract is chosen.
  function measure() {
    const name = control.against.value, arm = control.from.value;
    control.from.disabled = !name;
    const wanted = name && JSON.stringify([name, arm]);
    if (wanted === measured) { return; }
    measured = wanted;
    rows.forEach(function (row) {
      row.other = name ? reference(row, name, arm) : null;
      row.shown = !name ? row.values : row.values.map(function (value, column) {
        if (kinds[column] !== "measure") { return value; }
        return value === null || base(row, column) === null ? null : value - base(row, column);
      });
    });
  }

  // Writes a row's numbers into its cells, if they say something else.
  function draw(row) {
    if (row.drawn === measured) { return; }
    row.drawn = measured;
    row.originals = row.originals || row.cells.map(function (cell) { return Array.from(cell.childNodes); });
    row.element.classList.toggle("reference", row.other === row);
    row.cells.forEach(function (cell, column) {
      const value = row.values[column];
      if (kinds[column] !== "measure" || value === null) { return; }
      if (!measured) { show(cell, row.originals[column], ""); return; }
      if (row.shown[column] === null) {
        show(cell, [], typeof row.other === "string" ? row.other : "the chosen row has no such number");
        return;
      }
      const from = Number(value.toPrecision(4)) + " against " + Number(base(row, column).toPrecision(4));
      show(cell, [element("b", signed(row.shown[column])), element("small", from)], "");
    });
  }

  function order() {
    headers.forEach(function (header, i) {
      header.setAttribute("aria-sort", sorted && sorted.column === i ? sorted.direction : "none");
    });
    const wanted = sorted ? JSON.stringify([sorted, kinds[sorted.column] === "measure" && measured]) : "";
    if (wanted === ordered) { return; }
    ordered = wanted;
    list = rows.slice();
    if (sorted) {
      const column = sorted.column, numeric = kinds[column] !== "text";
      const sign = sorted.direction === "ascending" ? 1 : -1;
      list.sort(function (a, b) {
        const x = numeric ? a.shown[column] : a.texts[column], y = numeric ? b.shown[column] : b.texts[column];
        const gone = [x, y].map(function (value) { return value === null || value === ""; });
        if (gone[0] || gone[1]) { return gone[0] - gone[1] || a.place - b.place; } // blanks last, both ways
        return sign * (numeric ? x - y : collator.compare(x, y)) || a.place - b.place;
      });
    }
  }

  // Shows these rows and no others, in this order: those that stand rightly already are not touched.
  function stand(wanted) {
    const seen = new Set(wanted);
    standing.forEach(function (row) { row.element.hidden = !seen.has(row); });
    const kept = standing.filter(function (row) { return seen.has(row); });
    const right = kept.every(function (row, i) { return row === wanted[i]; }) ? kept.length : 0;
    wanted.slice(right).forEach(function (row) { row.element.hidden = false; });
    table.tBodies[0].append.apply(table.tBodies[0], wanted.slice(right).map(function (row) { return row.element; }));
    wanted.forEach(draw);
    standing = wanted;
  }

  function filter() {
    const words = control.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = ["notebook", "profile", "arm"].map(function (name) { return [name, control[name].value]; })
      .filter(function (pair) { return pair[1]; });
    const found = list.filter(function (row) {
      return chosen.every(function (pair) { return row[pair[0]] === pair[1]; }) &&
        words.every(function (word) { return row.said.includes(word); });
    });
    stand(found.slice(0, limit));
    // Columns that no row found fills only take room.
    headers.forEach(function (header, column) {
      const empty = !found.some(function (row) {
        return kinds[column] === "measure" ? row.values[column] !== null : row.texts[column];
      });
      if (header.hidden === empty) { return; }
      header.hidden = empty;
      rows.forEach(function (row) { row.cells[column].hidden = empty; });
    });
    status.textContent = found.length + " of " + rows.length + " rows shown" +
      (measured ? ", as differences. A blank cell says on hover why it is blank." : ".");
    rest.hidden = found.length <= limit;
    rest.textContent = "Show more: " + (found.length - limit) + " further rows";
  }

  function remember() {
    const state = new URLSearchParams();
    Object.keys(control).forEach(function (name) {
      if (control[name].value) { state.set(name, control[name].value); }
    });
    if (!control.notebook.value) { state.set("notebook", "all"); }
    if (sorted) { state.set("sort", sorted.column + "-" + sorted.direction); }
    written = "#" + state.toString();
    if (location.hash !== written) { location.replace(written); }
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

  function refresh() {
    limit = FIRST;
    measure();
    order();
    filter();
  }

  let typed = null;
  function changed() {
    clearTimeout(typed);
    refresh();
    remember();
  }

  function more(by) {
    limit += by;
    filter();
  }

  headers.forEach(function (header, column) {
    header.querySelector("button").addEventListener("click", function () {
      const again = sorted && sorted.column === column && sorted.direction === "ascending";
      sorted = { column: column, direction: again ? "descending" : "ascending" };
      changed();
    });
  });
  form.addEventListener("input", function (event) {
    clearTimeout(typed);
    if (event.target === control.q) { typed = setTimeout(changed, TYPING); } else { changed(); }
  });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function (event) {
    event.preventDefault();
    Object.keys(control).forEach(function (name) { control[name].value = ""; });
    sorted = null;
    changed();
  });
  rest.addEventListener("click", function () { more(MORE); });
  new IntersectionObserver(function (entries) {
    if (entries.some(function (entry) { return entry.isIntersecting; })) { more(MORE); }
  }, { rootMargin: "1000px" }).observe(rest);
  window.addEventListener("beforeprint", function () { more(rows.length); });
  window.addEventListener("afterprint", refresh);
  window.addEventListener("hashchange", function () {
    if (location.hash !== written) { recall(); refresh(); }
  });
  form.hidden = false;
  recall();
  refresh();
})();
