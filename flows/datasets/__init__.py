"""Select the records that train and evaluate models."""
