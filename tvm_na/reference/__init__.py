"""What is right: eager PyTorch in float64, budgets of errors, random inputs."""
