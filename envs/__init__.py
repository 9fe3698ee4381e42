"""The world: hosts that grow while they train, behind a Gymnasium interface."""
