"""The best fixed schedule: the control that knows as much about a task as training can find without looking at a host.

Brackets of successive halving (Jamieson and Talwalkar 2016; Li et al. 2018): many schedules on few hosts, the better
part of them on more. The first bracket draws at random; later ones also vary the best schedules so far, as in
evolutionary search. All schedules of a rung meet the same hosts, so that a lucky host favours none; the finalists
meet fresh ones. Scores are committed scores on the validation split.
"""
