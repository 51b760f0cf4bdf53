"""What ten thousand merges take on one GPU and on many: measured parts, a simulation, the bottlenecks."""
