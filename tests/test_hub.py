"""Checkpoints by their names on a hub: what is fetched, what is found without a network, and what failures say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, refuse, send, serving, stall
from open_models import LARGE, SMALL, write_checkpoint

from launch.compose import compose
from launch.experiment import build
from launch.run import main
from tandem.errors import ConfigurationError, EnvironmentFailure
from tandem.model.formats import hub as by_name
from tandem.model.formats.huggingface import HuggingFace, save_huggingface
from tandem.pair import checkpoint_label

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKEN = "hf_this_is_secret"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder of two models, Org/Large in shards, with files beside them that nobody wants."""
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "Org" / "Small", SMALL, seed=2)
    large = write_checkpoint(folder / "Org" / "Large", LARGE, seed=1)
    tensors = HuggingFace(large)
    arrays = [(name, tensors.read(name)) for name in tensors.names]
    save_huggingface(large, json.loads((large / "config.json").read_text()), arrays, max_shard_bytes=100_000)
    (large / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    for unwanted in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (large / unwanted).parent.mkdir(exist_ok=True)
        (large / unwanted).write_bytes(b"x")
    return folder


@pytest.fixture
def hub(models, tmp_path, monkeypatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving(models) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def fetched(name: str = "Org/Large", revision: str | None = None) -> list[str]:
    said: list[str] = []
    by_name.fetch(name, revision, said.append)
    return said


def failure(name: str = "Org/Large", revision: str | None = None) -> str:
    """What is said of a fetch that fails: one line, without the token."""
    start = time.monotonic()
    with pytest.raises(EnvironmentFailure) as refused:
        by_name.fetch(name, revision, lambda line: None)
    said = str(refused.value)
    assert "\n" not in said
    assert TOKEN not in said
    assert refused.value.exit_code == 1
    assert time.monotonic() - start < 60  # seconds on a machine that does nothing else
    return said


def left(tmp_path: Path) -> list[str]:
    """The files of the cache that are not whole, and whatever would lead to a model."""
    cache = tmp_path / "hf" / "hub"
    return [str(path) for path in cache.rglob("*") if "incomplete" in path.name or path.parent.name == "refs"]


def test_what_a_model_needs_is_fetched_and_found_again_without_a_network(hub, models, tmp_path):
    assert by_name.cached("Org/Large") is None
    with pytest.raises(EnvironmentFailure, match=r"Org/Large: no directory here, .* model\.download=true fetches it"):
        by_name.find("Org/Large")
    said = fetched()
    assert re.fullmatch(rf"fetching Org/Large at 0123456789ab from {hub.address}: \d+ files, \d+ MB, into .*", said[0])
    shards = sorted(path.name for path in (models / "Org" / "Large").glob("model-*.safetensors"))
    assert len(shards) > 1
    small = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert sorted(hub.files) == sorted([*small, "model.safetensors.index.json", *shards])
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}
    directory = by_name.find("Org/Large")
    assert directory.name == COMMIT
    assert (directory / shards[0]).read_bytes() == (models / "Org" / "Large" / shards[0]).read_bytes()
    hub.fail = refuse(500)
    assert by_name.find("Org/Large", COMMIT) == by_name.find("Org/Large") == directory
    assert by_name.cached("Org/Large", "v1") is None  # which was not asked for, and may be another commit
    hub.fail = lambda handler: False
    before = len(hub.files)
    fetched(revision="v1")
    assert by_name.find("Org/Large", "v1") == directory
    assert len(hub.files) == before


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (refuse(401), r"there is no such model \(401\); if it is private, HF_TOKEN"),
        (refuse(401, "GatedRepo"), r"its terms must be accepted at http://127\.0\.0\.1:\d+/Org/Large, and HF_TOKEN"),
        (refuse(403), r"may not be read \(403\)"),
        (refuse(403, "GatedRepo"), "its terms must be accepted"),
        (refuse(403, "GatedRepo", "/resolve/"), "its terms must be accepted"),
        (refuse(404, "RepoNotFound"), r"there is no such model \(404\)"),
        (refuse(429), "the hub answers with 429; try again later"),
        (refuse(500), "the hub answers with 500; try again later"),
        (refuse(503, path="/resolve/"), "the hub answers with 503; try again later"),
        (refuse(200), "its answer is not a hub's"),
        (stall(3), "no answer within 1 s"),
        (stall(3, "/resolve/"), "no answer within 1 s"),
    ],
)
def test_a_failure_is_one_line_and_leaves_nothing_half_written(hub, tmp_path, monkeypatch, fail, said):
    monkeypatch.setattr(by_name, "SECONDS", 1)
    hub.fail = fail
    line = failure()
    assert re.search(said, line)
    assert line.startswith(f"Org/Large: cannot be fetched from {hub.address}: ")
    assert not left(tmp_path)


def test_names_and_revisions_that_are_not_there(hub, tmp_path):
    assert "there is no such model (404)" in failure("Org/Nothing")
    assert "it has no revision v2; a branch, a tag or a commit is one" in failure(revision="v2")
    assert not left(tmp_path)


def test_no_network_is_said_at_once(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://somebody:word@127.0.0.1:9")
    assert failure() == (
        "Org/Large: cannot be fetched from http://127.0.0.1:9: no network to it, or it was lost (ConnectError)"
    )
    monkeypatch.setenv("HF_ENDPOINT", "nowhere")
    assert "HF_ENDPOINT is no address" in failure()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN} é")
    assert failure().endswith("HF_TOKEN holds what cannot be sent")


def test_a_file_that_breaks_off_or_comes_damaged_is_not_kept(hub, models, tmp_path):
    def damaged(handler) -> bool:
        if not (handler.command == "GET" and "-of-" in handler.path):
            return False
        content = (models / "Org" / "Large" / Path(handler.path).name).read_bytes()
        send(handler, 200, content[:-1] + bytes([content[-1] ^ 1]))
        return True

    hub.fail = damaged
    assert "came damaged, by its SHA-256" in failure()
    assert not left(tmp_path)
    assert by_name.cached("Org/Large") is None
    hub.fail = lambda handler: False
    fetched()
    assert by_name.cached("Org/Large") is not None


def test_what_has_no_weights_that_are_read_is_refused_before_it_is_fetched(hub, models, tmp_path):
    other = models / "Org" / "Pickled"
    other.mkdir(exist_ok=True)
    (other / "pytorch_model.bin").write_bytes(b"x")
    assert "has no config.json" in failure("Org/Pickled")
    (other / "config.json").write_text("{}")
    assert "has no model.safetensors or model.safetensors.index.json; PyTorch's pickles" in failure("Org/Pickled")
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert "lacks a.safetensors, which its model.safetensors.index.json names" in failure("Org/Pickled")
    shutil.rmtree(other)
    assert not hub.files or hub.files == ["model.safetensors.index.json"]
    assert not left(tmp_path)


def test_what_does_not_fit_is_refused_before_it_is_fetched(hub, monkeypatch, tmp_path):
    class Usage:
        free = 10

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    assert re.search(r"Org/Small: takes .* GB, and .* has 0\.0 GB left; HF_HUB_CACHE", failure("Org/Small"))
    assert not hub.files


def test_a_partly_fetched_model_is_named_as_that(hub, models):
    fetched()
    directory = by_name.find("Org/Large")
    shard = next(directory.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(EnvironmentFailure, match=rf"{shard.name} is missing of it in the cache"):
        by_name.find("Org/Large")
    fetched()
    assert by_name.find("Org/Large") == directory


def test_the_package_is_named_where_it_is_not_installed(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "`uv run --extra hub …`" in failure()


def words(*more: str) -> list[str]:
    return ["model=tandem_pair", "model.primary.path=Org/Large", "model.secondary.path=Org/Small", *more]


def test_a_command_fetches_only_when_it_is_asked_to(hub, tmp_path, capsys):
    small = ["prompt=abc", "decode.max_new_tokens=3", "decode.cache_tokens=96", "gamma=0", "job=generate"]
    small = [*small, "data=sampled", f"runs_dir={tmp_path / 'runs'}"]
    with pytest.raises(EnvironmentFailure, match=r"Org/\w+: no directory here, .*model\.download=true"):
        compose(words(*small))
    with pytest.raises(EnvironmentFailure, match=r"Org/Large: is not in the cache .* dry_run=true fetches nothing"):
        compose(words(*small, "model.download=true", "dry_run=true"))
    with pytest.raises(EnvironmentFailure, match=r"and job=doctor fetches nothing"):
        compose(words("model.download=true", "job=doctor"))
    with pytest.raises(ConfigurationError, match="tau=7"):
        compose(words(*small, "model.download=true", "tau=7"))
    assert main(words("model.download=true", "--cfg", "job")) == 0
    shown = capsys.readouterr().out
    assert "download: true" in shown
    assert TOKEN not in shown
    assert not hub.requests
    assert main(words(*small, "model.download=true")) == 0
    said = capsys.readouterr().err
    assert "fetching Org/Large at 0123456789ab" in said
    assert "fetching Org/Small at 0123456789ab" in said
    hub.fail, asked = refuse(500), len(hub.requests)
    for more in ([], ["model.download=true"]):
        assert main(words(*small, *more)) == 0
        assert main(words("data=sampled", "dry_run=true", *more)) == 0
        assert f"Org/Large@{COMMIT}" in capsys.readouterr().out
        assert main(words("job=doctor", *more)) == 0
        assert f"Org/Small@{COMMIT}: 2 files" in capsys.readouterr().out
    assert len(hub.requests) == asked
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_a_model_is_the_same_step_wherever_it_lies(hub, models):
    fetched()
    fetched("Org/Small")
    named = compose(words("data=sampled", "model.secondary.revision=main"))
    paths = [
        f"model.{role}.path={models / 'Org' / name}" for role, name in (("primary", "Large"), ("secondary", "Small"))
    ]
    placed = compose(["model=tandem_pair", "data=sampled", *paths])
    assert [step.fingerprint for step in build(named)] == [step.fingerprint for step in build(placed)]
    assert checkpoint_label(named.model.primary) == f"Org/Large@{COMMIT}"


def test_names_that_are_none_are_refused(hub):
    with pytest.raises(ConfigurationError, match=r"model\.primary\.path='Or--g/L' is no directory here, and no name"):
        compose(["model=tandem_pair", "model.primary.path=Or--g/L", "model.secondary.path=Org/Small"])
    with pytest.raises(
        ConfigurationError, match=r"model\.primary\.revision='\.\.' must be a branch, a tag or a commit"
    ):
        compose(words("model.primary.revision=.."))
    with pytest.raises(
        ConfigurationError, match=r"revision='main' is of a name on a hub, and model\.primary\.path=/tmp"
    ):
        compose(["model=tandem_pair", "model.primary.path=/tmp", "model.primary.revision=main"])
    with pytest.raises(ConfigurationError, match=r"model\.primary\.revision='main' is not read by .*source=shipped"):
        compose(["model.primary.revision=main"])
    assert not any(by_name.may_be_name(path) for path in ("./a", "a/b/c", "a/b.gguf"))


def test_a_directory_comes_before_a_name(hub, models, monkeypatch):
    monkeypatch.chdir(models)
    experiment = compose(words("data=sampled"))
    assert checkpoint_label(experiment.model.primary) == "Org/Large"
    assert not hub.requests


@pytest.mark.slow
def test_nothing_imports_the_package_unless_it_is_asked(hub):
    fetched()
    fetched("Org/Small")
    program = (
        "import sys; from launch.run import main; code = main(sys.argv[1:]); "
        "sys.exit(code or 'huggingface_hub' in sys.modules)"
    )
    command = [sys.executable, "-c", program, *words("dry_run=true", "data=sampled")]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
