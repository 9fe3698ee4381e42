"""Decisions beside a live run that can neither stall it nor break it."""
