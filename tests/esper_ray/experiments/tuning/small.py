"""A tuning of seconds, whose trials differ in what cannot matter much."""

import yaml

SMALL = {
    "title": "Small",
    "preset": "debug",
    "settings": {"max_epochs": 6, "hosts_per_runner": 2, "iterations": 4, "replay_interval": 99},
    "space": {"lr": {"loguniform": [1e-4, 1e-2]}, "num_epochs": {"integers": [1, 2]}},
    "samples": 3,
    "grace_iterations": 1,
    "reduction_factor": 2,
}


def written(path, **changes):
    file = path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL | changes))
    return file
