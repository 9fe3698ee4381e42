"""Tunings: many trials with settings drawn at random, the worse ones stopped early by ASHA (docs/tuning.md).

Every trial is a run directory, and every iteration's score is recorded before the next one begins. Who is stopped
follows from the record alone, so that a tuning that is started again does only what is missing.
"""
