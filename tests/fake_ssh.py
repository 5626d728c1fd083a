"""In place of `ssh`: runs a command on one of the worker folders that tests/test_queued_resources.py calls machines.

It is put on the PATH, where gcloud finds it; FOLDER/unreachable makes every connection time out.
"""

import subprocess
import sys
from pathlib import Path


def moved(text: str, place: Path) -> str:
    """A script or command with the absolute paths of a worker turned into paths in its folder."""
    return text.replace("/var/lib/tandem", f"{place}/var").replace("store=/tandem", f"store={place.parents[1]}/store")


def main(root: Path, arguments: list[str]) -> int:
    """`ssh [options] USER@ADDRESS -- COMMAND...`; the command's exit code, or 255 where nobody answers."""
    at = next(n for n, word in enumerate(arguments) if "@127.0." in word)
    address = arguments[at].partition("@")[2]
    command = " ".join(word for word in arguments[at + 1 :] if word != "--")
    place = root / "workers" / address
    if (root / "unreachable").exists() or not place.is_dir():
        print(f"ssh: connect to host {address} port 22: Connection timed out", file=sys.stderr)
        return 255
    return subprocess.run(["bash", "-c", moved(command, place)], cwd=place).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
