"""What reasons and levels mean to whoever runs the controller, and what there is to do."""

from __future__ import annotations

from dataclasses import dataclass

from esper_ray.controller.commands import Reason
from esper_ray.controller.levels import Level
from esper_ray.controller.updates.verdicts import UpdateReason


@dataclass(frozen=True)
class Advice:
    """On one reason, level or verdict.

    Attributes:
        meaning: What has happened.
        todo: What to do.
    """

    meaning: str
    todo: str


_BREAKER = "It is tried again after its cool-down. Until then look at what it failed with, in log and records"

REASONS: dict[Reason, Advice] = {
    Reason.POLICY: Advice("The policy's own choice; nothing stood against it.", "Nothing."),
    Reason.EXPECTED_RISK: Advice(
        "The policy itself expects harm: seeds are slowed, or the run is left alone.",
        "Look at the loss. If the run is healthy and this stays, the policy was trained on other runs than yours.",
    ),
    Reason.BLUEPRINT_QUARANTINED: Advice(
        "The kind of seed that was to be added or relied on is quarantined in your file.",
        "Nothing, the run goes on without it; take the entry out of the file once its cause is gone.",
    ),
    Reason.QUARANTINED_SEED: Advice(
        "A seed of a quarantined kind, or one that may only be watched, lives and is not permanent. Nothing is added.",
        "Nothing, if the policy prunes it. If it does not, prune it by hand, or lift the quarantine.",
    ),
    Reason.BLUEPRINT_HAZARD: Advice(
        "The catalogue knows a HIGH or CRITICAL hazard of the kind of seed that was to be added.",
        "Read what the hazard is in the catalogue; lower its severity in your file if your run is not concerned.",
    ),
    Reason.BLUEPRINT_RISK: Advice(
        "On record, many seeds of this kind were rolled back, regressed or pruned.",
        "Nothing. The catalogue's page has the counts; raise the threshold if you accept the risk.",
    ),
    Reason.LOSS_DELTA: Advice(
        "The validation loss has risen within one epoch: seeds are slowed, or the run is left alone.",
        "Wait an epoch. If it goes on rising without seeds, the learning rate or the data are to blame.",
    ),
    Reason.HOOK_LATENCY: Advice(
        "The probe added too much to a training step, or the executor to an epoch's end.",
        "On a large model or a busy machine that is what they cost: free a processor, or raise the threshold.",
    ),
    Reason.STEP_LATENCY: Advice(
        "Deciding took too long of a step.",
        "Free a processor, or decide at the ends of epochs alone.",
    ),
    Reason.APPLY_LATENCY: Advice(
        "Carrying out the last decision took too long.",
        "Nothing, unless it comes every time: then the model is large, and the threshold low for it.",
    ),
    Reason.ISOLATION_VIOLATIONS: Advice(
        "The source says that the gradient of a seed in training has reached the host.",
        "Stop the run: its host no longer learns what it would without seeds. Our own hosts exclude it.",
    ),
    Reason.GPU_EXHAUSTED: Advice(
        "The device is busy and has hardly any memory left: nothing is added.",
        "Use smaller batches, or lower the budget of parameters.",
    ),
    Reason.CPU_SATURATED: Advice(
        "All processors are busy, and training is much slower than its own median.",
        "See what else runs on the machine.",
    ),
    Reason.OVER_BUDGET: Advice(
        "More seeds live than may: nothing is added.",
        "Nothing, the policy prunes; or raise the limit that it was started with.",
    ),
    Reason.SEED_STUCK: Advice(
        "The fate of a seed has been open for very long.",
        "See whether it trains at all (its gradient, its alpha), and whether the policy ever prunes.",
    ),
    Reason.PROCESS_MEMORY: Advice(
        "The process has most of the memory that it may have: seeds are slowed, or nothing is added.",
        "Look for a leak; use smaller batches or fewer loader processes; give the container more.",
    ),
    Reason.LOSS_VOLATILITY: Advice(
        "The training loss jumps from epoch to epoch.", "Lower the learning rate, or enlarge the batch."
    ),
    Reason.GRADIENT_VARIANCE: Advice(
        "Gradients of single steps differ much.", "Enlarge the batch, or clip gradients, if training suffers."
    ),
    Reason.GRADIENT_CONFLICT: Advice(
        "The source says that gradients point against each other.",
        "Lower the learning rate. Plain SGD does so in good health, too: raise the threshold then.",
    ),
    Reason.COVERAGE: Advice(
        "Of what the source declares little was measured: seeds are slowed, or the run is left alone.",
        "Find what is missing in the record of the decision: a source that has stopped, or declares too much.",
    ),
    Reason.TIMEOUT_INFERENCE: Advice(
        "The policy gave no answer in time; what it says later is dropped.",
        "One now and then is the machine's load. If they are frequent, free a processor or take a smaller policy.",
    ),
    Reason.TIMEOUT_CATALOGUE: Advice(
        "The catalogue could not be read in time.", "See to the disk that your file of blueprints lies on."
    ),
    Reason.TIMEOUT_BUS: Advice("The bus did not take a message in time.", "See to the bus and the way there."),
    Reason.TIMEOUT_EVALUATE: Advice(
        "Deciding took longer than it may as a whole.",
        "See which part it was in the latencies: the policy, or the disk of the state directory.",
    ),
    Reason.BREAKER_INFERENCE: Advice(
        "Asking the policy has failed several times in a row: it is left alone.", f"{_BREAKER}."
    ),
    Reason.BREAKER_CATALOGUE: Advice(
        "Reading the catalogue has failed several times in a row.",
        f"{_BREAKER}: a file of blueprints that is not as it must be says so in a line.",
    ),
    Reason.BREAKER_BUS: Advice("Publishing has failed several times in a row.", f"{_BREAKER}; see to the bus."),
    Reason.STORE_FAILED: Advice(
        "The decision could not be committed, and so was not sent.",
        "See whether the state directory's disk is full or read-only. It is tried again at the next decision.",
    ),
    Reason.POLICY_FAILED: Advice(
        "The policy's process has ended, or raised an error; another one takes over.",
        "Once is an accident. If it repeats, the log says with what; take another policy.",
    ),
    Reason.POLICY_NOT_FINITE: Advice(
        "The policy answered with NaN or an infinity.", "Take another policy, or look at the packet that it was asked."
    ),
    Reason.ACTION_MASKED: Advice(
        "The policy chose what was not admitted.", "Take another policy: it does not read its mask."
    ),
    Reason.WORKER_STARTING: Advice(
        "No process is ready to run the policy yet, or not again.",
        "Wait: it takes 4 to 12 seconds. A standby makes it 20 to 77 ms.",
    ),
    Reason.CONSERVATIVE_MODE: Advice(
        "Nothing is wrong in this epoch, but the run was in trouble a short while ago: all but a PRUNE is held back.",
        "Wait: it ends after its cool-down of clean epochs. Or release it by hand, once the cause is gone.",
    ),
    Reason.OPERATOR: Advice("Somebody has paused the run by hand.", "Resume it when you want."),
    Reason.PACKET_REFUSED: Advice(
        "What was to be decided on is no packet, or of a run whose epochs are over.",
        "See what your source sends. A run that goes on for longer needs a `max_epochs` that says so.",
    ),
    Reason.EVALUATION_FAILED: Advice(
        "The controller itself failed. Of this decision there is no record.",
        "The log has what it failed with: report it.",
    ),
}
"""On every reason."""

COMMANDS = {
    "esper-ray control --task TASK --policy POLICY": (
        "Trains a host of a task under a controller. A line per epoch says what was decided and why."
    ),
    "esper-ray control --observe": (
        "The same, but nothing is carried out: what would have been done is recorded. Begin with that."
    ),
    "esper-ray control --prometheus-port 9464": (
        "The same, and serves the latest numbers to Prometheus on this machine; 0 takes a port that is free."
    ),
    "esper-ray control --bus redis://127.0.0.1:6379/0": (
        "The same over a bus: the controller in a process of its own, all messages signed (docs/cluster/control.md)."
    ),
    "esper-ray control serve --bus redis://127.0.0.1:6379/0": "The controller alone, for any number of runs.",
    "esper-ray control join --bus redis://127.0.0.1:6379/0": "A host of a task alone, beside such a controller.",
    "esper-ray control status": (
        "Lists all runs: how far they are, level, mode, what holds by hand, the last decision; and the breakers as "
        "they were at the last decision."
    ),
    "esper-ray control pause RUN": "Nothing is done with the run from its next decision on.",
    "esper-ray control resume RUN": "Ends that.",
    "esper-ray control release RUN": "Ends the run's conservative mode with its next decision.",
    "esper-ray control --explain RUN": (
        "Prints every decision on the run: what was proposed and commanded, why, the signals that fired with what they "
        "measured, and what became of it."
    ),
    "esper-ray reports list": "Lists field reports: what decisions led to, and how far each report is on its way.",
    "esper-ray reports show REPORT": "Shows all of a report.",
    "esper-ray reports requeue": "Puts parked reports back, all or the one that is named: they are sent again.",
    "esper-ray updates list": "Lists the policy updates that came, and what became of each.",
    "esper-ray updates show NUMBER": "Shows all that is known of one.",
    "esper-ray updates rollback": (
        "Lets the policy before the update that decides do so again, from the next evaluation on, or from the next "
        "start if no controller is at work."
    ),
    "tensorboard --logdir var/controller/tensorboard": (
        "Shows level, signals and decisions of each run over its epochs."
    ),
}
"""What can be asked and said: command → what it does."""

UPDATES: dict[UpdateReason, Advice] = {
    UpdateReason.ENVELOPE: Advice(
        "Its envelope is not believed: not signed, forged, for somebody else, or too old.",
        "The detail begins with one of the reasons in docs/security.md (Refusals): do what stands there.",
    ),
    UpdateReason.MALFORMED: Advice(
        "It is signed, but no update, or its manifest is not what training writes.",
        "See whether learner and controller are of one version of this library.",
    ),
    UpdateReason.NOT_TAKEN: Advice(
        "The controller was started with a policy that no update fits: a control, an export, a file.",
        "Start it with the checkpoint of a graph policy (`--policy DIRECTORY`, what `strategic imitate` wrote).",
    ),
    UpdateReason.PROBATION: Advice(
        "The update before is being watched.", "Nothing: the learner sends a later one, once that is over."
    ),
    UpdateReason.VERSION: Advice(
        "An update of this version or a later one was accepted already.",
        "Let the learner count on from the highest version in `esper-ray updates list`. If no learner of yours sent "
        "it, somebody repeats old messages.",
    ),
    UpdateReason.ROLLED_BACK: Advice(
        "These very weights have decided, and were rolled back.", "Nothing: train on, and send others."
    ),
    UpdateReason.TOO_LARGE: Advice("Its weights are larger than 64 MiB.", "Train a smaller network."),
    UpdateReason.ARCHITECTURE: Advice(
        "Its network has other widths or inputs than the live policy's.",
        "Let the learner begin with the checkpoint that the controller was started with.",
    ),
    UpdateReason.WEIGHTS_SHA256: Advice(
        "Its weights are not those that its manifest was written for.",
        "See what the sender puts together; nothing on the way can do that.",
    ),
    UpdateReason.REGISTRIES: Advice(
        "Its names have other numbers than in the live policy, so that its weights would mean something else.",
        "As of `architecture`.",
    ),
    UpdateReason.SHAPES: Advice(
        "Its weights cannot be read as the tensors of its network. Nothing in them was executed.",
        "No training writes such a file: see who has the key.",
    ),
    UpdateReason.NOT_FINITE: Advice("A weight is NaN or infinite.", "The training has diverged: see to that."),
    UpdateReason.SHADOW_FAILED: Advice(
        "In a process of its own it gave no finite, admitted answer on packets of the past, or did not start.",
        "The detail says on which packet; ask it there by yourself.",
    ),
    UpdateReason.SHADOW_LATE: Advice(
        "The same, and more than one in twenty of its answers came later than `inference_ms`.",
        "If the machine was busy, send it again with a higher version; else take a smaller network.",
    ),
    UpdateReason.STORE_FAILED: Advice(
        "It could not be written down.", "See whether the state directory's disk is full or read-only."
    ),
    UpdateReason.FAILED: Advice("The controller itself failed at it.", "The log has what it failed with: report it."),
}
"""On every reason why an update is rejected."""

LEVELS: dict[Level, Advice] = {
    Level.GREEN: Advice("All is well.", "Nothing."),
    Level.YELLOW: Advice("A WARNING, or numbers somewhat above their bases.", "Nothing yet; look at which signal."),
    Level.ORANGE: Advice(
        "Several numbers are on their way to an emergency.", "Look at gradient, memory, latency and loss."
    ),
    Level.RED: Advice("A HIGH signal, which pauses the run, or numbers near an emergency.", "Do what its reason says."),
    Level.CRITICAL: Advice(
        "A CRITICAL signal, or all numbers at their emergencies: the run is in conservative mode, or soon will be.",
        "Do what its reason says, before you release the run.",
    ),
}
"""On every level of the dashboard."""
