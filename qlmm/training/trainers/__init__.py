"""What the trainers of all objectives share."""
