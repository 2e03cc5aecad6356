"""Convert checkpoints between the original code and albef_hf, and renew the code of saved models."""
