"""Training: DreamBooth specialists, and the loop that trainings share."""
