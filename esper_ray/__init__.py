"""How growing is learnt and run: PPO on RLlib, and what stands around it."""
