"""What a policy is worth: episodes on held-out hosts, controls, evaluation, the search for a schedule, pictures."""
