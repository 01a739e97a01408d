"""Models: plain `torch.nn.Module`s with plain arguments."""
