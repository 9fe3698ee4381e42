"""The learner's half of a controller: field reports in, updates of the graph policy out."""
