#!/bin/sh
# End the SLURM that start.sh started in FOLDER: stop.sh FOLDER. Its jobs are cancelled.
set -u
folder=$(cd "$1" && pwd) || exit 1
link=/etc/slurm/slurm.conf
[ -e "$folder/one-node-slurm" ] || { echo "$folder is no folder of start.sh." >&2; exit 1; }

[ "$(readlink "$link")" = "$folder/slurm.conf" ] && scancel --user "$(id -un)" 2>/dev/null && sleep 1
for file in "$folder/slurmd.pid" "$folder/slurmctld.pid" "$folder/munge/pid"; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    tries=0
    while [ "$tries" -lt 50 ] && [ "$(ps -o stat= -p "$pid" | cut -c1)" != Z ] && kill -0 "$pid" 2>/dev/null; do
        tries=$((tries + 1))
        sleep 0.1
    done
done
[ "$(readlink "$link")" = "$folder/slurm.conf" ] && rm -f "$link"
rm -f "$folder/one-node-slurm"
exit 0
