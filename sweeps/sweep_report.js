// A click on a heading sorts its table; typing leaves the rows, and dims the marks, that do not hold all words.
const SCALE = { k: 1e3, M: 1e6, B: 1e9 };
const value = cell => {
  const text = cell.textContent.trim();
  const number = text.match(/^([−-]?[\d,]*\.?\d+)([kMB]?)(?![\w.]*[a-z])/);
  return number ? parseFloat(number[1].replace('−', '-').replaceAll(',', '')) * (SCALE[number[2]] ?? 1) : text;
};
const compare = (x, y) =>
  typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });

for (const table of document.querySelectorAll('table')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      const keyed = [...body.rows].map(row => [value(row.cells[column]), row]);
      const [known, missing] = [keyed.filter(([key]) => key !== '–'), keyed.filter(([key]) => key === '–')];
      known.sort(([x], [y]) => sign * compare(x, y));
      body.append(...known.concat(missing).map(([, row]) => row));
    };
  });
}

const filter = document.getElementById('filter');
filter.closest('.filter').hidden = false;
const rows = [...document.querySelectorAll('tbody tr')].map(row => [row, row.textContent.toLowerCase()]);
const marks = [...document.querySelectorAll('.mark')].map(mark => [mark, mark.textContent.toLowerCase()]);
filter.oninput = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const holds = text => words.every(word => text.includes(word));
  for (const [row, text] of rows) row.hidden = !holds(text);
  for (const [mark, text] of marks) mark.classList.toggle('dim', !holds(text));
};
