"""The ways in. Each decodes, calls one method of the service, encodes, and nothing else."""
