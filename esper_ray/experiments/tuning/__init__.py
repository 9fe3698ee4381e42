"""Tunings: many trials with settings drawn at random, the worse ones stopped early by ASHA (docs/tuning.md).

Every trial is a run directory, and every iteration's score is recorded before the next one begins. A tuning that is
started again tells a new scheduler what was recorded and does only what is missing.
"""
