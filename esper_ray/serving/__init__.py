"""A trained policy as a service: sessions over HTTP, each with its own hidden state (docs/serving.md)."""
