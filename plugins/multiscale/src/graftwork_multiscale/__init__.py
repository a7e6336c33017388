"""Multi-scale, variable-batch samplers (Nunez et al. 2023) for plain PyTorch, timm and MMDetection."""
