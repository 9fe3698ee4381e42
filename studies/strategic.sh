#!/usr/bin/env bash
# Teaches two graph policies what others do, one for digits_mixed and one for three worlds of different layers, and shows
# what they reach on held-out hosts, also in two worlds that they never saw. About an hour on two cores:
#
#     bash studies/strategic.sh [NEW DIRECTORY]
#
# Teachers are the policy that ships for images, and of rows and characters one seed at once, in the first slot: of the few
# schedules that were tried by hand those that did best on validation data (docs/lab-book.md). random_valid, and the
# heuristic at ten times the learning rate, are there for the risks alone.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/strategic}
mkdir -p "$(dirname "$runs")"
mkdir "$runs" # whatever is recorded is added to what is there

collect() { .venv/bin/esper-ray strategic collect "$@" --max-epochs 60; }
imitate() { .venv/bin/esper-ray strategic imitate "$@" --passes 20 --network.sage-width 64 --network.gat-width 32; }

collect "$runs/digits" --task digits_mixed --policies esper_ray/live/shipped/images --episodes 256
collect "$runs/digits" --task digits_mixed --policies random_valid --episodes 48 --seed 2
collect "$runs/digits" --task digits_mixed --policies heuristic --learning-rate-factor 10 --episodes 48 --seed 1
imitate "$runs/digits" "$runs/digits_mixed"

cp -r "$runs/digits" "$runs/all"
for task in tabular text; do
    episodes=$([ $task = text ] && echo 80 || echo 192)
    collect "$runs/all" --task $task --policies best_schedule --schedule studies/schedules/$task.json --episodes "$episodes"
    collect "$runs/all" --task $task --policies random_valid --episodes $((episodes / 4)) --seed 2
done
imitate "$runs/all" "$runs/three"

.venv/bin/python -m benchmarks.graph_policies "$runs/digits_mixed" "$runs/three" --page docs/strategic.md
