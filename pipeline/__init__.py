"""What the project does: prompt, propose, verify. It knows no queue and no store."""
