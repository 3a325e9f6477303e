"""What happens on a worker: one training from its claim to its end, and what it is measured by."""
