"""The general test of WMT22 (Kocmi et al. 2022) in its 21 directions, scored by sacrebleu with its default reference.

There is no training split: exemplars are other segments of the same test set, never the segment itself.
"""

from __future__ import annotations

from functools import partial
from typing import IO

from tandem.errors import EnvironmentFailure
from tasks.example import Kind
from tasks.files import Rows, blamed, text_lines
from tasks.metrics.translation import corpus_metric, signature
from tasks.task import Dataset, File, Question, Row, Task

SUITE = "wmt22"
METRICS = ("chrf", "bleu")

LANGUAGES = {
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "fr": "French",
    "hr": "Croatian",
    "ja": "Japanese",
    "liv": "Livonian",
    "ru": "Russian",
    "sah": "Yakut",
    "uk": "Ukrainian",
    "zh": "Chinese",
}
# Each direction with the name of the reference that sacrebleu scores against.
DIRECTIONS = {
    "cs-en": "B",
    "cs-uk": "A",
    "de-en": "A",
    "de-fr": "A",
    "en-cs": "B",
    "en-de": "A",
    "en-hr": "A",
    "en-ja": "A",
    "en-liv": "A",
    "en-ru": "A",
    "en-uk": "A",
    "en-zh": "A",
    "fr-de": "A",
    "ja-en": "A",
    "liv-en": "A",
    "ru-en": "A",
    "ru-sah": "A",
    "sah-ru": "A",
    "uk-cs": "A",
    "uk-en": "A",
    "zh-en": "A",
}


def _question(source: str, target: str, row: Row) -> Question:
    text = f"{LANGUAGES[source]} phrase: {row['source']}\n{LANGUAGES[target]} phrase:"
    return Question(row["id"], text, f" {row['reference']}", row["reference"])


def files_of(direction: str) -> tuple[str, str]:
    """Names of the release's source and reference files, inside its folders `sources` and `references`."""
    source, target = direction.split("-")
    name = f"generaltest2022.{direction}"
    return f"{name}.src.{source}", f"{name}.ref.{DIRECTIONS[direction]}.{target}"


def read_segments(file: IO[bytes], path: str, reference: IO[bytes], reference_path: str) -> Rows:
    """Lines of the source file with the same lines of the reference file."""
    references = [line for _, line in text_lines(reference, reference_path)]
    sources = list(text_lines(file, path))
    if len(sources) != len(references):
        shorter = path if len(sources) < len(references) else reference_path
        lengths = f"{path} has {len(sources)} lines, {reference_path} {len(references)}"
        raise EnvironmentFailure(f"{shorter}, line {min(len(sources), len(references)) + 1}: cut off; {lengths}")
    for number, ((place, source), translation) in enumerate(zip(sources, references, strict=True), start=1):
        yield place, {"id": str(number), "source": source, "reference": translation}


def read_xml(direction: str, file: IO[bytes], path: str) -> Rows:
    """Segments of the release's XML, as sacrebleu unwraps it."""
    from sacrebleu.dataset.wmt_xml import WMTXMLDataset

    try:
        with blamed(path):
            fields = WMTXMLDataset._unwrap_wmt21_or_later(file)
    except SyntaxError as error:  # lxml's errors of form are such
        raise EnvironmentFailure(f"{path}, line {error.lineno}: not XML ({error.msg}); is the file cut off?") from None
    except AssertionError as error:
        raise EnvironmentFailure(f"{path}: {error}") from None
    # Directions whose translator is not named have one reference without a name.
    references = fields.get(f"ref:{DIRECTIONS[direction]}") or fields.get("ref")
    if references is None:
        raise EnvironmentFailure(f"{path}: no reference {DIRECTIONS[direction]}")
    for number, (source, translation) in enumerate(zip(fields["src"], references, strict=True), start=1):
        yield f"{path}, segment {number}", {"id": str(number), "source": source, "reference": translation}


def _task(direction: str) -> Task:
    source, target = direction.split("-")
    sources, references = files_of(direction)
    text = File(f"wmt22/sources/{sources}", read_segments, beside=(f"wmt22/references/{references}",))
    xml = File(f"wmt22/xml/wmttest2022.{direction}.all.xml", partial(read_xml, direction))
    echo = f"sacrebleu -t wmt22 -l {direction} --echo"
    folders = [f"{{data_dir}}/wmt22/{kind}" for kind in ("sources", "references")]
    get = f"mkdir -p {' '.join(folders)}"
    for field, folder, name in zip(("src", "ref"), folders, files_of(direction), strict=True):
        get += f" && {echo} {field} > {folder}/{name}"
    return Task(
        name=f"wmt22_{source}_{target}_v1",
        suite=SUITE,
        split="test",
        dataset=Dataset(files={"eval": (text, xml)}, get=get),
        question=partial(_question, source, target),
        metrics=tuple(corpus_metric(name, target) for name in METRICS),
        primary="chrf",
        kind=Kind.generate,
        stop=("\n",),
        max_new_tokens=256,
        signatures=lambda: {name: signature(name, target) for name in METRICS},
    )


TASKS = tuple(_task(direction) for direction in DIRECTIONS)
