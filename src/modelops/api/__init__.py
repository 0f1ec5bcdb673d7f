"""The contract: what can be asked, what is answered, and how it can fail. Imports nothing else of ours."""
