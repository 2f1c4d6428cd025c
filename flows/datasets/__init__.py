"""Select the records that train a model and the records that judge it."""
