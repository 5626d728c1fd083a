# The part of a startup script that is the same for every job; queued_resources.py writes what comes before: the variables
# handle, project, zone, store, bucket, folder, delete_after_s, and the function `job`. The machine runs it as root at
# each boot, on every worker. What it leaves in /var/lib/tandem/HANDLE: started/, worker (its number), log,
# and rc once the job has ended.
set -u
umask 022
export HOME="${HOME:-/root}"
home=/var/lib/tandem/$handle
mkdir -p "$home"

mount_store() {
  mkdir -p "$store"
  if [ -n "$bucket" ] && ! mountpoint -q "$store"; then
    # Another host's finished steps are seen at once only if nothing about files is cached.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 ${folder:+--only-dir "$folder"} "$bucket" "$store"
  fi
}

if [ $# -eq 0 ]; then
  # At boot. The job gets a session of its own: it outlives this script, and needs no ssh connection to begin or go on.
  how=run
  if [ -e "$home/rc" ]; then
    how=over
  elif ! mkdir "$home/started" 2>/dev/null; then
    how=rebooted
  fi
  cp "$0" "$home/script"
  setsid nohup bash "$home/script" "$how" >>"$home/log" 2>&1 </dev/null &
  exit 0
fi

worker=$(curl -sf -H 'Metadata-Flavor: Google' \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number || echo 0)
echo "$worker" >"$home/worker"
case $1 in
  run)
    (
      set -e
      job
    )
    code=$?
    ;;
  rebooted)
    echo "worker $worker was rebooted in the middle of the job"
    code=42
    ;;
esac
if [ "$1" != over ]; then
  echo "worker $worker ended with exit code $code"
  mkdir -p "$store/logs" && cp "$home/log" "$store/logs/$handle-$worker.log"
  echo "$code" >"$home/rc.new" && mv "$home/rc.new" "$home/rc"
fi
if [ "$worker" = 0 ] && [ "$delete_after_s" -gt 0 ]; then
  # Whoever drives the sweep deletes the request. If nobody does, it deletes itself.
  sleep "$delete_after_s"
  gcloud compute tpus queued-resources delete "$handle" --project="$project" --zone="$zone" --force --quiet --async
fi
