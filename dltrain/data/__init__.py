"""From files to batches: sources, splits, columns, augmentation."""
