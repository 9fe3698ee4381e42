"""How a policy is learnt: PPO and IMPALA on RLlib, their loss, runners, metrics, and the training loop."""
