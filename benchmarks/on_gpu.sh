#!/usr/bin/env bash
# What only a GPU can show: its tests, and the benchmarks' figures on it. Ends within 9 minutes and a half. From the
# repository's root, with a Python that has the project's dependencies, pytest and hypothesis:
#   PYTHON=python3 bash benchmarks/on_gpu.sh RESULTS [PART...]
# RESULTS is the folder for reports (JSON) and on_gpu.log. A part that fails does not stop the others; without parts named
# all of them run: tests, engine, scaling, gpu_iteration, learner, strategic.
set -uo pipefail

PYTHON=${PYTHON:-python3}
results=${1:?give the folder for the results}
wanted=("${@:2}")
mkdir -p "$results" || exit
failed=()
ran=0

part() { # its name, the seconds that it may take, and Python's arguments
    local name=$1 seconds=$2 began=$SECONDS status
    shift 2
    ((${#wanted[@]} > 0)) && [[ ! " ${wanted[*]} " == *" $name "* ]] && return
    ran=$((ran + 1))
    echo "=== $name, at most $seconds s"
    timeout --kill-after=3 "$seconds" "$PYTHON" -u "$@"
    status=$?
    case $status in
        0) ;;
        124 | 137) failed+=("$name: its time was up") ;;
        *) failed+=("$name: exit code $status") ;;
    esac
    echo "=== $name ended after $((SECONDS - began)) s"
}

report() { # a benchmark, the seconds that it may take, and its arguments
    part "$1" "$2" -m "benchmarks.$1" --json "$results/$1.json" "${@:3}"
}

all() {
    # Without a GPU pytest would skip them all, and be content.
    part tests 120 -c '
import sys, pytest
from benchmarks.harness import require_gpu
require_gpu()
sys.exit(pytest.main(sys.argv[1:]))' -k cuda --durations 5 $(grep -rlwE "cuda|DEVICES|GPU" tests --include "test_*.py")
    report engine 110 --device cuda --sizes
    report scaling 100 --parts gpu
    report gpu_iteration 95
    report learner 60 --device cuda
    report strategic 80 --device cuda --repeats 200
    ((${#wanted[@]} > 0 && ran != ${#wanted[@]})) && failed+=("not all of these are parts: ${wanted[*]}")
    ((${#failed[@]} == 0)) && echo "=== all parts ended well" && return
    printf '=== failed: %s\n' "${failed[@]}"
    return 1
}

all 2>&1 | tee "$results/on_gpu.log"
