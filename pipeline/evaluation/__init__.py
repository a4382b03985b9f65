"""How good prompts, pictures and verdicts are: metrics as pure functions, no store and no queue."""
