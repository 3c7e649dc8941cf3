#!/bin/sh
# Start a real one-node SLURM on this host for tests: start.sh FOLDER. `stop.sh FOLDER` ends it.
# Needs root and Debian's packages, which it installs. Everything lies in FOLDER, except /etc/slurm/slurm.conf, a link
# to FOLDER/slurm.conf: job steps lose the variable SLURM_CONF on the way. Exits with 3 where SLURM cannot be had.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
link=/etc/slurm/slurm.conf
host=$(hostname -s)

cannot() {
    echo "$1" >&2
    exit 3
}

[ "$(id -u)" = 0 ] || cannot "SLURM's daemons are started as root, and this is user $(id -un)."
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    command -v apt-get >/dev/null || cannot "SLURM is not installed and there is no apt-get to install it with."
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >"$folder/apt.log" 2>&1 ||
        cannot "apt-get cannot install slurm-wlm and munge: $(tail -n 1 "$folder/apt.log")"
fi
if [ -L "$link" ] && [ -e "$(dirname "$(readlink "$link")")/one-node-slurm" ]; then
    "$here/stop.sh" "$(dirname "$(readlink "$link")")" # of a test that was killed
elif [ -e "$link" ]; then
    cannot "This host has a SLURM of its own: $link exists."
fi

mkdir -p /etc/slurm "$folder/state" "$folder/spool" "$folder/munge"
touch "$folder/one-node-slurm"
(umask 077 && head -c 64 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MinJobAge=3600
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
ln -sfn "$folder/slurm.conf" "$link"

munge=$folder/munge # --force: a temporary folder is not as closed as munge wants it
munged --force --key-file="$munge/key" --socket="$munge/socket" --pid-file="$munge/pid" \
    --log-file="$munge/log" --seed-file="$munge/seed" 2>"$folder/munged.err"
slurmctld >/dev/null 2>&1
slurmd >/dev/null 2>&1
seconds=0
until [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ]; do
    seconds=$((seconds + 1))
    if [ "$seconds" -gt 30 ]; then
        tail -n 5 "$folder/slurmctld.log" "$folder/slurmd.log" >&2 || true
        "$here/stop.sh" "$folder"
        exit 1
    fi
    sleep 1
done
