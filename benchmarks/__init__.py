"""What merges cost at the size of real models."""
