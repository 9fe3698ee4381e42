"""How the processes of a controller talk: streams of bytes with groups of consumers, in one process or over Redis."""
