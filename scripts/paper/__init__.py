"""The figures of the MiniCache paper (Liu et al. 2024), measured on any GGUF model."""
