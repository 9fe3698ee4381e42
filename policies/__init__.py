"""Who decides: action distributions, networks and the RLlib module around them."""
