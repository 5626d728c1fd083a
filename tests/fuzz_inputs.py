"""Coverage-guided fuzzing of everything that reads files of other people, by atheris (which 3.0.0 is for this Python).

    uv run --with atheris==3.0.0 python tests/fuzz_inputs.py gguf --seconds 600

tries the readers of one kind of file (`--list` names them) for so long on one core. Whatever one raises beside a
refusal is written, once for each place that raises it, with the input that did it, into `--found`, where inputs that
ended the process lie too; `python tests/fuzz_inputs.py gguf --again FILE` shows one again. The exit code is 1 where
something was found. Inputs that reach new code are kept in `--corpus`, for the next time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is watched for new code: ours, and what parses in Python.
WATCHED = ["tandem.data", "tandem.model", "tasks", "launch", "sweeps", "yaml", "gguf"]
NOT_WATCHED = ["tandem.model.decoder", "launch.fleet"]
LONGEST = 200_000  # bytes of an input


def place(error: BaseException) -> str:
    """What was raised, and by which of our lines."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    own = [frame for frame in ours if ".venv" not in frame.filename and "fuzz_" not in frame.filename] or ours
    return f"{type(error).__name__}-{Path(own[-1].filename).stem}-{own[-1].lineno}" if own else type(error).__name__


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", nargs="?", help="the kind of file")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--found", type=Path, default=Path("fuzz_found"), help="the directory for what is found")
    parser.add_argument("--corpus", type=Path, help="a directory of inputs that reach different code")
    parser.add_argument("--again", type=Path, help="try this one input")
    parser.add_argument("--list", action="store_true", help="name the targets")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.insert(0, str(ROOT))
    if options.list or options.again:
        from fuzz_targets import TARGETS

        said = ", ".join(TARGETS) if options.list else TARGETS[options.target](options.again.read_bytes())
        print(said or "read")
        return
    fuzz(options)


def fuzz(options: argparse.Namespace) -> None:
    import atheris  # type: ignore[import-not-found] - of `--with`

    with atheris.instrument_imports(include=WATCHED, exclude=NOT_WATCHED):
        from fuzz_targets import TARGETS, inputs, warmed

        warmed(options.target)
    from fuzz_forms import mutate

    target, found, counts = TARGETS[options.target], dict[str, Path](), {"done": 0, "refused": 0}
    options.found.mkdir(parents=True, exist_ok=True)
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="tandem-fuzz-corpus-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(inputs(options.target)):
        (corpus / f"seed-{number:03}").write_bytes(content)
    ends = time.monotonic() + options.seconds

    def once(data: bytes) -> None:
        counts["done"] += 1
        try:
            counts["refused"] += bool(target(data))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            where = place(error)
            if where not in found:
                found[where] = options.found / f"{options.target}-{where}"
                found[where].write_bytes(data)
                print(f"found {found[where]}: {' '.join(str(error).split())[:200]}", flush=True)
        if time.monotonic() > ends:
            finished()

    def finished() -> None:
        print(
            f"{options.target}: {counts['done']} executions in {options.seconds} s, {counts['refused']} refused, "
            f"{len(found)} places raise what they must not; {len(list(corpus.iterdir()))} inputs in the corpus",
            flush=True,
        )
        os._exit(1 if found else 0)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        made = mutate(data, seed, lambda content: atheris.Mutate(content, min(2 * len(content) + 64, most)))
        return made if len(made) <= most else data

    # What is compiled is not watched: of two files that reach the same of our lines the smaller is not the better.
    words = [f"-max_len={LONGEST}", "-len_control=0", "-reduce_inputs=0", "-timeout=60", "-rss_limit_mb=0"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *words, f"-artifact_prefix={options.found}/"], once, custom_mutator=mutated
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
