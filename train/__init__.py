"""Workstation half: trains CBiGAN models on defect-free images, evaluates them and exports bundles."""
