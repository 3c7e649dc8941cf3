#!/bin/sh
# Install a pinned environment: `tools/install.sh` the one without a GPU into .venv, `tools/install.sh gpu` the one
# with CUDA into .venv-gpu. The only choice is where the CPU build of torch comes from: the registry's own build would
# bring gigabytes of CUDA. What make was asked for is looked at first: PROFILE must be one, and where NEEDS_GPU says that
# runs are to follow here, this machine must have a card.
set -eu
cd "$(dirname "$0")/.."
case ${1:-cpu} in
cpu) venv=.venv lock=requirements.lock ;;
gpu) venv=.venv-gpu lock=requirements-gpu.lock ;;
*) echo "Error: there is no environment '$1'; there are: cpu, gpu." >&2 && exit 1 ;;
esac
case ${PROFILE=cpu} in */*) found= ;; *) found=params/profiles/$PROFILE.yaml ;; esac
[ -f "$found" ] || {
    echo "Error: There is no profile '$PROFILE' in params/profiles/; there are:$(cd params/profiles &&
        for file in *.yaml; do printf ' %s' "${file%.yaml}"; done)." >&2
    exit 1
}
if [ $venv = .venv-gpu ] && [ "${NEEDS_GPU:-}" ] && ! command -v nvidia-smi >/dev/null && ! [ -e /dev/nvidia0 ]; then
    echo "Error: Profile $PROFILE needs an NVIDIA GPU and this machine has none; use a machine that has, or PROFILE=cpu." >&2
    exit 1
fi
case $venv-$(uname -s)-$(uname -m) in
.venv-Linux-x86_64 | .venv-Linux-aarch64 | .venv-Darwin-arm64 | .venv-gpu-Linux-x86_64) ;;
*)
    echo "Error: $lock is not made for $(uname -s) on $(uname -m); docs/machines.md says for which systems it is." >&2
    exit 1
    ;;
esac
fits() { "$1" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 14))' 2>/dev/null; }
python=
for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
    if fits "$candidate"; then python=$candidate && break; fi
    [ "$candidate" != "${PYTHON:-}" ] || break
done
[ -n "$python" ] || {
    echo "Error: Python 3.11.5 to 3.13 is needed and ${PYTHON:-none of python3.11, python3.12, python3.13 and python3} is" \
        "one; install it or set PYTHON." >&2
    exit 1
}
torch=$(sed -n 's/^torch==\([^ ;]*\).*$/\1/p' $lock)
cpu_index=https://download.pytorch.org/whl/cpu

[ -x $venv/bin/python ] || "$python" -m venv $venv
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install -qq "uv==0.13.8"

would_take() { # the torch build pip would install with these options, or nothing
    $pip install --dry-run --quiet --no-deps --report - "$@" "torch==$torch" 2>/dev/null |
        $venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])' 2>/dev/null || true
}

if [ $venv = .venv-gpu ]; then
    chosen="torch $torch with CUDA"
elif $venv/bin/python -c 'import torch' 2>/dev/null; then
    chosen="torch is already installed"
elif [ "$(uname -s)" = Darwin ]; then
    chosen="torch $torch from the package registry, which is a CPU build on macOS"
    $pip install -qq "torch==$torch"
elif case "$(would_take)" in *+cpu) true ;; *) false ;; esac; then
    chosen="the CPU build of torch $torch from the configured package sources"
    $pip install -qq "torch==$torch"
elif case "$(would_take --index-url $cpu_index)" in *+cpu) true ;; *) false ;; esac; then
    chosen="the CPU build of torch $torch from PyTorch's own index"
    $pip install -qq "torch==$torch" --index-url $cpu_index
else
    chosen="the registry's torch $torch with CUDA, several GB, because no CPU build can be reached"
    $pip install -qq "torch==$torch"
fi
if index=$($pip config get global.index-url 2>/dev/null); then
    export UV_DEFAULT_INDEX="$index"
fi
uv="$venv/bin/uv pip install --quiet --python $venv/bin/python"
$uv --compile-bytecode --override tools/overrides.txt -r $lock
$uv --no-deps -e .
$venv/bin/python -m sao_lib unpack
echo "Set-up: $chosen; everything else as pinned in $lock."
