"use strict";

// Tables that a heading sorts: numbers the largest first, names as they came.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const first = column ? "descending" : "ascending";
      const second = column ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.v;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * (x - y);
      });
      body.append(...rows);
    });
  });
}

// A photograph under one of its label maps, which a slider uncovers.
for (const shot of document.querySelectorAll(".shot")) {
  const buttons = [...shot.querySelectorAll(".panels button")];
  const viewer = document.createElement("div");
  viewer.className = "viewer";
  const photograph = buttons[0].querySelector("img").cloneNode();
  const over = document.createElement("img");
  over.className = "over";
  viewer.append(photograph, over);
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 100, value: 50 });
  slider.addEventListener("input", slide);
  function slide() {
    viewer.style.setProperty("--x", `${slider.value}%`);
  }
  function choose(button) {
    buttons.forEach((other) => other.setAttribute("aria-pressed", other === button));
    over.src = button.querySelector("img").src;
    over.alt = button.querySelector("img").alt;
    slider.setAttribute("aria-label", `How much of the photograph is covered by ${over.alt}`);
  }
  buttons.forEach((button) => button.addEventListener("click", () => choose(button)));
  choose(buttons.find((button) => button.getAttribute("aria-pressed") === "true"));
  slide();
  shot.querySelector(".panels").before(viewer, slider);
}

// A confusion matrix that is a picture, of a pixel for each pair of classes.
for (const matrix of document.querySelectorAll(".matrix")) {
  const { names, counts } = JSON.parse(matrix.querySelector("script").textContent);
  const picture = matrix.querySelector("img");
  const cell = matrix.querySelector(".cell");
  const output = matrix.querySelector("output");
  const place = [0, 0];
  const show = (row, column) => {
    place[0] = Math.min(Math.max(row, 0), names.length - 1);
    place[1] = Math.min(Math.max(column, 0), names.length - 1);
    const [i, j] = place;
    const side = picture.clientWidth / names.length;
    Object.assign(cell.style, {
      left: `${picture.offsetLeft + j * side}px`, top: `${picture.offsetTop + i * side}px`,
      width: `${side}px`, height: `${side}px`,
    });
    cell.hidden = false;
    const total = counts[i].reduce((sum, count) => sum + count, 0);
    const part = total ? (100 * counts[i][j]) / total : 0;
    output.textContent = `${names[i]} taken for ${names[j]}: ${counts[i][j]} pixels, ${part.toFixed(1)} %`;
  };
  picture.addEventListener("pointermove", (event) => {
    const side = picture.clientWidth / names.length;
    show(Math.floor(event.offsetY / side), Math.floor(event.offsetX / side));
  });
  matrix.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    show(place[0] + step[0], place[1] + step[1]);
  });
}
