"""Small trained pipelines of the real classes, adapters trained on them, and the drawn world they know."""
