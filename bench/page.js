// Sorting and filtering of the tables of a page of results; the charts follow the filter. The page is whole without it.
"use strict";

// Rows by a column: numbers by value, text by alphabet; what has no value stays last in both directions.
function sorted(rows, column, descending) {
  const cell = (row) => row.cells[column];
  const key = (row) => ("value" in cell(row).dataset ? Number(cell(row).dataset.value) : cell(row).textContent);
  const absent = (row) => !("value" in cell(row).dataset) && cell(row).textContent === "";
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  const present = rows.filter((row) => !absent(row));
  present.sort((a, b) => (descending ? -1 : 1) * compare(key(a), key(b)) || a.dataset.row - b.dataset.row);
  return present.concat(rows.filter(absent));
}

function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      body.append(...sorted([...body.rows], column, descending));
    });
  });
}

// The rows that hold every word of the text, and the chosen value of every list.
function makeFilter(section) {
  const form = section.querySelector("form.filters");
  const rows = [...section.querySelectorAll("table.rows tbody tr")];
  const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
  const parts = [...section.querySelectorAll("[data-of]")];
  const groups = [...section.querySelectorAll(".layer, figure")];
  function apply() {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const lists = [...form.querySelectorAll("select")].filter((list) => list.value !== "");
    const shown = new Set();
    for (const row of rows) {
      const kept = words.every((word) => texts.get(row).includes(word))
        && lists.every((list) => row.cells[Number(list.dataset.column)].textContent === list.value);
      row.hidden = !kept;
      if (kept) shown.add(row.dataset.row);
    }
    for (const part of parts) part.toggleAttribute("hidden", !shown.has(part.dataset.of));
    for (const group of groups) {
      const within = [...group.querySelectorAll("[data-of]")];
      group.hidden = within.length > 0 && within.every((part) => part.hasAttribute("hidden"));
    }
    form.querySelector("output").textContent = `${shown.size} of ${rows.length} rows`;
  }
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}

function makeThemeButton(button) {
  const themes = ["auto", "light", "dark"];
  button.hidden = false;
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length];
    document.documentElement.dataset.theme = next;
    button.textContent = `Colours: ${next}`;
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll("section.result").forEach((section) => { if (section.querySelector("form.filters")) makeFilter(section); });
makeThemeButton(document.querySelector("#theme"));
