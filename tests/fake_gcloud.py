"""In place of `gcloud` where it is not installed: the commands that the project uses, against TANDEM_TPU_API.

It follows what gcloud 528 was seen to do: the requests it makes, what it prints, its exit codes (0, 1; 2 for unknown
flags), and that it starts `ssh` from the PATH for each worker. The same tests run with both.
"""

import argparse
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = os.environ["TANDEM_TPU_API"]


def fail(verb, text):
    sys.exit(f"ERROR: (gcloud.compute.tpus.{verb}) {text}")


def call(verb, method, path, body=None):
    request = urllib.request.Request(ROOT + path, json.dumps(body or {}).encode(), method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        about = json.load(error)["error"]
        fail(verb, f"{about['status']}: {about['message']}")
    except OSError as error:
        fail(verb, f"There was a problem refreshing... {error}. This may be due to network connectivity issues.")


parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("words", nargs=4)
parser.add_argument("what", nargs="?")
known = "zone project format node-id accelerator-type runtime-version labels metadata-from-file worker command"
for name in [*known.split(), "valid-after-duration", "valid-until-duration", "scopes"]:
    parser.add_argument(f"--{name}")
for name in ("async", "spot", "force", "quiet", "internal-ips", "internal-ip"):
    parser.add_argument(f"--{name}", action="store_true")
given = parser.parse_args()
kind, verb = given.words[2:]
where = f"/v2/projects/{given.project}/locations/{given.zone}"
said = f"{kind}.{verb}"
if (kind, verb) == ("queued-resources", "create"):
    node = {"acceleratorType": given.accelerator_type, "runtimeVersion": given.runtime_version, "metadata": {}}
    node["labels"] = dict(pair.split("=", 1) for pair in given.labels.split(","))
    for pair in given.metadata_from_file.split(","):
        key, _, path = pair.partition("=")
        node["metadata"][key] = Path(path).read_text(encoding="utf-8")
    spec = {"node": node, "nodeId": given.node_id, "parent": where.removeprefix("/v2/")}
    body = {"tpu": {"nodeSpec": [spec]}, **({"spot": {}} if given.spot else {})}
    call(said, "POST", f"{where}/queuedResources?queuedResourceId={given.what}", body)
elif (kind, verb) == ("queued-resources", "list"):
    print(json.dumps(call(said, "GET", f"{where}/queuedResources")["queuedResources"]))
elif (kind, verb) == ("queued-resources", "delete"):
    call(said, "DELETE", f"{where}/queuedResources/{given.what}?force={str(given.force).lower()}")
elif (kind, verb) == ("tpu-vm", "ssh"):
    node = call(said, "GET", f"{where}/nodes/{given.what}")
    addresses = [end["ipAddress"] for end in node["networkEndpoints"]]
    chosen = addresses if given.worker == "all" else [addresses[int(given.worker)]]
    running = [subprocess.Popen(["ssh", "-t", f"user@{address}", "--", given.command]) for address in chosen]
    codes = [process.wait() for process in running]
    if 255 in codes:
        fail(said, "[ssh] exited with return code [255].")
    sys.exit(max(codes))
else:
    sys.exit(2)
