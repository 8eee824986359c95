"""What a record, a prompt, a completion, a verdict and a prediction are. Imports nothing of ours."""
