// A click on a column's head sorts its table, a second one the other way round, a third one as it was.
// Without scripts the page is complete, and as it was written.
const UNITS = { d: 86400, h: 3600, min: 60, s: 1, GB: 1e3, MB: 1, KB: 1e-3 };

// A number for "1,218 MB", "8 min 33 s", "77.7 ± 0.8" or "−1.10 [−2.41, +0.21]"; NaN for words.
function measure(text) {
  const plain = text.trim().replace(/−/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  const parts = [...plain.matchAll(/(\d+(?:\.\d+)?) ?(d|h|min|s|GB|MB|KB)\b/g)];
  if (parts.length && /^[\d<]/.test(plain)) {
    return parts.reduce((sum, [, number, unit]) => sum + Number(number) * UNITS[unit], 0);
  }
  return parseFloat(plain.replace(/^[<+]/, ""));
}

// Numbers come before words, and words in the order of the alphabet.
function compare(first, second) {
  const [a, b] = [measure(first), measure(second)];
  if (isNaN(a) && isNaN(b)) return first.localeCompare(second, "en", { numeric: true });
  return isNaN(a) ? 1 : isNaN(b) ? -1 : a - b;
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const written = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.matches(".seeds-column")) return; // a picture in every row
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.title = "sort";
    head.append(button);
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== "none") head.ariaSort = order;
      const key = (row) => row.cells[column]?.textContent ?? "";
      const rows = order === "none" ? written : [...written].sort((a, b) => compare(key(a), key(b)));
      if (order === "descending") rows.reverse();
      body.append(...rows);
    });
  });
}
