"use strict";
(() => {
  const make = (tag, text) => Object.assign(document.createElement(tag), { type: "button", textContent: text });
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  };
  for (const table of document.querySelectorAll("table.sort")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = make("button", head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? 1 : -1));
        if (down) rows.reverse();
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }
  for (const place of document.querySelectorAll(".tools")) {
    const part = place.parentElement;
    const search = Object.assign(document.createElement("input"), { type: "search", placeholder: "Find an example …" });
    search.setAttribute("aria-label", "Find an example");
    search.addEventListener("input", () => {
      const wanted = search.value.toLowerCase();
      for (const group of part.querySelectorAll(".group")) {
        let left = 0;
        for (const one of group.querySelectorAll(".case")) {
          one.hidden = !one.textContent.toLowerCase().includes(wanted);
          left += !one.hidden;
        }
        group.hidden = !left;
        if (wanted && left) group.open = true;
      }
    });
    place.append(search);
    place.hidden = false;
  }
})();
