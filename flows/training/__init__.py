"""Fine-tune models on the stored records."""
