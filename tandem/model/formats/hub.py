"""Checkpoints by the names that they have on a model hub: found in its cache, fetched into it when that is asked for.

The cache is that of `huggingface_hub`, in its own layout (models--ORG--NAME with refs and snapshots), so that what
another program has fetched is found. To look into it takes no package; `fetch` alone imports one and needs a network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tandem.data.tokenizer import BESIDE
from tandem.errors import EnvironmentFailure, UserError
from tandem.model.formats.huggingface import CONFIG, INDEX, WEIGHTS, shards_of

MAIN = "main"  # the revision that is meant where none is named
ENDPOINT = "https://huggingface.co"
SECONDS = 10  # that a hub may take to answer
SMALL = (CONFIG, "tokenizer.json", "tokenizer.model", *BESIDE)

_PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?!.*(?:--|\.\.)){_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))\w(?:[\w./-]*\w)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".gguf", ".bin", ".safetensors", ".json", ".git")  # how names end that are no model's


def may_be_name(path: str) -> bool:
    """Whether a path is meant as the name of a model on a hub: two words, and nothing here is called so."""
    local = path.startswith(("/", "~", ".")) or path.endswith(_FILES) or os.path.exists(path)
    return path.count("/") == 1 and not local


def is_name(path: str) -> bool:
    """Whether it can be such a name: ORG/NAME, of letters, digits, `-`, `_` and `.`."""
    return may_be_name(path) and len(path) <= 96 and _NAME.fullmatch(path) is not None


def is_revision(text: str) -> bool:
    """Whether it can be a branch, a tag or a commit."""
    return _REVISION.fullmatch(text) is not None


def cache() -> Path:
    """The folder that fetched models are in, by the variables that `huggingface_hub` reads."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(folder)).expanduser()


def cached(name: str, revision: str | None = None) -> Path | None:
    """The directory of a model that was fetched, named by its commit; None where it was not, or not all of it."""
    directory = _snapshot(name, revision or MAIN)
    return directory if directory is not None and not _missing(directory) else None


def find(name: str, revision: str | None = None) -> Path:
    """The directory of a model that was fetched. Raises EnvironmentFailure with what fetches it."""
    directory = _snapshot(name, revision or MAIN)
    if directory is not None and not (missing := _missing(directory)):
        return directory
    at = f" at {revision}" if revision else ""
    there = f"{missing[0]} is missing of it" if directory is not None else f"it{at} is not"
    raise EnvironmentFailure(
        f"{name}: no directory here, and as the name of a model on a hub {there} in the cache ({cache()}): with a "
        "network, model.download=true fetches it"
    )


def fetch(name: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """Fetch a model's configuration, safetensors and tokenizer, and return its directory, as `find` does from then on.

    `say` is told once what is fetched. Until all is there `find` finds what it did before. Raises EnvironmentFailure,
    within seconds where there is no network.
    """
    wanted, endpoint = revision or MAIN, os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
    try:
        import huggingface_hub as hub
        from huggingface_hub.utils import disable_progress_bars, logging
    except ImportError:
        how = "in a checkout `uv run --extra hub …` brings it, elsewhere `pip install 'huggingface_hub>=2.4,<3'`"
        raise EnvironmentFailure(f"{name}: is fetched by huggingface_hub, which is not installed: {how}") from None
    logging.set_verbosity(CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    with _told(f"{name}: cannot be fetched from {_shown(endpoint)}", f"{endpoint}/{name}", wanted):
        about = hub.HfApi(endpoint=endpoint).model_info(name, revision=wanted, timeout=SECONDS, files_metadata=True)
        if about.sha is None or not _COMMIT.fullmatch(about.sha):
            raise ValueError("no commit")
        files = {file.rfilename: file for file in about.siblings or ()}
        folder = _folder(name) / "snapshots" / about.sha

        def get(file: str) -> Path:
            # Asked alone before, since the library goes on asking for minutes where a hub does not answer.
            url = hub.hf_hub_url(name, file, revision=about.sha, endpoint=endpoint)
            if not (folder / file).exists():
                hub.get_hf_file_metadata(url, timeout=SECONDS, endpoint=endpoint)
            place = {"cache_dir": cache(), "endpoint": endpoint, "etag_timeout": SECONDS}
            path = Path(hub.hf_hub_download(name, file, revision=about.sha, **place))
            if (lfs := files[file].lfs) is not None:
                _check(path, lfs.sha256)
            return path

        small = [file for file in dict.fromkeys(SMALL) if file in files]
        _require(name, files)
        weights = [WEIGHTS] if WEIGHTS in files else shards_of(get(INDEX))
        if absent := [file for file in weights if file not in files]:
            raise EnvironmentFailure(f"{name}: lacks {absent[0]}, which its {INDEX} names")
        lacking = [file for file in (*small, *weights) if not (folder / file).exists()]
        size = sum(files[file].size or 0 for file in lacking)
        _check_room(name, size)
        said = f"{len(lacking)} files, {size / 1e6:,.0f} MB, into {cache()}"
        say(f"fetching {name} at {about.sha[:12]} from {_shown(endpoint)}: {said}")
        for file in (*small, *weights):
            get(file)
        if wanted != about.sha:
            # Last, and at once: the name leads to what is whole.
            ref = _folder(name) / "refs" / wanted
            ref.parent.mkdir(parents=True, exist_ok=True)
            new = ref.with_name(f".{ref.name}.{os.getpid()}")
            new.write_text(about.sha, encoding="utf-8")
            new.replace(ref)
    return find(name, revision)


def _folder(name: str) -> Path:
    return cache() / f"models--{name.replace('/', '--')}"


def _snapshot(name: str, revision: str) -> Path | None:
    """Where the files of a revision are, as far as they were fetched."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (_folder(name) / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
    directory = _folder(name) / "snapshots" / commit
    return directory if _COMMIT.fullmatch(commit) and directory.is_dir() else None


def _missing(directory: Path) -> list[str]:
    """Which of its files were not fetched."""
    if (directory / WEIGHTS).exists() or not (directory / INDEX).exists():
        wanted = [CONFIG, WEIGHTS]
    else:
        wanted = [CONFIG, *shards_of(directory / INDEX)]
    return [file for file in wanted if not (directory / file).exists()]


def _require(name: str, files: Iterable[str]) -> None:
    """Raises EnvironmentFailure for what is no checkpoint that can be read, before anything is fetched."""
    if CONFIG not in files:
        raise EnvironmentFailure(f"{name}: is no checkpoint that can be read, for it has no {CONFIG}")
    if WEIGHTS not in files and INDEX not in files:
        ends = {Path(file).suffix for file in files}
        others = "; PyTorch's pickles are not read, since they can run anything" if {".bin", ".pt"} & ends else ""
        raise EnvironmentFailure(f"{name}: has no weights that can be read, for it has no {WEIGHTS} or {INDEX}{others}")


def _check(path: Path, sha256: str) -> None:
    """Raises EnvironmentFailure where a file is not the one that the hub has, and removes it."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise EnvironmentFailure(f"{path}: came damaged, by its SHA-256, and was removed; the same command gets it again")


def _check_room(name: str, size: int) -> None:
    place = cache()
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if size > free:
        takes = f"takes {size / 1e9:,.1f} GB, and {place} has {free / 1e9:,.1f} GB left"
        raise EnvironmentFailure(f"{name}: {takes}; HF_HUB_CACHE names another place")


def _shown(endpoint: str) -> str:
    """An address without the name and password that may be in it."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else repr(endpoint)


@contextmanager
def _told(what: str, page: str, revision: str) -> Iterator[None]:
    """Turns whatever the library or the hub does into one line that holds nothing of what was sent."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise EnvironmentFailure(f"{what}: {_reason(error, page, revision)}") from None


def _reason(error: BaseException, page: str, revision: str) -> str:
    """Why it failed, by the kind of the error: its own words may quote a request, and with it a token."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return _reason(error.__cause__, page, revision)
    kinds = {kind.__name__ for kind in type(error).__mro__}  # of httpx or httpx2, which the library chooses
    response: Any = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision}; a branch, a tag or a commit is one"
    if isinstance(error, errors.GatedRepoError):
        return f"its terms must be accepted at {_page(page)}, and HF_TOKEN hold a token of who has"
    if status in (401, 404):
        return f"there is no such model ({status}); if it is private, HF_TOKEN must hold a token of who may read it"
    if status == 403:
        return "it may not be read (403) with the token of HF_TOKEN, or without one"
    if status is not None:
        return f"the hub answers with {status}; try again later"
    if "TimeoutException" in kinds:
        return f"no answer within {SECONDS} s"
    if "LocalProtocolError" in kinds or isinstance(error, UnicodeError):
        return "HF_TOKEN holds what cannot be sent"
    if kinds & {"UnsupportedProtocol", "InvalidURL"}:
        return "HF_ENDPOINT is no address, as https://huggingface.co is one"
    if "TransportError" in kinds:
        return f"no network to it, or it was lost ({type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    if isinstance(error, OSError):
        return "a file did not come whole; the same command gets it again"
    return f"its answer is not a hub's ({type(error).__name__}); HF_ENDPOINT names another"


def _page(page: str) -> str:
    return f"{_shown(page)}{urlsplit(page).path}"
