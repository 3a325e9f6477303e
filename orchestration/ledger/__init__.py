"""The source of truth on disk: cells, attempts, rows, checkpoints, launches."""
