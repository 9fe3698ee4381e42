"""Many trainings: studies, tunings, runs side by side."""
