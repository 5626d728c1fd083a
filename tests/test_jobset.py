"""The JobSet backend: its manifests against schemas and against xpk, and its life against an emulated API server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from launch.fleet.backends import checked_options, open_backend
from launch.fleet.interface import PREEMPTED_CODES, NoRoom, State, SweepJob, Unavailable
from launch.fleet.jobset import JobSetBackend, JobSetOptions
from launch.fleet.manifest import TOPOLOGIES, Slice, jobset, literal
from launch.fleet.state import SweepDirectory
from tandem.errors import ConfigurationError, EnvironmentFailure
from tests.kubernetes_api import KubernetesApi

AWKWARD = [
    "train.name='a b'",
    'name="q"',
    "x=$HOME $(PATH) $$ ${y}",
    "# no comment",
    "two\nlines",
    "γ=ü☃",
    "\\n",
    "{{a}}",
]
COMMAND = ("python", "-m", "launch.fleet.worker", "--expect", "0123", "--", "gamma=2")


def options(**changes) -> JobSetOptions:
    return checked_options(JobSetOptions, {"image": "img:1", "store": "gs://bucket/runs", **changes})


def manifest(**changes) -> dict:
    return jobset("sweep-1-p000-1", COMMAND, options(**changes).slice(), "sweep-1", "gamma=2")


def pod_of(made: dict) -> dict:
    return made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def lost(ours, parsed, where: str = "") -> list[str]:
    """What the JobSet types, which drop keys that they do not know and add defaults, have dropped or changed."""
    if isinstance(ours, dict):
        missing = [f"{where}.{key}" for key in ours if key not in parsed]
        return missing + [p for k in ours if k in parsed for p in lost(ours[k], parsed[k], f"{where}.{k}")]
    if isinstance(ours, list):
        pairs = enumerate(zip(ours, parsed, strict=True))
        return [path for n, (mine, theirs) in pairs for path in lost(mine, theirs, f"{where}[{n}]")]
    return [] if ours == parsed else [where]


def expand(text: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of a word of `command`: $(NAME) if it knows NAME, $$ as $, all else as it stands."""

    def replaced(match: re.Match) -> str:
        found = match[0]
        return "$" if found == "$$" else variables.get(found[2:-1], found)

    return re.sub(r"\$\$|\$\([^()]*\)", replaced, text)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("full", [False, True])
def test_manifests_pass_the_strict_schemas_of_jobset_and_of_the_job_in_it(topology, full):
    import kubernetes_validate
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    more = {"spot": True, "queue": "q", "priority": "high", "service_account": "trainer", "env": {"A": "1"}}
    made = manifest(topology=topology, **({**more, "secrets": {"WANDB_API_KEY": "wandb/key"}} if full else {}))
    parsed = JobsetV1alpha2JobSet.from_dict(made)
    assert parsed is not None
    assert lost(made, json.loads(json.dumps(parsed.to_dict(), default=str))) == []
    inner = made["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}, "spec": inner["spec"]}
    kubernetes_validate.validate(job, "1.33", strict=True)


def test_the_schemas_refuse_a_misspelt_key():
    import kubernetes_validate
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    made = manifest()
    made["spec"]["failurePolicy"]["maxRestart"] = 1
    parsed = JobsetV1alpha2JobSet.from_dict(made)
    assert parsed is not None
    assert lost(made, parsed.to_dict()) == [".spec.failurePolicy.maxRestart"]

    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inner"}}
    inner = manifest()["spec"]["replicatedJobs"][0]["template"]["spec"]
    inner["template"]["spec"]["nodeSelectr"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**job, "spec": inner}, "1.33", strict=True)


@pytest.mark.parametrize(("topology", "hosts"), [("2x2", 1), ("2x4", 2), ("4x4", 4), ("8x8", 16), ("16x16", 64)])
def test_a_host_has_four_chips(topology, hosts):
    job = manifest(topology=topology)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert job["template"]["spec"]["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}


def test_restarts_follow_preemption_and_no_bug():
    made = manifest(max_restarts=7)
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 7
    rules = made["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    fatal = [rule for rule in rules if rule["action"] == "FailJob"]
    assert len(fatal) == 1
    assert fatal[0]["onExitCodes"]["operator"] == "NotIn"
    assert set(fatal[0]["onExitCodes"]["values"]) == {42, 137, 143}
    # An evicted pod counts as preempted whatever it exits with, so that rule comes first.
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert made["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


@pytest.mark.parametrize("word", AWKWARD)
def test_every_character_of_an_override_survives(word):
    made = jobset("a", ("python", word), replace(options().slice(), env={"A": word}), "s", word)
    read = yaml.safe_load(yaml.safe_dump(made, allow_unicode=True))
    container = pod_of(json.loads(json.dumps(read)))["containers"][0]
    variables = {"PATH": "/bin", "HOME": "/root"}
    assert [expand(text, variables) for text in container["command"]] == ["python", word]
    assert expand(container["env"][0]["value"], variables) == word


def test_without_escaping_kubernetes_would_replace_variables():
    assert expand("$(PATH)", {"PATH": "/bin"}) == "/bin"
    assert expand(literal("$(PATH)"), {"PATH": "/bin"}) == "$(PATH)"


def test_secrets_are_references():
    made = manifest(secrets={"WANDB_API_KEY": "wandb/key"})
    reference = {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert pod_of(made)["containers"][0]["env"] == [{"name": "WANDB_API_KEY", "valueFrom": reference}]
    with pytest.raises(ConfigurationError, match="would show a secret"):
        options(env={"WANDB_API_KEY": "abc"})
    with pytest.raises(ConfigurationError) as caught:
        options(secrets={"WANDB_API_KEY": "0123456789abcdef"})
    assert "0123456789abcdef" not in str(caught.value)


def test_the_store_is_a_bucket_or_a_claim():
    bucket = pod_of(manifest(store="gs://b-1/x/y"))["volumes"][1]
    assert bucket["csi"]["volumeAttributes"]["bucketName"] == "b-1"
    assert "only-dir=x/y" in bucket["csi"]["volumeAttributes"]["mountOptions"].split(",")
    claim = manifest(store="pvc://filestore")
    assert pod_of(claim)["volumes"][1]["persistentVolumeClaim"] == {"claimName": "filestore"}
    assert "annotations" not in claim["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]
    assert pod_of(claim)["containers"][0]["workingDir"] == "/tandem"


def test_every_problem_of_the_options_is_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        checked_options(JobSetOptions, {"topology": "4x5", "store": "s3://b", "max_restarts": -1})
    problems = "\n".join(caught.value.problems)
    assert "topology=4x5 is not a slice" in problems
    assert "did you mean 4x8?" in problems
    assert "image is needed" in problems
    assert "gs://BUCKET" in problems
    assert "max_restarts=-1 must be at least 0" in problems


# xpk, in an environment of its own: `uv tool install xpk==1.16.0`, or TANDEM_XPK=path.
XPK = os.environ.get("TANDEM_XPK") or shutil.which("xpk")


@pytest.fixture(scope="module")
def xpk_manifest(tmp_path_factory):
    if XPK is None or not Path(XPK).exists():
        pytest.skip("xpk is not installed (uv tool install xpk==1.16.0, or TANDEM_XPK)")
    home = tmp_path_factory.mktemp("xpk")
    (home / ".config/xpk").mkdir(parents=True)
    (home / ".config/xpk/config.yaml").write_text('version: v1\nconfigs:\n  send-telemetry: "false"\n')

    def render(chips: int) -> dict:
        where = ["--cluster=c", "--project=p", "--zone=us-west4-a", "--dry-run", "--skip-validation"]
        job = [
            f"--tpu-type=v5litepod-{chips}",
            "--docker-image=img:1",
            "--max-restarts=7",
            "--env=A=1",
            "--priority=high",
        ]
        words = ["workload", "create", "--workload=one", "--command=python x.py", "--priority=high", *job, *where]
        out = home / f"{chips}.yaml"
        done = subprocess.run(
            [XPK, *words, f"--output-manifest-file={out}"], env={**os.environ, "HOME": str(home)}, capture_output=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return yaml.safe_load(out.read_text())

    return render


@pytest.mark.slow
@pytest.mark.parametrize("chips", [8, 16, 256])
def test_agrees_with_xpk(xpk_manifest, chips):
    theirs = xpk_manifest(chips)
    topology = next(name for name, count in TOPOLOGIES.items() if count == chips)
    ours = manifest(
        topology=topology, max_restarts=7, queue="multislice-queue", priority="high", env={"A": "1"}, store="pvc://c"
    )
    for key in ("apiVersion", "kind"):
        assert ours[key] == theirs[key]
    queue = "kueue.x-k8s.io/queue-name"
    assert ours["metadata"]["labels"][queue] == theirs["metadata"]["labels"][queue]
    assert theirs["metadata"]["annotations"].items() <= ours["metadata"]["annotations"].items()
    assert ours["spec"]["ttlSecondsAfterFinished"] == theirs["spec"]["ttlSecondsAfterFinished"]
    assert ours["spec"]["failurePolicy"] == theirs["spec"]["failurePolicy"]
    (our_job,), (their_job,) = ours["spec"]["replicatedJobs"], theirs["spec"]["replicatedJobs"]
    assert (our_job["name"], our_job["replicas"]) == (their_job["name"], their_job["replicas"])
    our_spec, their_spec = our_job["template"]["spec"], their_job["template"]["spec"]
    for key in ("parallelism", "completions", "backoffLimit"):
        assert our_spec[key] == their_spec[key]
    (theirs_on_exit,) = their_spec["podFailurePolicy"]["rules"]
    ours_on_exit = our_spec["podFailurePolicy"]["rules"][-1]
    assert ours_on_exit["action"] == theirs_on_exit["action"] == "FailJob"
    # Both restart after preemption and neither after a bug; xpk also after a crash.
    assert set(PREEMPTED_CODES) <= set(theirs_on_exit["onExitCodes"]["values"])
    assert not {1, 2} & set(theirs_on_exit["onExitCodes"]["values"])
    our_pod, their_pod = our_spec["template"]["spec"], their_spec["template"]["spec"]
    same = ["restartPolicy", "nodeSelector", "hostNetwork", "dnsPolicy", "tolerations", "terminationGracePeriodSeconds"]
    for key in [*same, "priorityClassName"]:
        assert our_pod[key] == their_pod[key], key
    (ours_in,), (theirs_in,) = our_pod["containers"], their_pod["containers"]
    for key in ("name", "image", "resources", "securityContext", "env"):
        assert ours_in[key] == theirs_in[key], key
    assert ours_in["volumeMounts"][0]["mountPath"] == theirs_in["volumeMounts"][0]["mountPath"] == "/dev/shm"
    assert our_pod["volumes"][0]["emptyDir"] == their_pod["volumes"][0]["emptyDir"]


@pytest.fixture
def api(tmp_path, monkeypatch):
    with KubernetesApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield api


@pytest.fixture
def backend(tmp_path, api) -> JobSetBackend:
    directory = SweepDirectory(tmp_path / "sweeps" / "sweep-1")
    return open_backend("jobset", {"image": "img:1", "store": "gs://bucket/runs", "max_restarts": 2}, directory)  # type: ignore


def job(id: str = "p000") -> SweepJob:
    return SweepJob(id, "gamma=2", ("gamma=2",), "0123", (*COMMAND, *AWKWARD))


ONE, TWO = "sweep-1-p000-1", "sweep-1-p001-1"


def test_a_submitted_job_is_what_was_rendered_and_submitting_twice_is_one(backend, api):
    backend.submit(job(), ONE)
    backend.submit(job(), ONE)
    assert list(api.jobsets) == [ONE]
    stored = api.jobsets[ONE]
    assert {key: stored[key] for key in ("apiVersion", "kind", "spec")} == {
        key: value for key, value in backend.render(job(), ONE).items() if key != "metadata"
    }


def test_a_job_that_needs_no_accelerator_is_a_pod_on_any_machine(backend):
    made = backend.render(replace(job(), on_devices=False), ONE)
    inner = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = inner["template"]["spec"]
    assert (inner["parallelism"], inner["completions"]) == (1, 1)
    assert "tpu" not in json.dumps(pod["nodeSelector"]) + json.dumps(pod["containers"][0]["resources"])
    assert pod["tolerations"] == []
    assert "exclusive-topology" not in json.dumps(made["metadata"])
    assert (
        pod["containers"][0]["command"]
        == backend.render(job(), ONE)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
            "containers"
        ][0]["command"]
    )


def test_the_states_of_a_job(backend, api):
    backend.submit(job(), ONE)
    assert backend.status([ONE, "sweep-1-p009-1"]) == {ONE: backend.status([ONE])[ONE]}
    assert backend.status([ONE])[ONE].state is State.pending
    api.suspend(ONE)
    assert backend.status([ONE])[ONE].detail == "in Kueue's queue"
    api.start(ONE, restarts=1)
    running = backend.status([ONE])[ONE]
    assert (running.state, running.detail) == (State.running, "restarted 1 of 2 times")
    api.finish(ONE, [0] * 4)
    done = backend.status([ONE])[ONE]
    assert (done.state, done.exit_code) == (State.succeeded, 0)


@pytest.mark.parametrize("code", [1, 2])
def test_a_failed_job_tells_the_exit_code_and_the_log_of_the_host_that_failed(backend, api, code):
    backend.submit(job(), ONE)
    api.start(ONE)
    assert backend.logs(ONE, 5) == ""
    api.logs[f"{ONE}-2"] = "\n".join(f"line {n}" for n in range(50)) + "\nValueError: γ"
    api.finish(ONE, [0, 137, code, None], message="Pod failed with exit code matching FailJob rule")
    status = backend.status([ONE])[ONE]
    assert (status.state, status.exit_code) == (State.failed, code)
    assert "FailJob rule" in status.detail
    assert backend.logs(ONE, 2).splitlines() == ["line 49", "ValueError: γ"]


def test_too_many_preemptions_are_a_failure_that_says_so(backend, api):
    backend.submit(job(), ONE)
    api.start(ONE, restarts=2)
    api.finish(ONE, [143, None, None, None], restarts=2, message="jobset failed due to reaching max restarts")
    status = backend.status([ONE])[ONE]
    assert status.state is State.failed
    assert "2 restarts" in status.detail


def test_a_cancelled_job_is_gone_and_an_unknown_one_is_no_error(backend, api):
    backend.submit(job(), ONE)
    backend.submit(job("p001"), TWO)
    backend.cancel([ONE, "sweep-1-p777-1"])
    assert list(api.jobsets) == [TWO]
    backend.release(TWO)
    assert list(api.jobsets) == [TWO], "a finished JobSet keeps its logs until its time is up"


def test_other_sweeps_are_not_seen(backend, api, tmp_path):
    other = open_backend(
        "jobset", {"image": "i", "store": "gs://bucket/runs"}, SweepDirectory(tmp_path / "sweeps" / "sweep-2")
    )
    other.submit(job(), "sweep-2-p000-1")
    assert backend.status(["sweep-2-p000-1"]) == {}


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (503, "etcdserver: leader changed", Unavailable, "cannot take it now: etcdserver"),
        (429, "too many requests", Unavailable, "too many requests"),
        (403, "exceeded quota: chips", NoRoom, "exceeded quota"),
        (403, "jobsets is forbidden", EnvironmentFailure, "forbidden"),
        (401, "Unauthorized", EnvironmentFailure, "gcloud auth login"),
        (422, "spec.replicatedJobs invalid", EnvironmentFailure, "replicatedJobs invalid"),
    ],
)
def test_refusals_say_what_to_do_and_whether_to_try_again(backend, api, status, body, error, said):
    api.refuse.append((status, {"kind": "Status", "message": body, "code": status}))
    with pytest.raises(error, match=re.escape(said)) as caught:
        backend.submit(job(), ONE)
    assert type(caught.value) is error
    assert not api.jobsets


def test_a_cluster_without_jobset_and_a_dead_server(backend, api):
    api.refuse.append((404, "404 page not found\n"))
    with pytest.raises(EnvironmentFailure, match="install JobSet"):
        backend.submit(job(), ONE)
    backend.submit(job(), ONE)
    api.stop()
    with pytest.raises(Unavailable, match="does not answer"):
        backend.status([ONE])


def test_no_kubeconfig_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    backend = JobSetBackend(options(), SweepDirectory(tmp_path / "sweep-1"))
    with pytest.raises(EnvironmentFailure, match="get-credentials"):
        backend.status([ONE])


@pytest.mark.slow
def test_the_command_line_drives_leaves_finds_and_cancels_a_sweep_on_a_cluster(api, tmp_path):
    """The whole way by the real client; the test is the controller that starts and ends what was submitted."""
    root = Path(__file__).resolve().parents[1]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a b c\n<|endoftext|>\nd e f\n", encoding="utf-8")
    common = ["scale=tiny", "train=pretrain", "eval.measures=[agreement]", "data=text", f"data.path={corpus}"]
    launcher = {"image": "img:1", "store": "gs://bucket/runs", "poll_s": 0.1, "secrets.WANDB_API_KEY": "wandb/key"}
    words = [
        *common,
        "eval.sequences=2,4",
        "hydra/launcher=jobset",
        *(f"hydra.launcher.{k}={v}" for k, v in launcher.items()),
    ]

    def begin(*words: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, str(root / "launch/run.py"), *words], cwd=tmp_path, text=True, **pipes)

    def about(job: str, sweep: str) -> tuple[int, str, str]:
        process = begin(f"job=sweep_{job}", f"sweep={sweep}")
        out, said = process.communicate(timeout=120)
        return process.returncode, out, said

    def submitted(count: int) -> list[str]:
        deadline = time.monotonic() + 60
        while len(api.jobsets) < count:
            assert time.monotonic() < deadline, api.jobsets.keys()
            time.sleep(0.05)
        return list(api.jobsets)

    process = begin("-m", *words)
    (shared,) = submitted(1)
    assert "WANDB_API_KEY" in json.dumps(api.jobsets[shared])
    api.start(shared)
    api.logs[f"{shared}-0"] = "step 7 of 60"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "jobs under way go on in jobset" in said
    assert list(api.jobsets) == [shared]
    (sweep,) = (path.name for path in (tmp_path / "runs" / "sweeps").iterdir())

    api.finish(shared, [0] * 4)
    code, out, _ = about("status", sweep)
    assert code == 0
    assert "now: succeeded" in out
    assert "nobody drives it" in out
    assert "step 7 of 60" in about("logs", f"{sweep}/{shared.split('-')[-2]}")[1]

    process = begin("job=sweep_resume", f"sweep={sweep}")
    points = submitted(3)[1:]
    failing, running = points
    for point in points:
        api.start(point)
    api.logs[f"{failing}-0"] = "ZeroDivisionError: a bug"
    api.finish(failing, [1] * 4)
    code, out, said = about("cancel", sweep)
    assert code == 0, said
    out, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert running not in api.jobsets
    assert failing in api.jobsets, "it keeps its log"
    assert "ZeroDivisionError: a bug" in out or "ZeroDivisionError: a bug" in about("status", sweep)[1]
    # The sweep's command again does what is missing, under new names.
    process = begin("-m", *words)
    again = submitted(4)[2:]
    for point in again:
        api.start(point)
        api.finish(point, [0] * 4)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 0, out + said
    assert len(api.jobsets) == 4


def test_a_slice_holds_what_the_options_say():
    names = set(Slice.__dataclass_fields__)
    assert names <= set(JobSetOptions.__dataclass_fields__)
    assert options(grace_s=60).slice().grace_s == 60
