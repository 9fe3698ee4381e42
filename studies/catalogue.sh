#!/usr/bin/env bash
# Records episodes in the greenhouse, counts what became of the seeds in them, and writes the evidence that ships with the
# package and docs/catalogue.md. Two minutes on an idle core:
#
#     bash studies/catalogue.sh [DIRECTORY]
#
# Seeds are planted by the heuristic, which takes each kind in its turn, and at random among what the masks admit, which
# blends in what no careful policy would.
set -euo pipefail
cd "$(dirname "$0")/.."
store=${1:-runs/catalogue}

for task in digits_impaired digits_scale tabular text; do
    .venv/bin/esper-ray strategic collect "$store" --policies heuristic random_valid --task "$task" --episodes 16 \
        --max-epochs 60
done
.venv/bin/python -m benchmarks.catalogue "$store"
