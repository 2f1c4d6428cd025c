"""Fine-tune models: splits, batches, losses and the trainer."""
