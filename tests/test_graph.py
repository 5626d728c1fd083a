"""The step graph: fingerprints by meaning, nothing done twice, interrupted work goes on."""

import json
from pathlib import Path

import pytest
from plain_steps import plain

from launch.graph import Context, Interrupted, Step, describe, execute, topological
from launch.progress import Display, duration
from launch.store import Store


def note(context: Context) -> None:
    (context.out / "value").write_text("x")


def make(name: str, run=note, inputs=None, version: int = 1, kind: str | None = None, **config) -> Step:
    made = {"inputs": inputs or {}, "size": "1M", "estimate_s": 60.0}
    return plain(kind or name, run, config, name, version, **made)


def said(store: Store) -> list[tuple[str, str]]:
    entries = [json.loads(line) for line in (store.root / "log.jsonl").read_text().splitlines()]
    return [(entry["event"], entry["step"]) for entry in entries]


def test_fingerprint_changes_with_meaning_only():
    corpus = make("corpus", split=0.1)
    base = make("train", inputs={"data": corpus}, steps=10)
    same = plain("train", print, {"steps": 10}, "another name", inputs={"data": corpus}, size="9G", estimate_s=1.0)
    assert same.fingerprint == base.fingerprint
    others = [
        make("train", inputs={"data": corpus}, steps=11),
        make("train", inputs={"data": corpus}, steps=10, version=2),
        make("train", inputs={"data": corpus}, steps=10, kind="measure"),
        make("train", inputs={"data": make("corpus", split=0.2)}, steps=10),
        make("train", inputs={"text": corpus}, steps=10),
        make("train", steps=10),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    assert len(base.fingerprint) == 16


def test_fingerprint_does_not_depend_on_the_order_of_keys_and_refuses_paths():
    assert make("a", x=1, y=2).fingerprint == make("a", y=2, x=1).fingerprint
    with pytest.raises(TypeError):
        _ = make("a", where=Path("/somewhere")).fingerprint
    with pytest.raises(ValueError, match="JSON"):
        _ = make("a", rate=float("nan")).fingerprint


def test_inputs_come_first():
    a = make("a")
    b = make("b", inputs={"a": a})
    c = make("c", inputs={"b": b, "a": a})
    assert [step.name for step in topological([c])] == ["a", "b", "c"]


def test_two_steps_of_one_name_are_refused(tmp_path):
    c = make("c", inputs={"a": make("a")})
    with pytest.raises(ValueError, match="named 'a'"):
        execute([c, make("a", other=True)], Store(tmp_path))


def test_steps_get_their_inputs_and_are_not_done_twice(tmp_path):
    def double(context: Context) -> None:
        (context.out / "value").write_text(2 * (context.inputs["a"] / "value").read_text())

    b = make("b", run=double, inputs={"a": make("a")})
    store = Store(tmp_path)
    first = execute([b], store)
    assert (first["b"] / "value").read_text() == "xx"
    assert execute([b], store) == first
    assert said(store) == [("run", "a"), ("run", "b"), ("found", "a"), ("found", "b")]


def test_only_what_changed_is_done(tmp_path):
    store, trained = Store(tmp_path), make("train", steps=10)
    execute([make("speed", inputs={"m": trained}, gamma=5)], store)
    execute([make("speed", inputs={"m": trained}, gamma=7)], store)
    assert said(store)[2:] == [("found", "train"), ("run", "speed")]


def test_inputs_of_finished_steps_are_not_made_again(tmp_path):
    store, a = Store(tmp_path), make("a")
    b = make("b", inputs={"a": a})
    directories = execute([b], store)
    (directories["a"] / "step.json").unlink()
    assert set(execute([b], store)) == {"b"}
    assert said(store)[-1] == ("found", "b")


def test_steps_of_one_meaning_are_done_once(tmp_path):
    one, other = make("gecko_ce", kind="train", n=1), make("control", kind="train", n=1)
    directories = execute([one, other], Store(tmp_path))
    assert directories["gecko_ce"] == directories["control"]
    assert said(Store(tmp_path)) == [("run", "gecko_ce")]


def test_interrupted_step_goes_on_in_its_directory(tmp_path):
    stopping = [True]

    def run(context: Context) -> None:
        checkpoint = context.out / "checkpoint"
        done = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for n in range(done, 5):
            context.log(step=n)
            checkpoint.write_text(str(n + 1))
            if n == 2 and context.should_stop():
                raise Interrupted

    records = []
    store, step = Store(tmp_path), make("train", run=run)
    with pytest.raises(Interrupted, match="train"):
        execute([step], store, records.append, lambda: len(records) == 3 and stopping[0])
    assert store.state(step) == "partial"
    stopping[0] = False
    directory = execute([step], store, records.append)["train"]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    kept = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert kept == records
    assert {record["step_name"] for record in records} == {"train"}
    assert [event for event, _ in said(store)] == ["run", "interrupted", "resume"]


def test_stop_between_steps_starts_nothing(tmp_path):
    stopped = []
    a = make("a", run=lambda context: stopped.append(True))
    with pytest.raises(Interrupted, match="b"):
        execute([make("b", inputs={"a": a})], Store(tmp_path), should_stop=lambda: bool(stopped))
    assert Store(tmp_path).state(a) == "done"


def test_dry_run_shows_states_and_writes_nothing(tmp_path):
    store, a = Store(tmp_path / "store"), make("a")
    b = make("b", inputs={"a": a})
    table = describe([b], store)
    assert not store.root.exists()
    assert "2 of 2 steps to run, estimated 2 min 00 s" in table
    execute([a], store)
    store.partial(b).mkdir()
    rows = {line.split()[0]: line for line in describe([b], store).splitlines()}
    assert a.fingerprint in rows["a"]
    assert "done" in rows["a"]
    assert "partial" in rows["b"]
    assert rows["1"] == "1 of 2 steps to run, estimated 1 min 00 s"


class Terminal:
    def __init__(self, live: bool):
        self.text, self.live = "", live

    def isatty(self) -> bool:
        return self.live

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_live_line_shows_rate_and_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("launch.progress.time.monotonic", lambda: now[0])
    terminal = Terminal(live=True)
    display = Display(terminal)  # type: ignore[arg-type]
    display.update("train", 0, 100)
    now[0] += 10
    display.update("train", 20, 100, loss=2.34567)
    assert terminal.text.endswith("train  20/100  20 %  2/s  loss 2.346  left 40 s")
    display.line("done")
    assert terminal.text.endswith("\r\x1b[2Kdone\n")


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("launch.progress.time.monotonic", lambda: now[0])
    terminal = Terminal(live=False)
    display = Display(terminal)  # type: ignore[arg-type]
    for done in range(300):
        now[0] = 0.1 * done
        display.update("train", done, 300)
    assert len(terminal.text.splitlines()) == 3
    assert "\x1b" not in terminal.text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.44, "0.4 s"), (12.3, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words
