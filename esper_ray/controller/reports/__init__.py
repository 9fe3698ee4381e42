"""Field reports: what decisions led to, and how whoever learns from it is told."""
