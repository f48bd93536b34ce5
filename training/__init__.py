"""Training: recipes to run folders. PyTorch; never imported by the gateway."""
