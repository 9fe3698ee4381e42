"""One host that is somebody's own ``nn.Module``, trained in their own loop: a world with N = 1."""
