"""A run's report: one self-contained HTML page, a thin reader of what the run left in its directory."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from sweeps import figures, paper, tables
from sweeps.table import count, rows_of
from tandem import foreign
from tandem.errors import EnvironmentFailure
from tandem.foreign import printable

_STYLE = Path(__file__).with_name("report.css")


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Writes `report.html` beside `results.json` and returns its path.

    Also reads `metrics.jsonl` and `config.yaml` where there are any. Raises EnvironmentFailure where the results cannot
    be read or the page cannot be written; a page is replaced whole or not at all.
    """
    run_dir = Path(run_dir)
    source = run_dir / "results.json"
    try:
        results = foreign.json_value(source.read_bytes())
    except OSError as error:
        raise EnvironmentFailure(f"report: cannot read {source}: {error.strerror}") from error
    except ValueError as error:
        raise EnvironmentFailure(f"report: {source} is not JSON: {error}") from error
    with foreign.blamed(f"report: {source} is not what a run leaves"):
        page = render(results, read_metrics(run_dir / "metrics.jsonl"), _read_config(run_dir / "config.yaml"))
    target, temporary = run_dir / "report.html", run_dir / f".report.html.{token_hex(4)}.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvironmentFailure(f"report: cannot write {target}: {error.strerror}") from error
    return target


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that was cut off is left out, an absent file has none."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = foreign.json_value(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = foreign.yaml_value(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def render(results: dict[str, Any], metrics: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """The page as text."""
    results = {**results, figures.METRICS: metrics}
    sections = [
        _section(
            section.title,
            section.explanation,
            [tables.to_html(table) for table in tables.section_tables(section, results)],
            [tables.figure_html(one) for draw in section.figures for one in draw(results)],
        )
        for section in tables.SECTIONS
    ]
    title = escape(_title(config))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head><body><main>"
        f"<header><p class=kicker>Tandem Transformers · run report</p><h1>{title}</h1>"
        f"{_what_this_is(results, config)}</header>{_headlines(results)}"
        f"{''.join(sections)}{_provenance(results, config)}"
        f'<footer>Paper: <a href="{paper.URL}">{escape(paper.CITATION)}</a>. Rows marked “paper” are its '
        "numbers: PaLM 2 models on TPUv5e, another model on other hardware.</footer></main></body></html>\n"
    )


def _name(config: dict[str, Any], group: str, key: str = "name") -> str | None:
    value = config.get(group)
    value = value.get(key) if isinstance(value, dict) else None
    return None if value is None else printable(value)


def _title(config: dict[str, Any]) -> str:
    pair = _name(config, "model") or "Tandem"
    recipe = _name(config, "train", "recipe") or _name(config, "train")
    return f"{pair}, {recipe}" if recipe else pair


def _what_this_is(results: dict[str, Any], config: dict[str, Any]) -> str:
    provenance = _dict(results.get("provenance"))
    models = {r.get("name"): r for r in rows_of(results, "models")}
    primary, secondary = (_name(_dict(config.get("model")), side) for side in ("primary", "secondary"))
    pair = [
        f"<b>{escape(name)}</b> ({count(models[name]['parameters'])} parameters) as the {role}"
        for name, role in ((primary, "primary"), (secondary, "secondary"))
        if name and isinstance(models.get(name, {}).get("parameters"), int | float)
    ]
    sentences = []
    if pair:
        sentences.append(f"A small model that attends to a large one's representations: {' and '.join(pair)}.")
    if any(r.get("stand_in") for r in models.values()):
        sentences.append(
            "All models here are <b>stand-ins</b>: small ones trained for this project, not the paper's PaLM 2 models."
        )
    if results.get("compiled"):
        sentences.append(
            f"Compiled for <b>{escape(_name(config, 'platform') or 'TPU')}</b>; nothing was trained or run."
        )
    elif data := _name(config, "data"):
        sentences.append(f"Trained on the corpus <b>{escape(data)}</b>, measured on text held out from it.")
    text = f"<p class=lead>{' '.join(sentences)}</p>" if sentences else ""
    command = provenance.get("command")
    return text + (f"<pre class=command>{escape(_words(command))}</pre>" if command else "")


def _headlines(results: dict[str, Any]) -> str:
    tiles = "".join(
        f"<li><p class=what>{escape(h.what)}</p><p class=value>{escape(h.value)}</p>"
        f"<p class=than>{escape(h.than)}</p></li>"
        for h in figures.headlines(results)
    )
    return f'<ul class="tiles" aria-label="Headline numbers">{tiles}</ul>' if tiles else ""


def _section(title: str, explanation: str, shown: list[str], plots: list[str]) -> str:
    charts = f'<div class="charts">{"".join(plots)}</div>' if plots else ""
    found = charts + "".join(shown)
    return (
        f"<section><h2>{escape(title)}</h2><p class=intro>{escape(explanation)}</p>{found}</section>" if found else ""
    )


def _provenance(results: dict[str, Any], config: dict[str, Any]) -> str:
    provenance = _dict(results.get("provenance"))
    facts: list[tuple[str, str]] = []
    if commit := provenance.get("commit"):
        facts.append(("commit", f"{commit}{', with uncommitted changes' if provenance.get('dirty') else ''}"))
    facts += [(k.replace("_", " "), _words(provenance[k])) for k in ("config_hash", "date") if provenance.get(k)]
    if isinstance(seconds := provenance.get("seconds"), int | float):
        facts.append(("took", f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"))
    facts += [(k.replace("_", " "), _words(v)) for k, v in _dict(provenance.get("hardware")).items()]
    parts = _facts(facts)
    for title, key in (("Steps and their fingerprints", "steps"), ("Package versions", "packages")):
        if rows := [(k, _words(v)) for k, v in _dict(provenance.get(key)).items()]:
            parts += f"<details><summary>{title}</summary>{_facts(rows)}</details>"
    if config:
        text = escape(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        parts += f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>"
    return f"<section><h2>Where these numbers come from</h2>{parts}</section>" if parts else ""


def _facts(rows: list[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(v)}</dd></div>" for k, v in rows)
    return f"<dl>{items}</dl>" if items else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _words(value: Any) -> str:
    return ", ".join(map(_words, value)) if isinstance(value, list) else printable(value)
