"""The child program of learning jobs: all that needs PyTorch, and what takes long, runs here and nowhere else."""
