"""What is measured of hosts as graphs, and how it travels: N hosts at once, one vector each."""
