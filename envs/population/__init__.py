"""N hosts trained together in batched tensor calls."""
