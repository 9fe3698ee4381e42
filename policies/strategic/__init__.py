"""The strategic policy: a graph network that reads any training run."""
