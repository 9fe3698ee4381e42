#!/usr/bin/env bash
# Records episodes in the greenhouse, counts what became of the seeds in them, and writes the counts that ship with the
# package and docs/catalogue.md. Two minutes on an idle core:
#
#     bash studies/catalogue.sh [DIRECTORY]
#
# Seeds are planted by the heuristic, which takes each kind in its turn, and at random among what the masks admit, which
# blends in what no careful policy would.
set -euo pipefail
cd "$(dirname "$0")/.."
store=${1:-runs/catalogue}

record() {  # TASK HOSTS EPOCHS
    .venv/bin/esper-ray strategic collect "$store" --policies heuristic random_valid --task "$1" --episodes "$2" \
        --max-epochs "$3"
}
record digits_impaired 16 60
record digits_scale 16 60
record tabular 16 60
record text 6 40 # a hundred times the work
.venv/bin/python -m benchmarks.catalogue "$store"
