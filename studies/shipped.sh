#!/usr/bin/env bash
# Trains the two policies that ship with the package, over episodes of 15 to 150 epochs, so that they finish what they
# begin, and shows how they do at four horizons. Some hours on two cores:
#
#     bash studies/shipped.sh [NEW DIRECTORY]
#
# For images an LSTM learns by rewards. Settings are those of digits_mixed.yaml, a small bonus for entropy and a price on
# germination; digits_mixed and digits_impaired in turn: on digits_mixed alone, where three hosts of five are best left
# alone, the policy learnt to leave foreign networks alone too. The discount is there to make it hurry: without one, what
# is grown late in a long episode is worth as much as what is grown early, and short ones end before it is finished.
#
# For sequences and vectors, where rewards taught to wait, a graph policy imitates what paid on validation data: one seed
# at once where hosts need it and there is time to earn its rent, and nothing in hosts that have what the seed would bring,
# or in runs of 15 and 25 epochs. It can tell them apart, as it reads layers and the length of a run. random_valid is there
# for the risks alone. All was chosen on validation data (docs/lab-book.md).
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/shipped}
mkdir -p "$(dirname "$runs")"
mkdir "$runs" # whatever is recorded is added to what is there
shipped=esper_ray/live/shipped

.venv/bin/esper-ray train --preset quickstart --run-dir "$runs/images" --tasks digits_mixed,digits_impaired \
    --max-epochs 15..150 --gamma 0.98 --entropy-coeff 0.003 --germination-cost 0.01 --iterations 60 --hosts-per-runner 32
rm -rf $shipped/images
.venv/bin/esper-ray export "$runs/images" $shipped/images

collect() { .venv/bin/esper-ray strategic collect "$runs/record" --task "$@"; }
for task in tabular tabular_wide text text_attending; do
    episodes=48 lengths="15 25 60 100 150"
    if [[ $task == text* ]]; then episodes=16 lengths="15 25 60 150"; fi # an epoch costs twenty times as much
    for epochs in $lengths; do
        who=(--policies best_schedule --schedule studies/schedules/$task.json)
        if [[ $task == *_* || $epochs -lt 60 ]]; then who=(--policies never_grow --examples True); fi
        collect $task --max-epochs "$epochs" --episodes $episodes "${who[@]}"
    done
done
collect tabular --max-epochs 60 --policies random_valid --episodes 48 --seed 2
collect text --max-epochs 60 --policies random_valid --episodes 16 --seed 2
.venv/bin/esper-ray strategic imitate "$runs/record" "$runs/sequences_and_vectors" --passes 12 \
    --network.sage-width 64 --network.gat-width 32
rm -rf $shipped/sequences_and_vectors
cp -r "$runs/sequences_and_vectors/policy" $shipped/sequences_and_vectors

.venv/bin/python -m benchmarks.shipped --json studies/kept/shipped.json --page docs/grow.md
