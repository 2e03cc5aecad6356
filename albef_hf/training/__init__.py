"""Training: one loop for pretraining and all downstream tasks, on Accelerate."""
