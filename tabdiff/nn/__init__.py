"""The only part of tabdiff that imports torch: the diffusion process, the denoisers, training."""
