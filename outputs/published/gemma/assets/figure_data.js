// The table behind each figure: made when it is opened, from what the figure shows at that moment.
"use strict";
(function () {
  const ROWS = 400; // rows shown; the file holds all
  const COLUMNS = 60; // columns of a matrix
  const ARRAYS = {
    f8: Float64Array, f4: Float32Array, i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array,
    i4: Int32Array, u4: Uint32Array,
  };
  const plain = window.figureControls.plain;

  // An array as plotly stores it: a list, or bytes in base64 with a type and maybe a shape "rows, columns".
  function values(given) {
    if (!given || !given.bdata) { return Array.isArray(given) || ArrayBuffer.isView(given) ? Array.from(given) : []; }
    const bytes = Uint8Array.from(atob(given.bdata), function (c) { return c.charCodeAt(0); });
    const flat = Array.from(new ARRAYS[given.dtype](bytes.buffer));
    const shape = String(given.shape || "").split(",").map(Number);
    if (shape.length < 2) { return flat; }
    return Array.from({ length: shape[0] }, function (_, i) { return flat.slice(i * shape[1], (i + 1) * shape[1]); });
  }

  function written(value) {
    if (typeof value !== "number") { return String(value === undefined || value === null ? "" : value); }
    return Number.isFinite(value) ? String(Number(value.toPrecision(6))) : "";
  }

  // The few number formats that the report's hovers use.
  function formatted(value, form) {
    const parts = /^,?\.(\d+)([gf%e])$/.exec(form || "");
    if (typeof value !== "number" || !parts) { return written(value); }
    const digits = Number(parts[1]);
    if (parts[2] === "%") { return (100 * value).toFixed(digits) + "%"; }
    if (parts[2] === "f") { return value.toFixed(digits); }
    return String(Number(value.toPrecision(Math.max(1, digits))));
  }

  function axisOf(layout, trace, letter) {
    const axis = layout[(trace[letter + "axis"] || letter).replace(letter, letter + "axis")] || {};
    const title = axis.title && (axis.title.text || axis.title);
    // Rows of a dot plot stand at 0, 1, 2 ...: their names, not their places, are what a reader wants.
    const named = axis.ticktext && values(axis.tickvals).every(function (tick, i) { return tick === i; });
    return { title: plain(typeof title === "string" ? title : ""), rows: named ? axis.ticktext : null };
  }

  function placed(value, axis) {
    if (typeof value === "string") { return plain(value); }
    if (!axis.rows || typeof value !== "number") { return value; }
    const row = axis.rows[Math.round(value)];
    return row === undefined ? "all rows" : plain(row);
  }

  // What the figure says on hover of point i, as one line.
  function hover(trace, columns, i) {
    const template = trace.hovertemplate;
    const one = Array.isArray(template) ? template[i] : template;
    if (!one) { return columns.text[i] === undefined ? "" : plain(columns.text[i]); }
    const filled = one.replace(/<extra>.*?<\/extra>/g, "").replace(/<br\s*\/?>/g, "; ").replace(
      /%\{(\w+)(?:\[(\d+)\])?(?::([^}]*))?\}/g,
      function (_, name, inner, form) {
        const column = columns[name];
        let value = column === undefined ? undefined : column[i];
        if (inner !== undefined && Array.isArray(value)) { value = value[Number(inner)]; }
        if (typeof value === "string") { return value; } // its own line breaks are turned below
        return value === undefined || value === null ? "" : formatted(value, form);
      });
    return plain(filled.replace(/<br\s*\/?>/g, "; ")).replace(/; \(/g, " (");
  }

  function interval(error, value, i) {
    if (!error || error.visible === false || typeof value !== "number") { return ["", ""]; }
    const up = values(error.array)[i], down = error.symmetric === false ? values(error.arrayminus)[i] : up;
    return up === undefined ? ["", ""] : [value - down, value + up];
  }

  // A filled band or box: its lower and upper end at each place.
  function ends(trace, axes) {
    const xs = values(trace.x), ys = values(trace.y), across = Boolean(axes.y.rows);
    const found = new Map();
    xs.forEach(function (x, i) {
      if (x === null || ys[i] === null) { return; }
      const at = across ? Math.round(ys[i]) : x, value = across ? x : ys[i];
      const known = found.get(at) || [value, value];
      found.set(at, [Math.min(known[0], value), Math.max(known[1], value)]);
    });
    return found;
  }

  function region(trace, axes) {
    const across = Boolean(axes.y.rows);
    return Array.from(ends(trace, axes), function (entry) {
      const at = across ? ["", placed(entry[0], axes.y)] : [entry[0], ""];
      return [plain(trace.name || "band"), at[0], at[1], entry[1][0], entry[1][1], ""];
    });
  }

  function points(trace, axes, range) {
    const columns = { x: values(trace.x), y: values(trace.y), text: values(trace.text), customdata: values(trace.customdata) };
    const rows = [], length = Math.max(columns.x.length, columns.y.length);
    const segments = columns.x.includes(null); // arrows, each from the origin, with gaps between
    columns.x = columns.x.map(function (value) { return placed(value, axes.x); });
    columns.y = columns.y.map(function (value) { return placed(value, axes.y); });
    for (let i = 0; i < length; i += 1) {
      const x = columns.x.length ? columns.x[i] : i, y = columns.y.length ? columns.y[i] : i;
      if (x === null || y === null || x === undefined || y === undefined) { continue; } // a gap in a line
      if (segments && x === 0 && y === 0) { continue; }
      const sideways = interval(trace.error_x, x, i), upright = interval(trace.error_y, y, i);
      const around = (range && range.get(x)) || (sideways[0] === "" ? upright : sideways);
      rows.push([plain(trace.name), x, y, around[0], around[1], hover(trace, columns, i)]);
    }
    return rows;
  }

  function matrix(trace, axes) {
    const z = values(trace.z).map(function (row) { return values(row); });
    const xs = values(trace.x), ys = values(trace.y);
    const side = [axes.y.title && axes.y.title + " ↓", axes.x.title && axes.x.title + " →"].filter(Boolean).join("  ");
    const width = Math.max.apply(null, z.map(function (row) { return row.length; }).concat(0));
    const header = [side];
    for (let k = 0; k < width; k += 1) { header.push(written(placed(xs.length ? xs[k] : k, axes.x))); }
    return {
      header: header,
      rows: z.map(function (row, i) { return [placed(ys.length ? ys[i] : i, axes.y)].concat(row); }),
    };
  }

  function tables(figure) {
    const shown = figure.data.filter(function (trace) { return trace.visible === undefined || trace.visible === true; });
    const made = [], panels = new Map(), ranges = new Map();
    shown.forEach(function (trace) {
      const axes = { x: axisOf(figure.layout, trace, "x"), y: axisOf(figure.layout, trace, "y") };
      if (trace.type === "heatmap") { made.push(matrix(trace, axes)); return; }
      const key = (trace.xaxis || "x") + (trace.yaxis || "y");
      const panel = panels.get(key) || { axes: axes, rows: [] };
      panels.set(key, panel);
      const filled = trace.fill === "toself" && trace.hoverinfo === "skip", group = key + trace.legendgroup;
      if (filled && !trace.name && trace.legendgroup) { // the band around the line that follows
        ranges.set(group, ends(trace, axes));
      } else if (filled) {
        panel.rows = panel.rows.concat(region(trace, axes));
      } else if (trace.hoverinfo !== "skip") { // what is skipped is a line to guide the eye
        panel.rows = panel.rows.concat(points(trace, axes, ranges.get(group)));
      }
    });
    panels.forEach(function (panel) { if (panel.rows.length) { made.push(tidy(distinct(panel.rows), panel.axes)); } });
    return made;
  }

  // A straight line has two ends that say the same.
  function distinct(rows) {
    return rows.filter(function (row, i) { return !i || row.join("|") !== rows[i - 1].join("|"); });
  }

  // Columns that no row fills are left out.
  function tidy(rows, axes) {
    const names = ["Series", axes.x.title || "x", axes.y.title || (axes.y.rows ? "Row" : "y"), "Low", "High", "As the figure says it"];
    const kept = names.map(function (_, k) {
      return rows.some(function (row) { return row[k] !== "" && row[k] !== undefined && row[k] !== null; });
    });
    const order = (axes.y.rows ? [2, 0, 1, 3, 4, 5] : [0, 1, 2, 3, 4, 5]).filter(function (k) { return kept[k]; });
    const pick = function (row) { return order.map(function (k) { return row[k]; }); };
    return { header: pick(names), rows: rows.map(pick) };
  }

  function cell(row, value, heading) {
    const made = document.createElement(heading ? "th" : "td");
    if (heading) { made.scope = heading; }
    made.textContent = written(value);
    if (typeof value === "number") { made.className = "figures"; }
    row.append(made);
  }

  function drawTable(content, name) {
    const table = document.createElement("table");
    table.createCaption().textContent = name;
    const head = table.createTHead().insertRow();
    content.header.slice(0, COLUMNS).forEach(function (value) { cell(head, value, "col"); });
    const body = table.createTBody();
    content.rows.slice(0, ROWS).forEach(function (values) {
      const row = body.insertRow();
      values.slice(0, COLUMNS).forEach(function (value, k) { cell(row, value, k === 0 ? "row" : ""); });
    });
    const scroll = document.createElement("div");
    scroll.className = "table-scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", name);
    scroll.append(table);
    return scroll;
  }

  function quoted(value) {
    let text = written(value);
    // No formula for a spreadsheet, which also takes wide signs for them and skips what is blank.
    if (typeof value !== "number" && /^\s*[=+\-@＝＋－＠]|^[\t\r\n]/.test(text)) { text = "'" + text; }
    return /[",\r\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
  }

  function download(contents, name) {
    const lines = contents.map(function (content) {
      return [content.header].concat(content.rows).map(function (row) { return row.map(quoted).join(","); }).join("\n");
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n\n") + "\n"], { type: "text/csv" }));
    link.download = name + ".csv";
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  }

  function fill(fold, target) {
    const drawn = target.data && target.layout;
    const figure = drawn ? target : JSON.parse(document.getElementById(target.id + "-data").textContent);
    const contents = tables({ data: figure.data, layout: figure.layout || {} });
    const room = fold.querySelector(".figure-table");
    const name = "Data of " + target.dataset.short;
    const cutRows = contents.some(function (c) { return c.rows.length > ROWS; });
    const cutColumns = contents.some(function (c) { return c.header.length > COLUMNS; });
    const parts = contents.map(function (content, i) {
      return drawTable(content, contents.length > 1 ? name + ", part " + (i + 1) : name);
    });
    const total = contents.reduce(function (sum, c) { return sum + c.rows.length; }, 0);
    const said = document.createElement("p");
    said.className = "small";
    said.textContent = (cutRows || cutColumns
      ? "Cut: the first " + ROWS + " rows and " + COLUMNS + " columns of each table are shown, of " + total +
        " rows in all; the file holds everything. " : total + " rows. ") +
      ((target.controls || []).length ? "The table is of what the figure shows now; it changes with the choices at the figure. " : "");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Save as CSV";
    button.addEventListener("click", function () { download(contents, document.title + ", " + target.dataset.short); });
    said.append(button);
    room.replaceChildren.apply(room, [said].concat(parts));
  }

  document.querySelectorAll("details.figure-data").forEach(function (fold) {
    const target = document.getElementById(fold.dataset.plot);
    fold.addEventListener("toggle", function () { if (fold.open) { fill(fold, target); } });
    target.addEventListener("figurechange", function () { if (fold.open) { fill(fold, target); } });
  });
})();
