"""Service and run in processes of their own, with a bus between them."""
